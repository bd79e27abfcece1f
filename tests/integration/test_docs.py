"""The documentation, executed: README.md and every page under docs/.

What is done with a fenced block is said by its language and, if need be, by an HTML comment on the line
before it, which readers do not see:

* ``python`` blocks of a page are one program, run in their order by a worker of a real server. It must
  end with 0.
* ``console`` blocks are commands, after ``$``, and what they print. They must succeed, unless the block shows
  their statuses with ``echo $?``.
* ``file: NAME``: the block is a file, which lies in the directory where the page's programs and commands run.
* ``runs: reaped``: a command that must end by being reaped.
* ``runs: beside``: a command that goes on while the rest of the page is executed.
* ``runs: alone``: a command that is executed apart from the others of its page, for it takes long.
* ``runs: not, REASON``: not executed.
* ``prints``: before a ``text`` block: what the ``python`` block before it prints.

In output, a line ``...`` stands for any lines, and ``...`` in a line for anything. What differs from run
to run (pids, durations, versions, the runtime directory) may be anything of its kind. The server writes to
a terminal from a process of its own, so its lines and the commands' are compared separately.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

import aiotimer
from aiotimer import errors, testing
from aiotimer._core import layout, wire
from aiotimer._core.reaping import State
from aiotimer.cli import run_command
from aiotimer.cli.common import EX_UNAVAILABLE
from aiotimer.cli.group import MODULES, cli
from aiotimer.client.launch import owner_argument
from aiotimer.events import KINDS
from aiotimer.server import connection
from aiotimer.server.handlers import MAX_CONNECTIONS
from aiotimer.server.server import OwnedServer
from tests.fakes.clock import PATIENCE
from tests.fakes.pages import DOCS, PAGES, ROOT, Block, assert_shown, blocks_of, environment, workplace
from tests.fakes.places import short_directory
from tests.fakes.server import ServerThread
from tests.fakes.worker import SpawnedWorker

INCLUDED = frozenset({"{include} ../CHANGELOG.md", "{include} ../../SECURITY.md"})
LANGUAGES = frozenset({"python", "console", "text", "{toctree}", "{eval-rst}", *INCLUDED})
"""``sh``, ``bash`` or ``py`` would not be executed."""

RUNNER = """
import json, sys
page = {"__name__": "__main__"}
for file, line, source in json.load(sys.stdin):
    exec(compile("\\n" * line + source, file, "exec"), page)
    print("\\x1e", flush=True)
