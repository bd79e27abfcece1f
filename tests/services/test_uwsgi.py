"""uWSGI, as docs/how-to/uwsgi.md has it: it embeds Python, and forks in C."""

import pytest

from tests.fakes.services import service

pytest.importorskip("pyuwsgi", reason="pyuwsgi is not installed: make test-services")

PAGE = "docs/how-to/uwsgi.md"


@pytest.mark.parametrize(
    "command",
    ["--die-on-term --workers 2 --http-socket", "--lazy-apps", "--threads 2"],
    ids=["default", "lazy-apps", "threads"],
)
def test_a_request_that_hangs_costs_its_worker_and_no_more(command: str) -> None:
    with service(PAGE, command) as uwsgi:
        uwsgi.wait_line("spawned uWSGI worker 2")
        assert uwsgi.get("/").endswith(b"done\n")
        assert uwsgi.get("/hang") == b""
        assert uwsgi.get("/").endswith(b"done\n")
        uwsgi.wait_shown()
        assert "segmentation fault" not in uwsgi.output.lower()
