"""The adapter for torch where there is no torch. With it: tests/trainers."""

import subprocess
import sys

import pytest

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_that_torch_is_missing_is_said_with_what_to_install() -> None:
    done = run(WITHOUT_TORCH + "import aiotimer.integrations.torch_elastic")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: aiotimer.integrations.torch_elastic is an adapter for PyTorch, ")
    assert last.endswith(": pip install torch; its build for the CPU will do")


@pytest.mark.parametrize(
    "module", ["server.file_timer", "cli.serve", "cli.serve_command", "cli.run", "integrations"]
)
def test_nothing_else_needs_it(module: str) -> None:
    assert run(WITHOUT_TORCH + f"import aiotimer.{module}").returncode == 0
