"""Questions to a running server: is it there, what does it watch. For the command line and ``configure``."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, TypeVar

from .._core import wire
from .._linux.process import check_trusted
from ..errors import AiotimerError, ProtocolError, Refused, ServerUnavailable

ANSWER_WITHIN = 2.0
"""Seconds for which an answer is waited for."""

DUMP_WITHIN = 30.0
"""Seconds for which evidence is waited for: a budget of 3 s is usual, and one of a server may be longer."""

A = TypeVar("A", bound=wire.ToClient)


def ping(path: str, *, trusted: bool = False) -> wire.Pong:
    """Return the server's answer to a ping; raises as :func:`status`.

    Args:
        path: where to ask.
        trusted: ask a server only that a client would tell its timers; Refused if it is another user's.
    """
    return _ask(path, wire.Ping(), wire.Pong, trusted=trusted)


def status(path: str, *, scopes: bool = False) -> dict[str, Any]:
    """Return what a server reports of itself and its workers; with ``scopes``, how long blocks took too.

    Raises:
        ServerUnavailable: nobody answers there.
        Refused: it does not want to: it is out of descriptors, say.
        ProtocolError: whoever does is no timer server of this protocol.
    """
    return _ask(path, wire.StatusRequest(scopes), wire.Status).report


def disown(path: str) -> None:
    """Tell a private watchdog that its founder does not need it any more; if it is gone, so be it."""
    with contextlib.suppress(AiotimerError):
        _ask(path, wire.Disown(), wire.Pong)


def dump(path: str, pid: int, within: float | None = None) -> dict[str, Any]:
    """Return the evidence of what a live worker is doing, as a record (see ``docs/reference/cli.md``).

    Args:
        path: the server's socket.
        pid: the worker.
        within: seconds to wait for it; by default, longer than any server's usual budget.

    Raises:
        Refused: it watches no such worker, or something failed there.
        ServerUnavailable, ProtocolError: as :func:`status`.
    """
    answer = _ask(path, wire.DumpRequest(pid), wire.Dump, within=DUMP_WITHIN if within is None else within)
    if answer.error:
        raise Refused(path, answer.error)
    return answer.report


def _ask(
    path: str,
    question: wire.ToServer,
    kind: type[A],
    *,
    trusted: bool = False,
    within: float | None = None,
) -> A:
    within = ANSWER_WITHIN if within is None else within
    decoder = wire.client_decoder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(within)
        try:
            connection.connect(path)
            if trusted:
                check_trusted(connection, path)
            with contextlib.suppress(BrokenPipeError):  # it has said why, and closed the connection
                connection.sendall(wire.encode(question))
            while data := connection.recv(65_536):
                for answer in decoder.feed(data):
                    if isinstance(answer, kind):
                        return answer
                    if isinstance(answer, wire.Refused):
                        raise Refused(path, answer.reason)
                    raise ProtocolError(f"{type(answer).__name__} in answer to {type(question).__name__}")
        except AiotimerError:
            raise
        except TimeoutError:
            raise ServerUnavailable(path, f"no answer within {within:g} s") from None
        except OSError as error:
            raise ServerUnavailable(path, error.strerror or str(error)) from None
    raise ServerUnavailable(path, "it closed the connection without an answer")
