"""The shape of the package, kept by a test.

What people agree on in a review and forget in the next: which room may import from which, how long a
function may grow, what is public, what `import aiotimer` costs. A failure here names the rule, and
where to change it if the rule is what should change.
"""

import ast
import copy
import fnmatch
import functools
import gc
import graphlib
import importlib.metadata
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import aiotimer
from aiotimer import errors
from aiotimer._version import __version__
from aiotimer.cli.group import MODULES as MODULES_OF_COMMANDS

PACKAGE = Path(aiotimer.__file__).parent
TESTS = Path(__file__).parent.parent

# --- the rules

# The floors of the house, lowest first: a room is a package, or a module at the top. A module may import from
# its own room and from lower floors, never from another room on its own floor or from a higher one.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors"),
    ("_core",),
    ("_linux", "events", "queue"),
    ("client", "evidence"),
    ("server",),
    ("cli", "testing", "aiotimer"),  # aiotimer: __init__, the public names
    ("__main__", "integrations"),
)
MOST_FLOORS = 8

# The worker's process and the server's do not know each other.
STRANGERS = frozenset({("server", "client"), ("client", "server")})

# Faces: modules at the top of the package.
MOST_FACES = 8

# Nothing in _core does I/O, reads a clock, starts a thread or logs.
CORE_MUST_NOT_IMPORT = frozenset(
    {"asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "mmap", "multiprocessing"}
    | {"os", "pathlib", "select", "selectors", "shutil", "signal", "socket", "socketserver"}
    | {"ssl", "subprocess", "tempfile", "threading", "time"}
)
CORE_MUST_NOT_CALL = frozenset({"input", "open", "print", "start_new_thread"})

# Third-party packages, and what is private in the standard library, with the only modules that may import it,
# even inside a function.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "_remote_debugging": ("evidence.unwind",),
    "click": ("cli.*",),
    "msgspec": ("_core.wire",),
    "pytest": ("integrations.pytest_plugin",),
    "rich": ("cli.*",),
    "torch": ("integrations.torch_elastic",),
    "uvloop": ("server.server", "testing", "cli.*"),
}

# What `import aiotimer` must not load: a synchronous worker pays for none of it.
NOT_AT_IMPORT = frozenset({"asyncio", "click", "logging", "msgspec", "rich", "sqlite3", "uvloop"})

# What a synchronous worker never loads, whatever it configures: it has no event loop, and the server is
# another process.
NOT_IN_A_SYNCHRONOUS_WORKER = frozenset({"asyncio", "click", "rich", "sqlite3", "uvloop"})
NOT_IN_A_WORKER = ("server.*", "evidence.*", "cli.*", "_core.watch", "_linux.signals", "__main__")

# One screen: a function that does not fit does two things. Its docstring does not count.
MOST_LINES_OF_A_FUNCTION = 50

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

HOOKS_OF_PYTEST = (
    *("enter_pdb", "fixture_post_finalizer", "fixture_setup", "handlecrashitem", "leave_pdb"),
    *("report_header", "runtest_call", "runtest_protocol", "runtest_setup", "runtest_teardown"),
    *("sessionstart", "unconfigure"),
)

