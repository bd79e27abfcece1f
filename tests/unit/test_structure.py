"""The shape of the package, kept by a test.

What people agree on in a review and forget in the next: which module may import which, how long a
module may grow, what is public, what `import aiotimer` costs. A failure here names the rule, and
where to change it if the rule is what should change.
"""

import ast
import copy
import fnmatch
import importlib.metadata
import inspect
import io
import json
import pickle
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiotimer
from aiotimer import errors
from aiotimer._version import __version__

PACKAGE = Path(aiotimer.__file__).parent
TESTS = Path(__file__).parent.parent

# --- the rules

# Lowest first. A module may import modules of lower rows, never of its own row or a higher one.
# `x.*` is the package x with everything in it; its modules may import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "_linux.environment"),
    ("_core.requests", "_core.layout"),
    ("_core.wire", "_core.durations", "_core.ladder"),
    ("_core.table", "_core.reader"),
    ("_core.watch",),
    ("_core", "_linux", "client", "server"),
    ("_linux.procfs",),
    ("_linux.process", "server.capabilities", "_linux.paths"),
    ("_linux.table_files", "server.listener", "_linux.signals", "server.process_state"),
    ("queue", "events", "server.policy"),
    ("evidence.*",),
    (
        "client.waiting",
        "client.reconnect",
        "client.memory",
        "client.soft_limit",
        "client.decorator",
        "client.exit_state",
        "server.watched_table",
        "client.control",
        "server.sinks",
        "client.launch",
    ),
    ("evidence.*",),
    ("server.history",),
    ("server.cleanup",),
    ("client.handshake", "client.dump_signal", "client.tasks", "server.expiry", "server.inspection_channel"),
    ("client.inspection",),
    ("client.connection", "server.worker"),
    ("server.dump", "server.inspector", "server.reporter"),
    ("server.ladder_run", "server.observer", "server.hold"),
    ("client.socket_only", "server.registry", "server.reaper", "server.status", "server.acceptor"),
    ("client.connections", "server.handlers", "server.connection"),
    ("client.clients",),
    ("client.arguments",),
    ("client.block",),
    ("client.grace",),
    ("client.expires",),
    ("server.server",),
    ("server.owned",),
    ("client.configure",),
    ("aiotimer",),  # __init__: the public names
    ("testing", "integrations.*"),
    ("cli.*",),
    ("__main__",),
)

# What _core may import of the package besides itself.
CORE_MAY_ALSO_IMPORT = frozenset({"errors"})

# Nothing in _core does I/O, reads a clock, starts a thread or logs.
CORE_MUST_NOT_IMPORT = frozenset(
    {"asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "mmap", "multiprocessing"}
    | {"os", "pathlib", "select", "selectors", "shutil", "signal", "socket", "socketserver"}
    | {"ssl", "subprocess", "tempfile", "threading", "time"}
)
CORE_MUST_NOT_CALL = frozenset({"input", "open", "print", "start_new_thread"})

# Third-party packages, and the only modules that may import them, even inside a function.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "click": ("cli.*",),
    "msgspec": ("_core.wire",),
    "rich": ("cli.*",),
    "uvloop": ("server.server", "testing", "cli.*"),
}

# What `import aiotimer` must not load: a synchronous worker pays for none of it.
NOT_AT_IMPORT = frozenset({"asyncio", "click", "logging", "msgspec", "rich", "sqlite3", "uvloop"})

# What a synchronous worker never loads, whatever it configures: it has no event loop, and the server is
# another process.
NOT_IN_A_SYNCHRONOUS_WORKER = frozenset({"asyncio", "click", "rich", "sqlite3", "uvloop"})
NOT_IN_A_WORKER = (
    *(
        "server.server",
        "server.owned",
        "cli.*",
        "evidence.*",
        "server.history",
        "server.cleanup",
        "__main__",
    ),
    *(
        "server.acceptor",
        "server.inspection_channel",
        "server.ladder_run",
        "server.connection",
        "server.dump",
        "server.inspector",
        "server.handlers",
        "server.hold",
    ),
    *(
        "server.observer",
        "server.policy",
        "server.reaper",
        "server.expiry",
        "server.status",
        "server.capabilities",
        "server.registry",
        "server.sinks",
    ),
    *(
        "_linux.signals",
        "server.reporter",
        "server.process_state",
        "server.watched_table",
        "server.worker",
        "_core.watch",
    ),
)

MAX_CODE_LINES = 300

# The public names, exactly. Adding one is a promise; removing one is a major version.
PUBLIC: frozenset[str] = frozenset(
    {
        "AiotimerError",
        "AsyncTimerClient",
        "Block",
        "NotConfigured",
        "Refused",
        "RequestQueue",
        "ServerUnavailable",
        "TableFull",
        "TimerClient",
        "TimerRequest",
        "TimerServer",
        "WorkerId",
        "__version__",
        "configure",
        "expires",
    }
)

