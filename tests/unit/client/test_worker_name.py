"""The name of a process: what it is called, whatever it runs, and whatever it has done to its modules."""

from types import SimpleNamespace
from typing import Any

import pytest

from aiotimer.client.worker_name import found_name

SCRIPT = SimpleNamespace(__spec__=None, __file__="/srv/app/train.py")
LIBRARY = SimpleNamespace(__file__="/srv/venv/lib/python3.11/site-packages/uvicorn/_subprocess.py")


def child(name: str, target: Any = None, main: Any = SCRIPT) -> dict[str, Any]:
    """The modules of a child of multiprocessing's."""
    process = SimpleNamespace(name=name, _target=target)
    multiprocessing = SimpleNamespace(current_process=lambda: process)
    return {"__main__": main, "multiprocessing.process": multiprocessing, "uvicorn._subprocess": LIBRARY}


def target(module: str) -> Any:
    return SimpleNamespace(__module__=module, __qualname__="rollout")


@pytest.mark.parametrize(
    ("main", "name"),
    [
        (SCRIPT, "train.py"),
        (
            SimpleNamespace(__spec__=SimpleNamespace(name="jobs.train"), __file__="/srv/jobs/train.py"),
            "jobs.train",
        ),
        (
            SimpleNamespace(__spec__=SimpleNamespace(name="pytest.__main__"), __file__="/x/__main__.py"),
            "pytest",
        ),
        (
            SimpleNamespace(__spec__=SimpleNamespace(name="__main__"), __file__="/srv/app.pyz/__main__.py"),
            "app.pyz",
        ),
        (SimpleNamespace(__spec__=None), ""),
        (SimpleNamespace(__spec__=SimpleNamespace(name=7), __file__=None), ""),
        (SimpleNamespace(), ""),
        (None, ""),
    ],
)
def test_a_program_is_its_script_or_its_module(main: Any, name: str) -> None:
    assert found_name({}, {"__main__": main}) == name


def test_who_has_titled_its_process_is_called_by_its_command_name() -> None:
    assert found_name({}, {"__main__": SCRIPT, "setproctitle": object()}) == ""
    assert found_name({"RANK": "3"}, {"__main__": SCRIPT, "setproctitle": object()}) == "rank 3"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "train.py rank 3/8"),
        ({"RANK": "3"}, "train.py rank 3"),
        ({"LOCAL_RANK": "1"}, "train.py rank 1"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "train.py rank 0/4"),
        ({"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "x"}, "train.py rank 5"),
        ({"RANK": "", "SLURM_PROCID": "2"}, "train.py rank 2"),
        ({"RANK": "of honour"}, "train.py"),
        ({"PYTEST_XDIST_WORKER": "gw1"}, "train.py"),
    ],
)
def test_a_launcher_names_a_process_or_its_rank(environment: dict[str, str], name: str) -> None:
    assert found_name(environment, {"__main__": SCRIPT}) == name


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        (child("Process-1", target("__main__")), "rollout"),
        (child("ForkProcess-2:1", target("jobs")), "train.py ForkProcess-2:1"),
        (child("loader", target("__main__")), "loader"),
        (child("SpawnProcess-1", target("uvicorn._subprocess")), "train.py SpawnProcess-1"),
        (child("ForkPoolWorker-3", target("uvicorn._subprocess")), "train.py ForkPoolWorker-3"),
        (child("SpawnProcess-1", target("uvicorn._subprocess"), None), "SpawnProcess-1"),
        (child("MainProcess"), "train.py"),
        (child("Process-1"), "train.py Process-1"),
    ],
)
def test_a_child_of_multiprocessing_is_called_what_it_does(modules: dict[str, Any], name: str) -> None:
    assert found_name({}, modules) == name


def test_frameworks_name_their_workers() -> None:
    xdist = {"PYTEST_XDIST_WORKER": "gw1"}
    assert found_name(xdist, {"execnet": object()}) == "gw1"
    assert found_name(xdist, {}) == "", "what a test has started"
    assert found_name(xdist, {"__main__": SCRIPT, "execnet": object()}) == "train.py", "a pytest, perhaps"
    assert found_name({}, {"execnet": object()}) == ""
    gunicorn = {"SERVER_SOFTWARE": "gunicorn/23.0.0"}
    assert found_name(gunicorn, {"__main__": SCRIPT, "gunicorn": object()}) == "gunicorn worker"
    assert found_name(gunicorn, {"__main__": SCRIPT}) == "train.py", "what gunicorn's worker has started"
    for name, told in {"ForkPoolWorker-2": "celery ForkPoolWorker-2", "MainProcess": "celery"}.items():
        billiard = child(name)["multiprocessing.process"]
        assert found_name({}, {"celery": object(), "billiard.process": billiard}) == told


def test_whatever_stands_in_place_of_a_module_is_no_error() -> None:
    odd = SimpleNamespace(current_process=lambda: 1 // 0)
    for module in (None, 7, odd, SimpleNamespace(current_process=object)):
        assert found_name({}, {"__main__": SCRIPT, "multiprocessing.process": module}) == "train.py"
