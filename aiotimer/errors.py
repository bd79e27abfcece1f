"""The errors that aiotimer raises on purpose, organised by who must act.

The laws of this file: one root, :class:`AiotimerError`; each error also derives from the builtin that
existing code already catches; each carries its facts as attributes and survives pickling, because
errors travel between the processes of a training job.

* :class:`NotConfigured`, :class:`TableFull`, :class:`ForeignProcess`: the caller must change the program.
* :class:`ServerUnavailable`, :class:`Refused`, :class:`ServerError` and its kinds,
  :class:`HistoryUnreadable`: the operator must act.
* :class:`ProtocolError`: the peer broke the rules; its connection is closed.

``expires`` raises the builtin ``ValueError`` or ``TypeError`` for a bad argument, and the builtin
``TimeoutError`` when its ``grace`` ran out of patience: code that handles ``asyncio.timeout`` stays as it is.
"""

from __future__ import annotations


class AiotimerError(Exception):
    """The root of all errors of this package."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default would pass str(self) to __init__; the facts live in the instance.
        return (_rebuild, (type(self), self.__dict__.copy(), self.args))


def _rebuild(kind: type[AiotimerError], facts: dict[str, object], args: tuple[object, ...]) -> AiotimerError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class _AboutPath(AiotimerError):
    """What has to do with a path, and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


class NotConfigured(AiotimerError, RuntimeError):
    """``expires()`` was used, but no server is known to this process."""

    def __str__(self) -> str:
        return (
            "no timer server is configured: call aiotimer.configure() once at start "
            "(it uses $AIOTIMER_SOCKET or starts a private server), run the program under "
            "`aiotimer run -- ...`, or pass client=... to expires()"
        )


class ServerUnavailable(_AboutPath, ConnectionError):
    """No server answered on the socket within the time allowed.

    Attributes:
        path: the socket that was tried.
        reason: what happened there.
        advice: what to do about it, "" if nothing is known to help.
    """

    def __init__(self, path: str, reason: str, advice: str = "") -> None:
        super().__init__(path, reason)
        self.advice = advice

    def __str__(self) -> str:
        advice = f" ({self.advice})" if self.advice else ""
        return f"no timer server at {self.path!r}: {self.reason}{advice}"


class Refused(_AboutPath, ConnectionError):
    """A server answered and does not want this client.

    Attributes:
        path: the socket of the server.
        reason: the server's own words.
    """

    def __str__(self) -> str:
        return f"the timer server at {self.path!r} refused this client: {self.reason}"


class TableFull(AiotimerError, RuntimeError):
    """No timer can be added: every slot is armed, or the memory for more cannot be had.

    That every slot is armed is the program's doing, and raised whatever the client's ``unavailable`` says. A
    want of memory is not, and is a matter of that policy.

    Attributes:
        armed: the number of timers that are armed (all of them stay so).
        reason: why there is no room for one more.
        no_memory: there are slots left, and no memory for them.
    """

    def __init__(self, armed: int, reason: str, *, no_memory: bool = False) -> None:
        super().__init__(armed, reason)
        self.armed = armed
        self.reason = reason
        self.no_memory = no_memory

    def __str__(self) -> str:
        return f"no room for another timer ({self.armed} armed): {self.reason}"


class ForeignProcess(AiotimerError, PermissionError):
    """A server was to arm a timer on a process of another user: it serves its own user only, root's too.

    Attributes:
        pid: the process.
        uid: the user it belongs to, or one of them: it has a real, an effective and a saved user id.
        server_uid: whom the server serves.
    """

    def __init__(self, pid: int, uid: int, server_uid: int) -> None:
        super().__init__(f"process {pid} belongs to uid {uid}")
        self.pid = pid
        self.uid = uid
        self.server_uid = server_uid

    def __str__(self) -> str:
        return (
            f"process {self.pid} belongs to uid {self.uid}, and this server serves uid {self.server_uid} "
            f"only (run a server as uid {self.uid} for it, or start the process as uid {self.server_uid})"
        )


class ProtocolError(AiotimerError, ConnectionError):
    """The peer sent bytes that the protocol does not allow."""


class ServerError(AiotimerError, RuntimeError):
    """A server cannot start or go on. ``exit_code`` follows sysexits(3).

    Attributes:
        exit_code: what ``aiotimer serve`` exits with.
    """

    exit_code = 70  # EX_SOFTWARE


class AlreadyServing(ServerError):
    """Another live server owns the socket."""

    exit_code = 69  # EX_UNAVAILABLE


class UnsafePath(ServerError):
    """A socket path or state directory that cannot be trusted or used."""

    exit_code = 77  # EX_NOPERM


class NewerLayout(ServerError):
    """The state directory holds tables of a newer aiotimer; this one must not touch them."""

    exit_code = 78  # EX_CONFIG


class HistoryUnreadable(_AboutPath, RuntimeError):
    """A history is there and cannot be read.

    Attributes:
        path: of its database.
        reason: why not.
    """

    def __str__(self) -> str:
        return f"cannot read the history in {self.path!r}: {self.reason}"
