"""What every test gets.

Every async test and async fixture runs twice, on asyncio's own loop and on uvloop's: the ids end in
`[asyncio]` and `[uvloop]`. No marker is needed. A test that is about one of them says so with
`@pytest.mark.asyncio(loop_factories=["uvloop"])`, and then has no suffix.

Hypothesis sets no deadline on an example: a slow machine is not a failure, and wall-clock durations
are asserted in benchmarks only.

No client outlives its test: what it left open is closed, or a thread would go on looking for its server.

What a shell in the background or `nohup` ignores, every process that a test starts would ignore too.

What is printed does not depend on the terminal that the suite was started in, or on how wide it is.
"""

import asyncio
import contextlib
import gc
import hashlib
import importlib
import signal
from collections.abc import Callable, Iterator, Mapping

import hypothesis
import pytest
import uvloop

from aiotimer._linux.process import send_signal
from aiotimer.client.connection import _connections, _every_connection

hypothesis.settings.register_profile("aiotimer", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "soak", parent=hypothesis.settings.get_profile("aiotimer"), max_examples=20_000
)
hypothesis.settings.load_profile("aiotimer")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio that parametrises every async test by its event loop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_configure() -> None:
    """Signals do what they do in a terminal, however the suite was started."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """The collector of cycles rests until all tests are collected, and the modules are shared out."""
    gc.disable()
    _import_share(session)


def _import_share(session: pytest.Session) -> None:
    """Of several processes each imports its share of the test modules first, and then collects all of them.

    pytest rewrites the assertions of a module and keeps the result, and in a new clone that takes most of the
    time until the first test. Processes that begin at once, all with the first module, would all do it.
    """
    worker = getattr(session.config, "workerinput", None)  # xdist's, in each of its processes
    if worker is None:
        return
    root, here = session.config.rootpath, session.config.invocation_params.dir
    given = [here / argument for argument in session.config.args]
    modules = {path for folder in given if folder.is_relative_to(root) for path in folder.rglob("test_*.py")}
    by_size = sorted(modules, key=lambda path: (path.stat().st_size, path))
    for path in by_size[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        with contextlib.suppress(Exception, pytest.skip.Exception):  # collecting it tells
            importlib.import_module(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes find modules that wait and modules that compute in any order.

    xdist gives each of them a run of neighbours, and neighbours are of one kind: in the order of their names
    all the processes would wait at one time, and compete at another.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: hashlib.sha256(item.path.name.encode()).digest())


def pytest_collection_finish() -> None:
    """What collecting the tests has made lives until the end: the collector of cycles leaves it alone.

    Once, for what is frozen is never given back; a test that interrupts undoes it (``collector_rests``).
    From then on it comes for ten times as much, and less often for all.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


_OF_A_TERMINAL = (
    "COLORTERM",
    "COLUMNS",
    "FORCE_COLOR",
    "LINES",
    "NO_COLOR",
    "PYTHON_COLORS",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)
"""What rich, click and the interpreter itself ask the environment about the terminal."""


@pytest.fixture(scope="session", autouse=True)
def _terminal() -> Iterator[None]:
    """Tests and the processes that they start find the same terminal. pytest itself has the caller's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        for name in _OF_A_TERMINAL:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_client_outlives_its_test() -> Iterator[None]:
    yield
    for connection in list(_every_connection):
        connection.users = 0  # without a word: whatever is armed stays armed
        connection.hooks.clear()
        connection.let_go()
    _connections.clear()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that servers here have sent so far."""
    sent: list[int] = []

    def sends(pidfd: int, signum: int) -> None:
        sent.append(signum)
        send_signal(pidfd, signum)

    monkeypatch.setattr("aiotimer._linux.signals.send_signal", sends)
    return sent
