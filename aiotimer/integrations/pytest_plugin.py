"""A plugin of pytest: a limit for each test, kept by another process, which kills a test that hangs.

The laws of this file:

* Without ``--aiotimer`` it is an option and a marker: it imports nothing else of the package, and no test
  passes through it.
* One countdown is about one test: from before its set-up until after its teardown, in the process that runs
  it, which may be a child that was forked for it. What tests share, a fixture of a wider scope, has the
  limit for itself: the countdown starts anew before it and after it.
* The server is there before the first test, and was started while pytest captured nothing: what it says of a
  reaped process reaches the terminal.
* Nothing is read unless a worker of pytest-xdist has crashed.
* A test is not spoiled: whatever it configures, closes or exports, the plugin has a client of its own.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Collection, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..client.block import Block
    from ..client.clients import TimerClient
    from ..evidence.record import Record

_HELP = (
    "Kill the process that runs a test if that takes longer, from outside: 60, 90s, 5m; "
    "0: only tests with a marker of their own have a limit."
)
_MARKER = (
    "aiotimer(after): the limit of this test, in seconds or as a duration such as '5m', instead of that of "
    "--aiotimer, without which nothing is limited; 0 or None: none."
)

_DEBUGGERS = frozenset({"_pydevd_bundle", "bdb", "debugpy", "pdb", "pydevd"})
"""Packages whose trace functions are those of debuggers; others trace too, such as those of coverage."""

_OUTCOMES = frozenset({"pending", "reaped", "unkillable"})
"""Of the expiries that a worker dies of."""

_KNOWN_WITHIN = 1.0
"""Seconds in which an expiry has been recorded: that begins before evidence of it is gathered."""

_ENDED_WITHIN = 10.0
"""Seconds in which it is recorded what has become of it."""

_LOOKED_THROUGH = 20
"""How many of the newest expiries may be about a test whose worker has just crashed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, on the command line and in the configuration file."""
    group = parser.getgroup("aiotimer", "a limit for each test, kept by another process")
    group.addoption("--aiotimer", metavar="DURATION", help=_HELP)
    parser.addini("aiotimer", f"As --aiotimer. {_HELP}")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to limit tests, if that is asked for."""
    config.addinivalue_line("markers", _MARKER)
    given, where = config.getoption("aiotimer"), "--aiotimer"
    if given is None:
        given, where = config.getini("aiotimer") or None, "aiotimer in the configuration file"
    if given is not None:
        try:
            limit = _seconds(given)
        except ValueError as error:
            raise pytest.UsageError(f"{where}: {error}") from None
        config.pluginmanager.register(Limits(limit), "aiotimer-limits")