"""
"""Runs the blocks of a page in one namespace. Tracebacks name the page and its line."""


# --- pages as data


every_page = pytest.mark.parametrize("page", PAGES)


def pages_with(attribute: str) -> list[str]:
    """Return the pages that have a block of some kind."""
    return [page for page in PAGES if any(getattr(block, attribute) for block in blocks_of(page))]


def prose_of(path: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def plain_prose_of(path: Path) -> str:
    """Return that without spans of code."""
    return re.sub(r"`[^`\n]*`", "", prose_of(path))


def anchors_of(path: Path) -> set[str]:
    """Return what a link to a heading of a page may say behind its ``#``."""
    text = prose_of(path)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    labels = re.findall(r"^\((\S+)\)=$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(labels)


def section(page: Path, heading: str) -> str:
    """Return what stands between a heading and the next one of its level or above, blocks apart."""
    level = heading.split()[0]
    pattern = rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)"
    found = re.search(pattern, prose_of(page), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the rows of the tables in a text, headings and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    skipped = {number - 1 for number in rules} | set(rules)
    return [row for number, row in enumerate(cells) if number not in skipped]


def number(text: str) -> int:
    """Return a number that is written with commas."""
    return int(text.replace(",", ""))


# --- execution


class Console:
    """Runs the console blocks of a page.

    Attributes:
        printed: what the last one printed.
    """

    def __init__(self, page: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self._page = page
        self._directory = directory
        self._stack = stack
        self.printed = ""

    def run(self, block: Block) -> int:
        """Run a block and check what it prints; return its exit status, 0 if it goes on."""
        where = f"{self._page}:{block.line + 1}"
        assert block.commands, f"{where}: a console block without a command"
        if block.note == "runs: beside":
            self._run_beside(block, where)
            return 0
        script = "\n".join([*block.commands, "exit $?"])
        strict = () if "$?" in block.text or block.note == "runs: reaped" else ("-e",)
        done = subprocess.run(
            ["bash", *strict, "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self._directory, env=environment(self._directory), timeout=2 * PATIENCE, check=False,
        )  # fmt: skip
        self.printed = done.stdout
        if block.output:
            assert_shown(block.output, self.printed, self._directory, where)
        return done.returncode

    def _run_beside(self, block: Block, where: str) -> None:
        [command] = block.commands
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self._directory, env=environment(self._directory),
        )  # fmt: skip
        beside = self._stack.enter_context(SpawnedWorker(process))
        self._stack.callback(beside.wait)
        self._stack.callback(process.terminate)
        for line in block.output.splitlines():
            assert_shown(line, beside.wait_line(""), self._directory, where)


@pytest.mark.parametrize(
    ("page", "alone"),
    [
        *((page, False) for page in pages_with("is_command")),
        *((page, True) for page in pages_with("is_alone")),
    ],
)
def test_commands(page: str, alone: bool) -> None:
    with workplace(page) as directory, contextlib.ExitStack() as stack:
        console = Console(page, directory, stack)
        for block in blocks_of(page):
            if block.is_command and block.is_alone == alone:
                expected = (124, 137) if block.note == "runs: reaped" else (0,)
                assert console.run(block) in expected, f"{page}:{block.line + 1}\n{console.printed}"


@pytest.mark.parametrize("page", pages_with("is_program"))
def test_programs(page: str) -> None:
    blocks = blocks_of(page)
    programs = [block for block in blocks if block.is_program]
    with workplace(page) as directory, ServerThread() as server:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps([(str(PAGES[page]), block.line + 1, block.text) for block in programs]),
            capture_output=True, text=True, cwd=directory, env=environment(directory, server.path),
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}\n{done.stdout}\n{done.stderr}"
        assert not server.armed()
    printed = done.stdout.split("\x1e\n")
    assert len(printed) == len(programs) + 1
    for before, block in itertools.pairwise(blocks):
        if block.note == "prints":
            assert_shown(block.text, printed[programs.index(before)], directory, f"{page}:{block.line + 1}")


# --- what the pages say


@every_page
def test_blocks_are_of_known_kinds(page: str) -> None:
    indented = re.search(r"^ +```", PAGES[page].read_text(), re.MULTILINE)
    assert not indented, f"{page}: an indented block is not executed"
    notes = r"file: [\w.]+|runs: reaped|runs: beside|runs: alone|runs: not, \S.*|prints|"
    for block in blocks_of(page):
        where = f"{page}:{block.line + 1}"
        assert block.language in LANGUAGES, f"{where}: {block.language!r} is not executed"
        assert re.fullmatch(notes, block.note), f"{where}: what is {block.note!r}?"
        commands = [command for other in blocks_of(page) for command in [*other.commands, other.text]]
        if block.file:
            names = (block.file, f"{block.file.removesuffix('.py')}:")  # a server is given MODULE:NAME
            assert any(name in command for name in names for command in commands), f"{where}: nothing runs it"


@every_page
def test_what_is_not_executed_here_is_executed_where_it_says(page: str) -> None:
    for block in blocks_of(page):
        named = re.match(r"runs: not, (tests/\S+\.py) ", block.note)
        assert not named or page in (ROOT / named[1]).read_text(), f"{page}:{block.line + 1}: {named}"


def test_examples_are_shown_as_they_are() -> None:
    shown = {
        block.file: block.text + "\n"
        for page, path in PAGES.items()
        if path.is_relative_to(DOCS)
        for block in blocks_of(page)
        if block.file and (DOCS / "examples" / block.file).exists()
    }
    assert "hang.py" in shown
    for name, text in shown.items():
        assert text == (DOCS / "examples" / name).read_text(), name


@every_page
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for target in re.findall(r"\]\(([^)\s]+)\)", plain_prose_of(path)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.is_file(), f"{page}: {target}"
        assert not anchor or anchor in anchors_of(there), f"{page}: {target}"


@every_page
def test_nothing_is_lost_as_an_unknown_element_of_html(page: str) -> None:
    assert re.findall(r"(?<!\\)<[A-Za-z/][^>]*>", plain_prose_of(PAGES[page])) == []


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].read_text().splitlines()) <= 120


def test_every_public_name_is_in_the_reference() -> None:
    documented = re.findall(
        r"^\.\. auto(?:class|function|exception):: (\S+)$",
        (DOCS / "reference" / "api.md").read_text(),
        re.MULTILINE,
    )
    assert {*aiotimer.__all__} - {"__version__"} <= {name.removeprefix("aiotimer.") for name in documented}
    assert {f"aiotimer.testing.{name}" for name in testing.__all__} <= set(documented)