# What nobody in the package uses, because it is for users.
FOR_USERS = frozenset(
    {
        *("TimerServer.clear_timers", "TimerServer.get_expired_timers", "TimerServer.register_timers"),
        *("VirtualTimers.advance", "VirtualTimers.async_client", "VirtualTimers.monotonic", "virtual"),
    }
)

# Arguments for making one of each exception: by parameter name, else by annotation as written.
SAMPLES: dict[str, Any] = {
    "bool": True,
    "float": 1.5,
    "int": 7,
    "str": "sample",
    "Path": Path("/sample"),
}

# What a unit test does not need, because nothing it tests has a clock, a socket or a thread.
UNIT_TESTS_MUST_NOT_IMPORT = frozenset({"asyncio", "unittest", "time"})


# --- reading the source


def module_name(path: Path) -> str:
    """The name within the package: `_core.table`, `cli`, and `aiotimer` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "aiotimer"


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("name", MODULES)
core_modules = [name for name in MODULES if name.split(".")[0] == "_core"]


def matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name == pattern.removesuffix(".*")


def place(name: str) -> tuple[int, str]:
    """The row of a module and the entry of the table that put it there."""
    for row, entries in enumerate(LAYERS):
        for entry in entries:
            if matches(name, entry):
                return row, entry
    pytest.fail(
        f"aiotimer module {name!r} is in no layer: add it to LAYERS in {Path(__file__).name}, "
        "above everything it imports and below everything that imports it"
    )


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, function bodies included, but not what only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from runtime_nodes(other)
        else:
            yield node
            yield from runtime_nodes(node)


def imports(name: str) -> Iterator[tuple[int, str]]:
    """The line and absolute name of each module that `name` imports at run time."""
    path = MODULES[name]
    package = ("aiotimer", *path.relative_to(PACKAGE).parent.parts)
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join((*parts, node.module) if node.module else parts)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                is_module = submodule.removeprefix("aiotimer.") in MODULES
                yield node.lineno, submodule if is_module else base


def own_imports(name: str) -> Iterator[tuple[int, str]]:
    """Those of them that are modules of the package, by their name within it."""
    for line, target in imports(name):
        if target.split(".")[0] == "aiotimer":
            yield line, target.removeprefix("aiotimer.")


def code_lines(source: str) -> int:
    """Lines that hold code: not blank, not only a comment, not a docstring."""
    layout = {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str()), end_lineno=int(last)):
                lines.difference_update(range(node.lineno, last + 1))
    return len(lines)


# --- layers


@every_module
def test_imports_point_down(name: str) -> None:
    row, entry = place(name)
    upward = [
        f"{name}:{line} imports {target}"
        for line, target in own_imports(name)
        if place(target)[0] >= row and not ("*" in entry and place(target)[1] == entry)
    ]
    assert not upward, f"imports point down only (LAYERS, {Path(__file__).name}): {upward}"


@pytest.mark.parametrize("name", core_modules)
def test_core_imports_only_what_cannot_do_io(name: str) -> None:
    wrong = []
    for line, target in imports(name):
        top = target.split(".")[0]
        if top == "aiotimer":
            own = target.removeprefix("aiotimer.")
            allowed = own.split(".")[0] == "_core" or own in CORE_MAY_ALSO_IMPORT
        elif top in THIRD_PARTY:
            allowed = top == "msgspec" and name == "_core.wire"
        else:
            allowed = top in sys.stdlib_module_names and top not in CORE_MUST_NOT_IMPORT
        if not allowed:
            wrong.append(f"{name}:{line} imports {target}")
    assert not wrong


@pytest.mark.parametrize("name", core_modules)
def test_core_calls_nothing_that_does_io(name: str) -> None:
    calls = [
        f"{name}:{node.lineno} calls {called}"
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Call)
        and (called := ast.unparse(node.func).split(".")[-1]) in CORE_MUST_NOT_CALL
    ]
    assert not calls


@every_module
def test_third_party_packages_stay_where_they_belong(name: str) -> None:
    strays = [
        f"{name}:{line} imports {target}"
        for line, target in imports(name)
        if not any(matches(name, home) for home in THIRD_PARTY.get(target.split(".")[0], (name,)))
    ]
    assert not strays, f"see THIRD_PARTY in {Path(__file__).name}: {strays}"


def test_import_loads_nothing_a_worker_may_not_need() -> None:
    program = f"""if True:
        import json, sys
        sys.path.insert(0, {str(PACKAGE.parent)!r})
        before = set(sys.modules)
        import aiotimer
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "aiotimer" in loaded
    heavy = loaded & NOT_AT_IMPORT
    assert not heavy, f"import these where they are first needed: {sorted(heavy)}"


def not_for_a_synchronous_worker(loaded: Iterable[str]) -> list[str]:
    """Those of the loaded modules, by their full names, that a synchronous worker has no use for."""
    return sorted(
        name
        for name in loaded
        if name.split(".")[0] in NOT_IN_A_SYNCHRONOUS_WORKER
        or any(matches(name.removeprefix("aiotimer."), pattern) for pattern in NOT_IN_A_WORKER)
    )


