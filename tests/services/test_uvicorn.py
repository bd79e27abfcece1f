"""uvicorn, as docs/how-to/uvicorn.md has it."""

import pytest

from tests.fakes.services import read, service

pytest.importorskip("uvicorn", reason="uvicorn is not installed: make test-services")

PAGE = "docs/how-to/uvicorn.md"
READY = "Application startup complete."


def test_a_request_that_waits_in_vain_costs_its_worker() -> None:
    with service(PAGE, "--workers 2 app:app") as uvicorn:
        uvicorn.wait_line(READY)
        assert uvicorn.get("/").endswith(b"done\n")
        assert uvicorn.get("/hang") == b""
        assert uvicorn.get("/").endswith(b"done\n")
        uvicorn.wait_shown()


def test_a_loop_that_is_blocked_costs_its_worker() -> None:
    with service(PAGE, "--workers 2 app:app") as uvicorn:
        uvicorn.wait_line(READY)
        assert uvicorn.get("/block") == b""
        assert "event loop blocked: sleeps at app.py:16" in uvicorn.wait_line("aiotimer: reaped")
        assert uvicorn.get("/").endswith(b"done\n")
        uvicorn.wait_line("died")


def test_with_a_grace_the_request_is_cancelled_and_nobody_killed() -> None:
    with service(PAGE, "gentle:app") as uvicorn:
        uvicorn.wait_line(READY)
        assert uvicorn.get("/hang").endswith(b"too late\n")
        assert uvicorn.get("/").endswith(b"done\n")
        uvicorn.wait_shown()
        assert "reaped" not in uvicorn.output


def test_reload_replaces_a_worker_when_a_file_is_saved() -> None:
    with service(PAGE, "--reload") as uvicorn:
        uvicorn.wait_line(READY)
        assert uvicorn.get("/hang") == b""
        uvicorn.wait_shown()
        with uvicorn.ask("/") as connection:  # waits in the socket of the reloader
            app = uvicorn.directory / "app.py"
            app.write_text(app.read_text() + "# saved\n")
            assert read(connection).endswith(b"done\n")