class Limits:
    """The limits of the tests of one session.

    Args:
        limit: seconds, of tests that have none of their own; 0.0: none.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._client: TimerClient | None = None
        self._block: Block | None = None
        self._item: pytest.Item | None = None  # the test that is being carried out
        self._private_socket = ""  # of the server that was started for this session, if one was
        self._began = 0.0
        self._told: set[str] = set()  # ids of records, shown in failures

    # -- the session -----------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Find the server, or start one; the workers of pytest-xdist, started next, find it too."""
        if session.config.option.collectonly:
            return
        import time

        from ..errors import AiotimerError

        self._began = time.time()  # noqa: TID251 - records have wall times
        try:
            self._client = self._connected()
        except AiotimerError as error:
            raise pytest.UsageError(f"--aiotimer: no test can be watched: {error}") from error

    def _connected(self) -> TimerClient:
        from .._linux.paths import SOCKET_VARIABLE
        from ..client.clients import TimerClient, default

        path = os.environ.get(SOCKET_VARIABLE) if default.client is None else default.client.path
        if not path:
            from ..client.launch import found, private_socket

            path = private_socket(shared=False)  # siblings have terminals of their own
            found(path)
            os.environ[SOCKET_VARIABLE] = self._private_socket = path
        client = TimerClient(path)
        client.connect()
        return client

    def pytest_report_header(self) -> str:
        """Say that tests have a limit, and which one."""
        return f"aiotimer: {self._limit:g} s for each test" if self._limit else "aiotimer: marked tests only"

    def pytest_unconfigure(self) -> None:
        """Undo what was done for the session."""
        self._leave()
        client, self._client = self._client, None
        if client is not None:
            client.close()
        path, self._private_socket = self._private_socket, ""
        if path:
            from .._linux.paths import SOCKET_VARIABLE
            from ..client.control import give_up_private_server

            if os.environ.get(SOCKET_VARIABLE) == path:
                del os.environ[SOCKET_VARIABLE]
            give_up_private_server(path)

    # -- a test ----------------------------------------------------------------------------------

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None]:
        """Leave what was not left because the session was interrupted."""
        yield
        self._leave()

    @pytest.hookimpl(tryfirst=True)  # no wrapper: if it fails, others have begun, which end in the teardown
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin, in the process that runs the test."""
        self._enter(item)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Let the server ask the event loop of an asynchronous test what its tasks wait for."""
        function = getattr(item, "obj", None)
        if self._block is None or not inspect.iscoroutinefunction(function):
            yield
            return
        item.obj = self._inspected(function)  # type: ignore[attr-defined]
        yield
        item.obj = function  # type: ignore[attr-defined]

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
        """End; the last test of a module or class ends what they share, too."""
        if nextitem is None or item.parent not in nextitem.listchain():
            self._start_anew()
        yield
        self._leave()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None]:
        """Give what tests share a limit of its own."""
        if fixturedef.scope == "function":
            yield
            return
        self._start_anew()
        yield
        self._start_anew()

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """What tests share has ended."""
        if fixturedef.scope != "function":
            self._start_anew()

    def pytest_enter_pdb(self) -> None:
        """Nobody is killed who looks at a test."""
        item = self._item
        self._leave()
        self._item = item

    def pytest_leave_pdb(self) -> None:
        """Begin again."""
        if self._item is not None:
            self._enter(self._item)

    def _enter(self, item: pytest.Item) -> None:
        self._leave()
        after = self._limit_of(item)
        self._item = item
        if after and self._client is not None and not _is_debugged():
            from ..client.expires import expires

            block = expires(after, scope_of(item.nodeid), self._client)
            block.__enter__()
            self._block = block

    def _leave(self) -> None:
        self._item = None
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None, None, None)

    def _start_anew(self) -> None:
        if self._block is not None:
            self._block.renew()

    def _limit_of(self, item: pytest.Item) -> float:
        marker = item.get_closest_marker("aiotimer")
        if marker is None:
            return self._limit
        given = [*marker.args, *marker.kwargs.values()]
        try:
            if len(given) != 1 or not marker.kwargs.keys() <= {"after"}:
                raise ValueError("it takes one argument, after")
            return 0.0 if given[0] is None else _seconds(given[0])
        except ValueError as error:
            reason = str(error)
        pytest.fail(f"@pytest.mark.aiotimer of {item.nodeid}: {reason}", pytrace=False)

    def _inspected(self, function: Any) -> Any:
        """Return a coroutine function that first opens the inspection channel of its event loop."""
        import functools

        @functools.wraps(function)
        async def inspected(*args: Any, **kwargs: Any) -> Any:
            if self._block is not None:
                self._block._open_inspection_channel()
            return await function(*args, **kwargs)

        return inspected

    # -- a test whose worker has crashed ---------------------------------------------------------

    @pytest.hookimpl(tryfirst=True, optionalhook=True)  # of pytest-xdist
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Say in the failure of a test why its worker was reaped, if it was."""
        if self._client is None:
            return
        record = _expiry_of(scope_of(crashitem), self._client.path, self._began, self._told)
        if record is None:
            return
        self._told.add(record.id)
        from io import StringIO

        from ..cli.page import print_page
        from ..events import printable

        page = StringIO()
        print_page(record, page)
        report.longrepr = f"{report.longrepr}\nreaped by aiotimer: {printable(record.verdict)}"
        report.sections.append(("aiotimer why", page.getvalue()))


def scope_of(nodeid: str) -> str:
    """Return the name of a test's timer: its node id, shortened from the left if need be.

    What tells parametrisations apart stands at the end.
    """
    from .._core.layout import SCOPE_BYTES

    text = nodeid.encode(errors="backslashreplace").replace(b"\0", b"?") or b"?"
    if len(text) > SCOPE_BYTES:
        text = b"..." + text[3 - SCOPE_BYTES :].decode(errors="ignore").encode()
    return text.decode()


def _seconds(value: object) -> float:
    """Return a limit in seconds, 0.0 for none.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    from .._core.ladder import seconds

    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no duration: write 90, '90s', '5m' or '2h'")
    found = seconds(str(value))
    if not 0 <= found < 1e9:
        raise ValueError(f"{value!r} is no limit: it takes seconds, 0 or more and fewer than 1e9")
    return found


def _is_debugged() -> bool:
    """Whether a debugger has been attached to this thread, which stops it for a person."""
    function = sys.gettrace()
    module = getattr(function, "__module__", None) or type(function).__module__
    if function is not None and module.partition(".")[0] in _DEBUGGERS:
        return True
    monitoring = getattr(sys, "monitoring", None)  # CPython 3.12 and newer
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None


def _expiry_of(scope: str, socket_path: str, since: float, known: Collection[str]) -> Record | None:
    """Return the record of the expiry for which the worker that ran a test was reaped; None if it was not.

    pytest-xdist does not tell the pid. But whichever timer expired, that of the test was armed, too.

    Args:
        scope: the test's.
        socket_path: of the server.
        since: wall time; older records are about other sessions.
        known: the ids of records that are about earlier runs of the test.
    """
    from time import monotonic, sleep

    began = monotonic()
    while True:
        records = _records(scope, socket_path, since)
        record = next((one for one in records if one.id not in known and one.outcome in _OUTCOMES), None)
        if record is not None and record.outcome != "pending":
            return record
        if monotonic() > began + (_KNOWN_WITHIN if record is None else _ENDED_WITHIN):
            return record
        sleep(0.01)  # a thread of the server writes its history, and tells nobody


def _records(scope: str, socket_path: str, since: float) -> Iterator[Record]:
    """Yield the records of expiries at which the timer of a test was armed, the newest first."""
    from .._linux.paths import state_directories
    from ..cli.why import newest

    for record in newest(state_directories(socket_path), since=since, limit=_LOOKED_THROUGH):
        for name in (record.scope, *(str(timer.get("scope")) for timer in record.timers)):
            if name == scope or name.startswith(f"{scope}#"):  # entered twice: a test that runs pytest
                yield record
                break