# What nobody in the package uses, because it is for users.
FOR_USERS = frozenset(
    {
        "Commands.list_commands",  # click calls it
        "Duration.convert",  # click calls it
        "_Console.on_broken_pipe",  # rich calls it
        *("pytest_addoption", "pytest_configure"),  # pytest calls them, and the next ones
        *(f"Limits.pytest_{hook}" for hook in HOOKS_OF_PYTEST),
        *("TorchTimerServer._run_watchdog", "TorchTimerServer._stop_signaled"),  # torch's loop
        *("VirtualTimers.advance", "VirtualTimers.async_client", "virtual"),
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


def room_of(name: str) -> str:
    """The package of a module, or the module itself if it stands at the top."""
    return name.partition(".")[0]


def floor_of(name: str) -> int:
    """The number of the floor on which a module's room is."""
    for number, rooms in enumerate(FLOORS):
        if room_of(name) in rooms:
            return number
    pytest.fail(
        f"aiotimer module {name!r} is in no room: docs/explanation/architecture.md says which there are; "
        f"a new room goes into FLOORS in {Path(__file__).name}, above everything that it imports"
    )


def parsed(path: Path) -> ast.Module:
    """The tree of a file. Its nodes would have the collector of cycles look through it while it grows.

    That takes four times as long as to parse it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        if was_enabled:
            gc.enable()


def statements(tree: ast.AST, *, types: bool = True) -> Iterator[ast.AST]:
    """Every statement below a node, in function bodies too: a tenth of all nodes.

    Args:
        tree: a module, a statement, or what has statements in it, such as a handler.
        types: what only a type checker sees, too.
    """
    skipped = not types and isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING")
    for field in ("orelse",) if skipped else ("body", "handlers", "orelse", "finalbody", "cases"):
        for node in getattr(tree, field, ()):
            yield node
            yield from statements(node, types=types)


class Facts(NamedTuple):
    """What the rules are about, of one file."""

    imported: tuple[tuple[int, str], ...]
    imported_for_types: tuple[tuple[int, str], ...]  # and at run time
    functions: tuple[tuple[int, str, int], ...]  # line, name, and lines without the docstring
    docstring: str | None
    prose: tuple[tuple[int, str], ...]


@functools.cache
def facts(path: Path) -> Facts:
    """What there is to know of a file: it is parsed once, for all rules."""
    tree = parsed(path)
    every = tuple(statements(tree))
    return Facts(
        tuple(imports_in(statements(tree, types=False), path)),
        tuple(imports_in(every, path)),
        tuple((node.lineno, node.name, lines_of(node)) for node in every if isinstance(node, FUNCTIONS)),
        ast.get_docstring(tree),
        tuple(prose(path.read_text(), every)),
    )


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has, without its docstring."""
    said = function.body[0] if ast.get_docstring(function) else None
    assert function.end_lineno is not None
    prose = said.end_lineno - said.lineno + 1 if said and said.end_lineno else 0
    return function.end_lineno - function.lineno + 1 - prose


def imports(name: str, *, types: bool = False) -> tuple[tuple[int, str], ...]:
    """The line and absolute name of each module that `name` imports at run time.

    Args:
        name: which module.
        types: what only a type checker sees, too.
    """
    return facts(MODULES[name]).imported_for_types if types else facts(MODULES[name]).imported


def imports_in(nodes: Iterable[ast.AST], path: Path) -> Iterator[tuple[int, str]]:
    """The line and absolute name of each module that statements of a file import."""
    package = path.relative_to(PACKAGE.parent).parent.parts if path.is_relative_to(PACKAGE) else ("tests",)
    for node in nodes:
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
    """The modules of the package that `name` imports, types included, by their name within it."""
    for line, target in imports(name, types=True):
        if target.split(".")[0] == "aiotimer":
            yield line, target.removeprefix("aiotimer.")


# --- rooms


@every_module
def test_imports_point_down(name: str) -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for line, target in own_imports(name)
        if (room_of(name), room_of(target)) in STRANGERS
        or (room_of(target) != room_of(name) and floor_of(target) >= floor_of(name))
    ]
    assert not wrong, (
        f"down only (FLOORS, {Path(__file__).name}); what strangers need lies below both: {wrong}"
    )


def test_one_module_reads_what_the_kernel_says_of_a_process() -> None:
    readers = {name for name, path in MODULES.items() if 'f"/proc/{' in path.read_text()}
    assert readers == {"_linux.procfs"}, "what is to be known of a process is a function there"


def test_no_imports_go_in_a_circle() -> None:
    """Types included: who needs a type of whoever imports it needs a protocol of its own, or another room."""
    graph = {name: {target for _line, target in own_imports(name)} - {name} for name in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # else: CycleError, which names the circle
    assert graph["__main__"], "no imports were found: the test is blind"


def test_the_house_is_low() -> None:
    rooms = {room_of(name) for name in MODULES}
    above = {
        room: {
            room_of(target)
            for name in MODULES
            if room_of(name) == room
            for _line, target in own_imports(name)
        }
        - {room}
        for room in rooms
    }
    height: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(above).static_order():
        height[room] = 1 + max((height[below] for below in above[room]), default=0)
    assert max(height.values()) <= MOST_FLOORS, height


def test_the_faces_are_few() -> None:
    faces = [name for name in MODULES if "." not in name and MODULES[name].parent == PACKAGE]
    assert "errors" in faces
    assert len(faces) <= MOST_FACES, f"a module at the top is a public face: {faces}"


@pytest.mark.parametrize("name", core_modules)
def test_core_does_no_io(name: str) -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for line, target in imports(name)
        if target.split(".")[0] in CORE_MUST_NOT_IMPORT
    ]
    wrong += [
        f"{name}:{node.lineno} calls {called}"
        for node in ast.walk(parsed(MODULES[name]))
        if isinstance(node, ast.Call)
        and (called := ast.unparse(node.func).split(".")[-1]) in CORE_MUST_NOT_CALL
    ]
    assert not wrong


@every_module
def test_third_party_packages_stay_where_they_belong(name: str) -> None:
    strays = [
        f"{name}:{line} imports {target}"
        for line, target in imports(name)
        if (top := target.split(".")[0]) not in {"aiotimer", *sys.stdlib_module_names}
        and not any(matches(name, home) for home in THIRD_PARTY.get(top, ()))
    ]
    assert not strays, f"see THIRD_PARTY in {Path(__file__).name}: {strays}"


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement imports in a new interpreter."""
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(PACKAGE.parent)!r})
        before = set(sys.modules)
        try:
            {statement}
        except SystemExit:
            pass
        loaded = sorted(set(sys.modules) - before)
        import json
        print(json.dumps(loaded))
    """
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_workers_names_load_nothing_that_it_may_not_need() -> None:
    loaded = loaded_by(f"from aiotimer import {', '.join(sorted(PUBLIC - {'RequestQueue', 'TimerServer'}))}")
    assert "aiotimer.client.expires" in loaded
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


def test_the_package_loads_what_its_names_need_when_they_are_used() -> None:
    loaded = loaded_by("import aiotimer")
    assert loaded - {"__future__"} == {"aiotimer", "aiotimer._version", "aiotimer.errors"}
    assert "aiotimer.server.server" in loaded_by("from aiotimer import TimerServer")


def test_the_package_lists_its_names_before_they_are_used() -> None:
    program = (
        "import aiotimer; print(set(aiotimer.__all__) <= set(dir(aiotimer)), 'expires' in vars(aiotimer))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    with pytest.raises(AttributeError, match="module 'aiotimer' has no attribute 'expire'"):
        aiotimer.expire  # noqa: B018


# What a command must not load: most of the time that it would take.
NOT_FOR_A_QUICK_COMMAND = NOT_AT_IMPORT | {"aiotimer.server.history", "json", "pathlib", "typing"}


@pytest.mark.parametrize("command", ["--version", "--help", "ping --socket /nowhere/s"])
def test_quick_commands_load_what_they_need_and_no_more(command: str) -> None:
    heavy = loaded_by(f"from aiotimer.cli import main; main({command.split()!r})") & NOT_FOR_A_QUICK_COMMAND
    assert not heavy, f"import these where they are first needed: {sorted(heavy)}"


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("serve --socket /proc/no/s", {"click", "rich"}),
        ("watchdog --socket /proc/no/s --owner 1:1 --ready-fd 1 --", NOT_AT_IMPORT),
    ],
)
def test_who_waits_for_a_server_does_not_wait_for_click(command: str, heavy: set[str]) -> None:
    assert not loaded_by(f"from aiotimer.cli import main; main({command.split()!r})") & heavy


