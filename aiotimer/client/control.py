"""A client of a running server's control messages: one question, one answer, such as whether it is there and
what it watches. For the command line and ``configure``.

The law of this file: what only some questions need is imported when one is asked. A ping needs neither the
codec nor what checks whose a server is; ``aiotimer ping`` would take twice as long with them.
"""

from __future__ import annotations

import os
import socket

from .._core.ping import PING, read_pong
from .._linux.paths import SOCKET_VARIABLE, STARTING_VARIABLE, is_private
from ..errors import AiotimerError, ProtocolError, Refused, ServerUnavailable

TYPE_CHECKING = False  # as in the package's __init__
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from .._core import wire

    A = TypeVar("A", bound=wire.ToClient)
    B = TypeVar("B")

ANSWER_WITHIN = 2.0
"""Seconds for which an answer is waited for."""

DUMP_WITHIN = 30.0
"""Seconds for which evidence is waited for: a budget of 3 s is usual, and one of a server may be longer."""


class Pong:
    """A server's answer to a ping: see ``wire.Pong``."""

    __slots__ = ("lag_s", "pid")

    def __init__(self, pid: int, lag_s: float) -> None:
        self.pid = pid
        self.lag_s = lag_s


def ping(path: str, *, trusted: bool = False) -> Pong:
    """Return the server's answer to a ping; raises as :func:`status`.

    Args:
        path: where to ask.
        trusted: ask a server only that a client would tell its timers; Refused if it is another user's.
    """
    return _ask(path, PING, _PongReader(path).read, trusted=trusted)


def status(path: str, *, scopes: bool = False, trusted: bool = False) -> dict[str, Any]:
    """Return what a server reports of itself and its workers; with ``scopes``, how long blocks took too.

    Args:
        path, trusted: see :func:`ping`.
        scopes: ask for those too.

    Raises:
        ServerUnavailable: nobody answers there.
        Refused: it does not want to: it is out of descriptors, say.
        ProtocolError: whoever does is no timer server of this protocol.
    """
    from .._core import wire

    return _ask_by_codec(path, wire.StatusRequest(scopes), wire.Status, trusted=trusted).report


def resume(path: str) -> tuple[str, ...]:
    """Have a server reap again whom its breaker spares; return the jobs. Raises as :func:`status`."""
    from .._core import wire

    return _ask_by_codec(path, wire.Resume(), wire.Resumed).jobs


def give_up_private_server(path: str) -> None:
    """Tell a private server that its owner does not need it any more; if it is gone, so be it."""
    from .._core import wire

    try:
        _ask_by_codec(path, wire.Disown(), wire.Pong)
    except AiotimerError:
        pass


def dump(path: str, pid: int, within: float | None = None, *, trusted: bool = False) -> dict[str, Any]:
    """Return the evidence of what a live worker is doing, as a record (see ``docs/reference/cli.md``).

    Args:
        path, trusted: see :func:`ping`.
        pid: the worker.
        within: seconds to wait for it; by default, longer than any server's usual budget.

    Raises:
        Refused: it watches no such worker, or something failed there.
        ServerUnavailable, ProtocolError: as :func:`status`.
    """
    from .._core import wire

    within = DUMP_WITHIN if within is None else within
    answer = _ask_by_codec(path, wire.DumpRequest(pid), wire.Dump, within, trusted=trusted)
    if answer.error:
        raise Refused(path, answer.error)
    return answer.report


class _PongReader:
    """Reads the answer to a ping; with the codec only if it is not the one that is expected, in one piece."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._by_codec: Callable[[bytes], wire.Pong | None] | None = None

    def read(self, data: bytes) -> Pong | None:
        if self._by_codec is None:
            known = read_pong(data)
            if known is not None:
                return Pong(*known)
            from .._core import wire

            self._by_codec = _reader(self._path, wire.Ping(), wire.Pong)
        pong = self._by_codec(data)
        return None if pong is None else Pong(pong.pid, pong.lag_s)


def _reader(path: str, question: wire.ToServer, kind: type[A]) -> Callable[[bytes], A | None]:
    """Return what takes the bytes that come in answer, and returns the answer once it is whole."""
    from .._core import wire

    decoder = wire.client_decoder()

    def read(data: bytes) -> A | None:
        for answer in decoder.feed(data):
            if isinstance(answer, kind):
                return answer
            if isinstance(answer, wire.Refused):
                raise Refused(path, answer.reason)
            raise ProtocolError(f"{type(answer).__name__} in answer to {type(question).__name__}")
        return None

    return read


def _ask_by_codec(
    path: str, question: wire.ToServer, kind: type[A], within: float | None = None, *, trusted: bool = False
) -> A:
    from .._core import wire

    read = _reader(path, question, kind)
    return _ask(path, wire.encode(question), read, within=within, trusted=trusted)


def _wait_for_start(path: str) -> None:
    """Wait until a server serves that ``aiotimer run`` is only starting; or do not wait."""
    if STARTING_VARIABLE not in os.environ:
        return
    from .launch import until_it_serves
    from .waiting import run

    try:
        run(until_it_serves(path), 0.0)
    except TimeoutError:
        pass  # there may be an answer all the same


def nobody_at(path: str, error: OSError) -> ServerUnavailable:
    """Return the error that nobody listens at a socket, or not for us, with the advice that helps there."""
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        advice = (
            f"it is not for uid {os.geteuid()}: a process that changes its uid calls configure() after that, "
            "or enters a block before"
        )
    elif is_private(path):
        advice = "a private server's place: the programs that share it start it again"
    elif STARTING_VARIABLE in os.environ and os.environ.get(SOCKET_VARIABLE) == path:
        advice = "`aiotimer run`, under which this program was started, starts it again if it still runs"
    else:
        advice = f"start one with `aiotimer serve --socket {path}`"
    return ServerUnavailable(path, reason, advice)


def _ask(
    path: str,
    question: bytes,
    read: Callable[[bytes], B | None],
    *,
    trusted: bool = False,
    within: float | None = None,
) -> B:
    within = ANSWER_WITHIN if within is None else within
    _wait_for_start(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(within)
        try:
            sock.connect(path)
            if trusted:
                from .._linux.process import check_trusted

                check_trusted(sock, path)
            try:
                sock.sendall(question)
            except BrokenPipeError:
                pass  # it has said why, and closed the connection
            while data := sock.recv(65_536):
                answer = read(data)
                if answer is not None:
                    return answer
        except AiotimerError:
            raise
        except TimeoutError:
            raise ServerUnavailable(path, f"no answer within {within:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise nobody_at(path, error) from None
        except OSError as error:
            raise ServerUnavailable(path, error.strerror or str(error)) from None
    raise ServerUnavailable(path, "it closed the connection without an answer")
