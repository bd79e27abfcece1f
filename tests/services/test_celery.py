"""Celery, as docs/how-to/celery.md has it; the broker is a directory."""

import subprocess

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import block_with
from tests.fakes.services import Service, service, service_environment

pytest.importorskip("celery", reason="celery is not installed: make test-services")

PAGE = "docs/how-to/celery.md"
READY = " ready."  # then it has its private server, which whoever sends has no part in starting


def send(celery: Service, seconds: str) -> subprocess.Popen[str]:
    """Start the page's command that sends a task and waits for its result."""
    (command,) = [one for one in block_with(PAGE, "send.py 0").commands if one.endswith(f" {seconds}")]
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=celery.directory, env=service_environment(celery.directory),
    )  # fmt: skip


def result(sent: subprocess.Popen[str]) -> str:
    """Return what it prints, when it has ended."""
    with sent:
        assert sent.stdout is not None
        printed = sent.stdout.read()
        assert sent.wait(PATIENCE) == 0, printed
    return printed.splitlines()[-1]


def test_prefork_replaces_the_process_and_tells_who_waits() -> None:
    with service(PAGE, "--pool prefork") as celery:
        celery.wait_line(READY)
        hangs = send(celery, "3600")
        celery.wait_line("reaped")
        assert result(send(celery, "0")) == "done"
        shown = block_with(PAGE, "send.py 0").output.splitlines()[0]
        assert result(hangs).startswith(shown.removesuffix("..."))
        celery.wait_shown()


def test_a_pool_of_threads_ends_with_its_process() -> None:
    with service(PAGE, "--pool threads") as celery:
        celery.wait_line(READY)
        hangs = send(celery, "3600")
        try:
            celery.wait_shown()
            assert celery.wait() == -9
            assert "MainProcess] Task handler" not in celery.output
        finally:
            hangs.kill()
            hangs.communicate()