def test_what_no_worker_loads_is_there_to_be_loaded() -> None:
    """See tests/integration/test_configure.py, which shows that workers do not load it."""
    assert not [pattern for pattern in NOT_IN_A_WORKER if not any(matches(m, pattern) for m in MODULES)]


# --- size and prose


@every_module
def test_modules_stay_small(name: str) -> None:
    lines = code_lines(MODULES[name].read_text())
    assert lines <= MAX_CODE_LINES, f"{name} has {lines} lines of code: split it by what it owns"


@every_module
def test_modules_say_what_they_are(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text())), f"{name} has no docstring"


# --- dead names


def definitions(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """The functions of a module, and what its classes have; and whether it is one of the latter."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and not any("command" in ast.unparse(d) for d in node.decorator_list):
            yield node.name, False
        elif isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, FUNCTIONS) and inner in node.body:
                    yield f"{node.name}.{inner.name}", True
                elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                    yield f"{node.name}.{inner.attr}", True


def test_every_name_is_of_use_to_the_package_or_to_its_users() -> None:
    """A name that only tests use is no part of what they test."""
    trees = [ast.parse(path.read_text()) for path in MODULES.values()]
    attributes, names = set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            attributes.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            attributes.add(ast.unparse(node.args[1]).strip("'"))
    unused = {
        name
        for tree in trees
        for name, is_member in definitions(tree)
        if (last := name.split(".")[-1]) not in (attributes if is_member else names | attributes)
        and not last.startswith("__")
    }
    assert unused == FOR_USERS


# --- the public surface


def test_public_names_are_exactly_these() -> None:
    assert len(aiotimer.__all__) == len(set(aiotimer.__all__))
    assert set(aiotimer.__all__) == PUBLIC, f"PUBLIC in {Path(__file__).name} is the promise"


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_names_are_documented(name: str) -> None:
    public = getattr(aiotimer, name)
    text = vars(public).get("__doc__") if isinstance(public, type) else inspect.getdoc(public)
    assert text, f"aiotimer.{name} has no docstring of its own"
    assert not text.startswith(f"{name}("), f"aiotimer.{name} has only a generated docstring"


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("aiotimerd") == __version__


def test_types_ship() -> None:
    assert (PACKAGE / "py.typed").is_file()


# --- errors

EXCEPTIONS = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, BaseException) and item.__module__ == errors.__name__
]


def sample(exception: type[BaseException]) -> BaseException:
    """One instance, with a value for every parameter it has."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    try:
        parameters = inspect.signature(exception).parameters
    except ValueError:  # a builtin's __init__, which takes anything
        return exception("sample")
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.append("sample")
            continue
        annotation = inspect.formatannotation(parameter.annotation).replace("pathlib.", "")
        keys = (parameter.name, *annotation.strip("'\"").split(" | "))
        found = [SAMPLES[key] for key in keys if key in SAMPLES]
        if not found and parameter.default is not parameter.empty:
            continue
        assert found, (
            f"no sample for {exception.__name__}({parameter}): "
            f"add one to SAMPLES in {Path(__file__).name}, under {keys[0]!r}"
        )
        if parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = found[0]
        else:
            args.append(found[0])
    return exception(*args, **kwargs)


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_errors_have_one_root(exception: type[BaseException]) -> None:
    if issubclass(exception, Warning):  # a warning is not an error, and cannot be caught as one
        assert not issubclass(exception, errors.AiotimerError)
    else:
        assert issubclass(exception, errors.AiotimerError)


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_errors_survive_pickling_and_copying(exception: type[BaseException]) -> None:
    original = sample(exception)
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    twins = [pickle.loads(pickle.dumps(original, protocol)) for protocol in protocols]
    for twin in (*twins, copy.copy(original)):
        assert type(twin) is exception
        assert twin.args == original.args
        assert vars(twin) == vars(original)
        assert str(twin) == str(original)


# --- the tests themselves


def asserts(test: ast.AST) -> bool:
    """Whether there is an assertion, an expected exception, or a call of a helper named for it."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in {"raises", "warns", "fail"} or called.startswith(("assert_", "check_")):
                return True
    return False


def test_every_test_asserts_something() -> None:
    silent = [
        f"{path.relative_to(TESTS)}:{node.lineno} {node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not asserts(node)
    ]
    assert not silent, f"tests without an assertion: {silent}"


def test_unit_tests_need_no_loop_no_sleep_and_no_mocks() -> None:
    wrong = []
    for path in (TESTS / "unit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                if name.split(".")[0] in UNIT_TESTS_MUST_NOT_IMPORT:
                    wrong.append(f"{path.relative_to(TESTS)}: imports {name}")
    assert not wrong, f"see tests/integration for that: {wrong}"
