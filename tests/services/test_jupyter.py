"""Jupyter, as docs/how-to/jupyter.md has it: the page's programs are the cells, a real kernel runs them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Self

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import Block, block_with, blocks_of, inexact, normal, workplace

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: make test-services")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: make test-services")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: make test-services")

pytestmark = pytest.mark.filterwarnings("default")  # these packages have their own

PAGE = "docs/how-to/jupyter.md"
FILES = {block.file: block.text for block in blocks_of(PAGE) if block.file}


class Notebook:
    """A notebook that a real kernel runs, cell by cell.

    Attributes:
        shown: what stands below its cells.
    """

    def __init__(self, directory: Path) -> None:
        self._client = nbclient.NotebookClient(
            nbformat.v4.new_notebook(),
            timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(directory)}},
        )  # fmt: skip
        self._directory = directory
        self.shown: list[str] = []

    def __enter__(self) -> Self:
        # Under pytest a kernel would not show what other processes print.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "AIOTIMER_"))}
        self._kernel = self._client.setup_kernel(env=env)
        self._kernel.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._kernel.__exit__(*exception)

    def run(self, source: str) -> None:
        """Run a cell."""
        cells = self._client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        self._client.execute_cell(cells[-1], len(cells) - 1)
        text = "".join(output.get("text", "") for output in cells[-1].outputs)
        self.shown += normal(text, self._directory)

    def wait_shown(self, block: Block) -> None:
        """Run cells that do nothing until everything that a block shows stands below one."""
        until = monotonic() + PATIENCE
        for wanted in normal(block.output, self._directory):
            while not any(re.fullmatch(inexact(wanted), f"{line}\n") for line in self.shown):
                assert monotonic() < until, f"{wanted!r} is not shown:\n{self.shown}"
                self.run("pass")


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    """An empty one."""
    with workplace(PAGE) as directory, Notebook(directory) as started:
        yield started


def test_a_cell_that_is_observed_goes_on_and_is_told_of(notebook: Notebook) -> None:
    notebook.run(FILES["notebook.py"])
    notebook.wait_shown(block_with(PAGE, "cells are"))
    notebook.run("print(time.__name__)")
    assert notebook.shown[-1] == "time"


def test_an_await_is_cancelled_and_the_kernel_goes_on(notebook: Notebook) -> None:
    notebook.run("from aiotimer import configure, expires\nconfigure()")
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        notebook.run(FILES["gentle.py"])
    shown = block_with(PAGE, "gentle.py").output
    assert shown in re.sub(r"\x1b\[[\d;]*m", "", str(error.value))
    notebook.run("print('goes on')")
    assert notebook.shown[-1] == "goes on"


def test_without_observing_the_kernel_dies(notebook: Notebook) -> None:
    with pytest.raises(nbclient.exceptions.DeadKernelError, match="Kernel died"):
        notebook.run(FILES["notebook.py"].replace("observe=True", ""))
