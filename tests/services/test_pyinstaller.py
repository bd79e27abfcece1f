"""PyInstaller, as docs/how-to/pyinstaller.md has it."""

import subprocess
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import Block, assert_shown, block_with, blocks_of, workplace
from tests.fakes.services import service_environment

pytest.importorskip("PyInstaller", reason="PyInstaller is not installed: make test-services")

PAGE = "docs/how-to/pyinstaller.md"


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; return how it ended, and what it printed on both streams."""
    return subprocess.run(
        ["bash", "-c", f"exec env {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=4 * PATIENCE, check=False,
        cwd=directory, env=service_environment(directory),
    )  # fmt: skip


def built(block: Block, directory: Path, kind: str) -> str:
    """Build the page's application in a directory; return its path as the page has it."""
    (command,) = block.commands
    done = run(command.replace("--onedir", kind), directory)
    assert done.returncode == 0, done.stdout
    return "dist/app/app" if kind == "--onedir" else "dist/app"


@pytest.mark.parametrize("kind", ["--onedir", "--onefile"])
def test_a_frozen_application_is_not_started_twice(kind: str) -> None:
    with workplace(PAGE) as directory:
        program = built(block_with(PAGE, "pyinstaller"), directory, kind)
        unwatched, watched = [block for block in blocks_of(PAGE) if block.commands and block.output]
        for block, went_on in ((unwatched, True), (watched, False)):
            (command,) = block.commands
            done = run(command.replace("dist/app/app", program), directory)
            assert (done.returncode == 0) is went_on, done.stdout
            assert done.stdout.splitlines().count("started") == 1
            assert_shown(block.output, done.stdout, directory, PAGE)
