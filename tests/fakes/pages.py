"""Pages: the documentation as data, and a directory in which what a page shows can be executed.

The law of this file: what is executed is what the page shows, taken from the page itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import aiotimer
from tests.fakes.places import short_directory

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}

COMMAND = """
import os, pathlib
from aiotimer import cli
from aiotimer._linux import paths
paths.bases = lambda: iter([pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer")])
cli.main()
"""
"""The command ``aiotimer`` of a page: it sees nothing of this user's other servers, wherever they are."""

RUNTIME = "/run/user/1000"
"""How the pages show ``$XDG_RUNTIME_DIR``."""

HOME = "/home/you"
"""How they show the directory where a page's commands run."""

VARYING = (
    (r"\d+ h \d+ min|\d+ min \d+ s|\d+(\.\d+)? ?(ms|s)\b", "DURATION"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+", "MOMENT"),
    (r"^\d\d-\d\d \d\d:\d\d:\d\d +(\w+) +\d+ ", r"SHORT-MOMENT \1 N "),  # a row of the history
    (r"\b(pid[=: ] ?|pid\": |worker )\d+", r"\1N"),
    (r"^ *\d+ (?= *(python|\w+\.py)\b)", "N "),
    (r"\bon [\w.-]+\) was\b", "on HOST) was"),
    (r"(run|private)-[\d-]+\.sock", r"\1-N.sock"),
    (r"\b(\d+ (worker|timer))s?\b", r"\1s"),
    (r"(aiotimer|version) \d+\.\d+\.\d+", r"\1 V"),
    (r"\bpython[\d.]+", "python"),  # the command name of an interpreter called python3.12
    (r"^\S+: line \d+: +\d+ (Killed)\b.*", r"\1"),  # what an interactive shell says is shorter
    (r"[\d.]+ ×", "N ×"),
    (r" +", " "),
)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: of its fence, from 0.
        language: what stands behind the fence.
        note: the HTML comment before it, "" if there is none.
        text: its lines.
    """

    line: int
    language: str
    note: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that it is, "" if it is none."""
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else ""

    @property
    def is_command(self) -> bool:
        """Whether it is executed by a shell."""
        return self.language == "console" and not self.note.startswith("runs: not, ")

    @property
    def is_alone(self) -> bool:
        """Whether it is executed apart from the page's other commands: they have nothing to do with it."""
        return self.note == "runs: alone"

    @property
    def is_program(self) -> bool:
        """Whether it is a part of the page's program."""
        return self.language == "python" and not self.note

    @property
    def commands(self) -> list[str]:
        """The commands of a console block."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def output(self) -> str:
        """What a console block shows besides."""
        return "\n".join(line for line in self.text.splitlines() if not line.startswith("$ "))


@functools.cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return the fenced blocks of a page."""
    blocks: list[Block] = []
    lines = PAGES[page].read_text().splitlines()
    numbered = iter(enumerate(lines))
    for number, line in numbered:
        if not line.startswith("```"):
            continue
        comment = re.fullmatch(r"<!-- (.*) -->", lines[number - 1]) if number else None
        inside: list[str] = []
        for _, inner in numbered:
            if inner == "```":
                break
            inside.append(inner)
        else:
            pytest.fail(f"{page}:{number + 1}: a fence that is not closed")
        blocks.append(Block(number, line[3:], comment[1] if comment else "", "\n".join(inside)))
    return tuple(blocks)


def block_with(page: str, text: str) -> Block:
    """Return the console block of a page whose command contains a text."""
    (found,) = [block for block in blocks_of(page) if any(text in command for command in block.commands)]
    return found


@contextlib.contextmanager
def workplace(page: str) -> Iterator[Path]:
    """Yield a directory with the files of a page, and ``docs/examples``."""
    with short_directory() as directory:
        (directory / "docs").symlink_to(DOCS)
        for block in blocks_of(page):
            if block.file:
                (directory / block.file).write_text(block.text + "\n")
        tools = directory / ".bin"
        tools.mkdir()
        for name, command in {"python": "", "aiotimer": f"-P -c '{COMMAND}'"}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            (tools / name).chmod(0o755)
        yield directory


def environment(directory: Path, socket_path: str | None = None) -> dict[str, str]:
    """Return the environment of a page's programs and commands."""
    package = str(Path(aiotimer.__file__).parent.parent)
    path = os.pathsep.join([str(directory / ".bin"), os.environ["PATH"]])
    here = {k: v for k, v in os.environ.items() if k != "AIOTIMER_SOCKET"}
    here |= {"PATH": path, "PYTHONPATH": package, "PYTHONUNBUFFERED": "1", "LC_ALL": "C"}
    return here | ({"AIOTIMER_SOCKET": socket_path} if socket_path else {})


def normal(text: str, directory: Path) -> list[str]:
    """Return lines in which everything that may differ from run to run is the same."""
    text = text.replace(os.environ["XDG_RUNTIME_DIR"], RUNTIME).replace(str(directory), HOME)
    lines = text.splitlines()
    for pattern, replacement in VARYING:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return [line.strip() for line in lines if line.strip()]


def assert_shown(shown: str, printed: str, directory: Path, where: str) -> None:
    """Check that a page shows what was printed by something that ran in a directory."""
    for of_server in (False, True):
        wanted, found = (
            [
                line
                for line in normal(text, directory)
                if line == "..." or line.startswith("aiotimer: reaped") is of_server
            ]
            for text in (shown, printed)
        )
        pattern = "".join("(?:.*\n)*" if line == "..." else inexact(line) for line in wanted)
        lines = "".join(f"{line}\n" for line in found)
        assert re.fullmatch(pattern, lines), f"{where} shows\n{shown}\n\nprinted was\n{printed}"


def inexact(line: str) -> str:
    """Return the pattern of a line in which ``...`` may stand for anything."""
    return re.escape(line).replace(re.escape("..."), ".*") + "\n"