@pytest.mark.parametrize(("name", "module"), MODULES_OF_COMMANDS.items())
def test_a_command_is_imported_alone(name: str, module: str) -> None:
    """Click imports a command with what it needs, and no other one."""
    loaded = loaded_by(f"from aiotimer.cli import main; main([{name!r}, '--help'])")
    commands = {f"aiotimer.cli.{other}" for other in MODULES_OF_COMMANDS.values()}
    assert loaded & commands == {f"aiotimer.cli.{module}"}


# --- size and prose


@every_module
def test_functions_fit_on_a_screen(name: str) -> None:
    long = [
        f"{name}:{line} {function}: {lines} lines"
        for line, function, lines in facts(MODULES[name]).functions
        if lines > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long, f"split them by what they do: {long}"


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
    trees = [parsed(path) for path in MODULES.values()]
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


# --- what the modules say of themselves

# A module is something that has a name in the field: "A reader of ...", "The registry of ...".
FIRST_SENTENCE = re.compile(
    r"((A|An|The) [a-z`_]|[A-Z][a-z]+( [a-z]+)?s(,|:| of| that) ).*?\.(?=\s|\Z)", re.DOTALL
)

COMMENT = re.compile(r"(?:^|\s)#.*")

# Code in prose: ``...``, as Sphinx has it, and not the target of a role.
LITERAL = re.compile(r"(?<!`)``([^`]+)``(?!`)")
TARGET = re.compile(r":\w+:`~?(?:[^`<]*<)?([\w.]+)>?`")

# Files of others that our prose names: users' programs, and what we have learnt from.
OF_OTHERS = frozenset({"app.py", "asyncio/timeouts.py", "psycopg/generators.py", "train.py"})

FILES = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")} | {
    f"tests/{path.relative_to(TESTS).as_posix()}" for path in TESTS.rglob("*.py")
}


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Every identifier of a module: what it defines, uses or imports."""
    names: set[str] = set()
    for node in nodes:
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                names.update(value.split("."))
    return names


def prose(text: str, nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """The line and text of each comment and docstring of a module."""
    for node in nodes:
        match node:
            case ast.Expr(ast.Constant(str(said))):  # a docstring, of an attribute too
                yield node.lineno, said
    for number, line in enumerate(text.splitlines(), 1):
        if comment := COMMENT.search(line):  # or a string that looks like one, which does no harm
            yield number, comment[0]


def stale(said: str, known: set[str]) -> list[str]:
    """The modules that a text names and that do not exist.

    Args:
        said: a comment or a docstring.
        known: identifiers of its module, which are no modules.
    """
    wrong: list[str] = []
    if "`" not in said:
        return wrong
    rooms = {name.partition(".")[0] for name in MODULES}
    for literal in LITERAL.findall(said):
        for path in re.findall(r"(?<![\w./])[a-z0-9_/]+\.py\b", literal):
            if path not in OF_OTHERS and not any(f"/{file}".endswith(f"/{path}") for file in FILES):
                wrong.append(path)
        head = re.match(r"(?:(\w+)/)?(\w+)", literal)
        if head is None or literal.endswith(".py"):
            continue
        room, name = head.groups()
        if room in rooms and f"{room}.{name}" not in MODULES:
            wrong.append(f"{room}/{name}")
        elif room is None and re.match(r"_[a-z]", name) and name not in rooms | known:
            wrong.append(name)  # or what is in it
    for target in TARGET.findall(said):
        room, _, inner = target.removeprefix("aiotimer.").partition(".")
        is_folder = target.startswith("aiotimer.") and (PACKAGE / room).is_dir()
        if is_folder and f"{room}.{inner.partition('.')[0]}" not in MODULES:
            wrong.append(target)
    return wrong


@every_module
def test_modules_say_first_what_they_are(name: str) -> None:
    said = facts(MODULES[name]).docstring
    assert said, f"{name} does not say what it is for"
    first = said.partition("\n\n")[0]
    assert FIRST_SENTENCE.match(first), (
        f"{name} does not begin with what it is, in a sentence, as in 'A reader of ...': {first!r}"
    )


@pytest.mark.parametrize("path", sorted(FILES))
def test_prose_names_modules_that_exist(path: str) -> None:
    file = PACKAGE.parent / path if path.startswith("aiotimer/") else TESTS.parent / path
    wrong = [(line, name) for line, said in facts(file).prose for name in stale(said, set())]
    if wrong:  # or an identifier of this module
        known = names_in(ast.walk(parsed(file))) | sys.stdlib_module_names
        wrong = [(line, name) for line, name in wrong if name not in known]
    assert not wrong, f"no such modules, {path}: {wrong}"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("as ``_watched`` does", "_watched"),
        ("as ``_watched.py`` does", "_watched.py"),
        ("``_table_files.PEERS_RETURN_WITHIN`` tells", "_table_files"),
        ("see ``server/roster``", "server/roster"),
        ("see ``client/roster.py``", "client/roster.py"),
        (":class:`~aiotimer._core.climb.Climb`", "aiotimer._core.climb.Climb"),
    ],
)
def test_a_module_that_does_not_exist_is_found(said: str, named: str) -> None:
    assert stale(said, set()) == [named]


@pytest.mark.parametrize(
    "said", ["Climbs.", "What a server answers.", "Everybody.", "A server's", "Accepting: all."]
)
def test_a_riddle_does_not_say_what_a_module_is(said: str) -> None:
    assert not FIRST_SENTENCE.match(said)


def test_what_is_no_module_is_not_taken_for_one() -> None:
    said = "``_core`` and ``_core/table.py``, ``server/reaper``, ``__exit__``, ``_after``, ``train.py:42``"
    assert stale(f"{said} and :mod:`aiotimer.evidence.gather`", {"_after"}) == []


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
    original.add_note("seen in worker 3")
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
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not asserts(node)
    ]
    assert not silent, f"tests without an assertion: {silent}"


# Tests of the package as a whole: of its shape, and of what is written about it.
OF_THE_WHOLE = frozenset({"test_structure", "test_house"})


def test_unit_tests_mirror_the_package() -> None:
    """A module's tests stand at its own place, in ``test_MODULE.py`` or ``test_MODULE_WHAT.py``."""
    tested = set()
    for path in (TESTS / "unit").rglob("test_*.py"):
        room = ".".join(path.relative_to(TESTS / "unit").parent.parts)
        stem = path.stem.removeprefix("test_")
        found = [
            name
            for name in MODULES
            if name.rpartition(".")[0] == room and f"{stem}_".startswith(f"{name.rpartition('.')[2]}_")
        ]
        assert found or path.stem in OF_THE_WHOLE, f"{path.relative_to(TESTS)} is of no module of {room!r}"
        tested.update(found)
    untested = {name for name in core_modules if "." in name} - tested
    assert not untested, f"what decides is tested alone: {untested}"


def test_unit_tests_need_no_loop_no_sleep_and_no_mocks() -> None:
    """Nor do they set attributes of modules or classes: what they replace they hand in."""
    wrong = []
    for path in (TESTS / "unit").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and node.attr == "setattr":
                wrong.append(f"{path.relative_to(TESTS)}:{node.lineno}: setattr")
            tops = {name.split(".")[0] for name in names}
            wrong += [
                f"{path.relative_to(TESTS)}: imports {top}" for top in tops & UNIT_TESTS_MUST_NOT_IMPORT
            ]
    assert not wrong, f"see tests/integration for that: {wrong}"