def documented_members(name: str) -> set[str]:
    """The members of a class that the reference lists, and the attributes that its docstring does."""
    page = (DOCS / "reference" / "api.md").read_text()
    (options,) = re.findall(rf"^\.\. autoclass:: {name}\n((?:   .*\n)+)", page, re.MULTILINE)
    (members,) = re.findall(r":members:([^:]+)", options)
    section = re.search(r"\n\nAttributes:\n((?:    .*\n?)+)", inspect.getdoc(getattr(aiotimer, name)) or "")
    attributes = re.findall(r"^    (\w+):", section[1], re.MULTILINE) if section else []
    return {*re.findall(r"\w+", members), *attributes}


async def test_a_server_has_the_public_names_that_are_documented() -> None:
    documented = documented_members("TimerServer")
    with short_directory() as directory:
        servers = aiotimer.TimerServer(directory / "s"), OwnedServer(str(directory / "o"), owner_argument())
        for server in servers:
            async with server:
                public = {name for name in dir(server) if not name.startswith("_")}
                assert public == documented, f"of a {type(server).__name__}"


# --- the reference of commands

CLI = DOCS / "reference" / "cli.md"
SETTINGS = cli.context_settings
"""Of every context: a command keeps the help option that it has in the first."""

COMMANDS = {
    name: command
    for name in MODULES
    if (command := cli.get_command(click.Context(cli), name)) is not None and not command.hidden
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_reference(name: str) -> None:
    """What ``--help`` lists is a definition in the command's section, and the other way round."""
    options = [p for p in COMMANDS[name].params if isinstance(p, click.Option) and not p.hidden]
    text = section(CLI, f"## aiotimer {name}")
    told = set(re.findall(r"^`(--[\w-]+)", text, re.MULTILINE))
    assert told == {option.opts[0] for option in options}
    for option in options:
        if isinstance(option.type, click.Choice):
            assert f"`{option.opts[0]} [{'|'.join(option.type.choices)}]`" in text
            assert f"By default `{option.default}`" in text


def test_every_event_that_can_be_named_is_in_the_reference() -> None:
    _, _, text = section(CLI, "## aiotimer serve").partition("`--events NAME,...`")
    names = re.findall(r"`([a-z_]+)`", text.partition("For instance")[0])
    assert names == list(KINDS)


def test_every_command_is_in_the_reference() -> None:
    text = prose_of(CLI)
    told = re.findall(r"^## aiotimer (\S+)$", text, re.MULTILINE)
    assert sorted(told) == sorted(COMMANDS)
    assert "`aiotimer --version`" in text
    assert "`--help`" in text
    usages = [block.text for block in blocks_of("docs/reference/cli.md") if block.language == "text"]
    for name, command in COMMANDS.items():
        context = click.Context(command, info_name=f"aiotimer {name}", **SETTINGS)
        assert " ".join([f"aiotimer {name}", *command.collect_usage_pieces(context)]) in usages


def test_every_exit_status_is_in_the_reference() -> None:
    told = {row[0] for row in rows(section(CLI, "## Exit statuses"))}
    kinds: list[type[errors.ServerError]] = [errors.ServerError, *errors.ServerError.__subclasses__()]
    raised = {kind.exit_code for kind in kinds}
    of_run = {run_command.REAPED, run_command.FAILED, run_command.NOT_EXECUTABLE, run_command.NOT_FOUND}
    pages = [command.get_help(click.Context(command, **SETTINGS)) for command in COMMANDS.values()]
    help_texts = [re.sub(r"\[default: [^]]*\]", "", page) for page in pages]
    in_help = {found for text in help_texts for found in re.findall(r"\b(?:\d{2,3}|128\+N)\b", text)}
    expected = {str(code) for code in raised | of_run | {EX_UNAVAILABLE}} | in_help - {"128"}
    assert expected <= told
    assert {"0", "1", "2", "128+N"} <= told


# --- the reference of the protocol

PROTOCOL = DOCS / "reference" / "protocol.md"


def test_the_table_is_as_documented() -> None:
    table = rows(section(PROTOCOL, "## The timer table").partition("### ")[0])
    extents = [(number(offset), number(size)) for offset, size, *_ in table]
    assert [offset for offset, _ in extents] == [0, *(offset + size for offset, size in extents[:-1])]
    assert sum(extents[-1]) == layout.TABLE_SIZE
    offsets = {what: number(offset) for offset, _, what, *_ in table if what != "-"}
    words = (
        "PROMISE",
        "LOOKS",
        "REAPED_AT",
        "PROGRAM",
        "HIGH_WATER",
        "RETIRED",
        "DUMP_SIGNAL",
        "DUMP_FILE",
        "EXIT_SIGNAL",
    )
    assert offsets == {
        "magic": 0,
        "version": len(layout.MAGIC),
        "slots": len(layout.MAGIC) + 4,
        **{f"`{name}`": 8 * getattr(layout, name) for name in words},
        "deadlines": layout.deadline_offset(0),
        "counts": layout.count_offset(0),
        "grant": layout.GRANT_OFFSET,
        "account": layout.ACCOUNT_OFFSET,
        "labels": layout.label_offset(0),
        "rows": layout.row_offset(0),
    }
    text = " ".join(prose_of(PROTOCOL).split())
    assert f"A file of {layout.TABLE_SIZE:,} bytes" in text
    assert f"The *layout version* of a table is {layout.LAYOUT_VERSION};" in text
    assert f"{layout.SLOTS:,} × {layout.LABEL_SIZE} bytes" in text
    assert f"the deadlines of {layout.FIRST_SLOTS} slots" in text
    assert f"A scope is 1 to {layout.SCOPE_BYTES} bytes of UTF-8" in text
    assert f"smallest positive double, {layout.EXPIRED_AT_ONCE}" in text


def test_the_states_of_a_reaping_are_as_drawn() -> None:
    script = runpy.run_path(str(DOCS / "draw_reaping.py"))
    assert script["draw"]() == script["PICTURE"].read_text(), "draw it anew: python docs/draw_reaping.py"
    table = rows(section(DOCS / "explanation" / "reaping.md", "# Reaping"))
    assert sorted(state for state, _ in table) == sorted(state.value for state in State)


def test_a_label_is_as_documented() -> None:
    table = rows(section(PROTOCOL, "### Labels"))
    cell = layout.encode_label(b"x" * layout.SCOPE_BYTES, 0x0102_0304)
    fields = {what: cell[int(offset) : int(offset) + int(size)] for offset, size, what, *_ in table}
    assert int.from_bytes(fields["length"], sys.byteorder) == layout.SCOPE_BYTES
    assert fields["flags"] == bytes(2)
    assert int.from_bytes(fields["ordinal"], sys.byteorder) == 0x0102_0304
    assert fields["text"] == b"x" * layout.SCOPE_BYTES
    assert sum(map(len, fields.values())) == len(cell) == layout.LABEL_SIZE - 8


MESSAGES: dict[str, type[msgspec.Struct]] = {
    str(kind.__struct_config__.tag): kind
    for kind in vars(wire).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
}

MESSAGEPACK = {"int": "int", "float": "float", "str": "str", "bool": "bool", "tuple": "array", "dict": "map"}


@pytest.mark.parametrize("tag", MESSAGES)
def test_a_message_is_as_documented(tag: str) -> None:
    fields = msgspec.structs.fields(MESSAGES[tag])
    text = section(PROTOCOL, f"### {tag.upper()}")
    line = ", ".join([f'["{tag}"', *(field.name for field in fields)]) + "]"
    assert f"`{line}`" in text.splitlines()
    table = rows(text)
    assert [row[0] for row in table] == [f"`{field.name}`" for field in fields]
    for (_, kind, meaning), field in zip(table, fields, strict=True):
        name = getattr(field.type, "__name__", str(field.type))
        assert kind == MESSAGEPACK[name]
        assert ("default" in meaning) == (field.default is not msgspec.NODEFAULT), field.name


def test_versions_and_limits_are_as_documented() -> None:
    text = " ".join(prose_of(PROTOCOL).split())
    assert f"The *protocol version* is {wire.PROTOCOL_VERSION};" in text
    headings = re.findall(r"^### ([A-Z?]+)$", prose_of(PROTOCOL), re.MULTILINE)
    assert sorted(headings) == sorted(tag.upper() for tag in MESSAGES)
    limits = dict(rows(section(PROTOCOL, "## The socket").partition("### ")[0]))
    assert [number(value.split()[0].rstrip(",")) for value in limits.values()] == [
        wire.MAX_FRAME,
        wire.MAX_REPLY,
        1,
        MAX_CONNECTIONS,
        connection.MESSAGES,
        connection.SILENCE,
        connection.SILENCE,
    ]


# --- what is promised, and its tests


def every_test() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for text in sources for name in re.findall(r"def (test_\w+)", text)}


def test_every_line_of_the_failure_model_has_a_test_of_its_number() -> None:
    page = (DOCS / "explanation/failure-model.md").read_text()
    lines = {int(number) for number in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    tested = {int(name[11:13]) for name in every_test() if re.match(r"test_fault_\d\d_", name)}
    assert sorted(lines) == [*range(1, 90)]
    assert sorted(lines - tested) == [], "lines without a test"
    assert sorted(tested - lines) == [], "tests of no line"


def test_every_promise_of_security_names_a_test_that_exists() -> None:
    promises = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    for promise in promises:
        if "shown by" not in promise:
            names = re.findall(r"`(test_\w+)`", promise)
            assert names, promise
            assert set(names) <= every_test(), promise
