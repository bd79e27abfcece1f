"""gunicorn, as docs/how-to/gunicorn.md has it."""

import os
import shutil

import pytest

from tests.fakes.services import service

pytest.importorskip("gunicorn", reason="gunicorn is not installed: make test-services")

PAGE = "docs/how-to/gunicorn.md"
READY = "Booting worker with pid"

of_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
)


@pytest.mark.parametrize(
    "command",
    [
        "gunicorn --bind unix:app.sock app:app",
        "--threads 4",
        "--preload app:app",
        pytest.param("--config drops.py", marks=of_root),
    ],
    ids=["sync", "threads", "preload", "user"],
)
def test_a_request_that_hangs_costs_its_worker_and_no_more(command: str) -> None:
    with service(PAGE, command) as gunicorn:
        gunicorn.wait_line(READY)
        assert gunicorn.get("/").endswith(b"done\n")
        assert gunicorn.get("/hang") == b""
        assert gunicorn.get("/").endswith(b"done\n")
        gunicorn.wait_shown()


@of_root
def test_a_worker_that_has_dropped_its_user_before_it_connects_is_told_so() -> None:
    with service(PAGE, "--user nobody --group nogroup app:app") as gunicorn:
        gunicorn.wait_line(READY)
        assert gunicorn.get("/").endswith(b"done\n")
        gunicorn.wait_shown()
