"""Stacks for people: what is folded, what is shortened, and which threads are idle."""

from typing import Any

import pytest

from aiotimer.cli.frames import (
    folded,
    frame_at,
    guilty_first,
    innermost,
    is_idle,
    library_of,
    relative,
    short,
)

LIB = "/usr/lib/python3.11"
SITE = "/srv/venv/lib/python3.11/site-packages"

LOOP: list[list[Any]] = [
    ["/srv/app/train.py", 9, "<module>"],
    [f"{LIB}/asyncio/runners.py", 190, "run"],
    [f"{LIB}/asyncio/runners.py", 118, "run"],
    [f"{LIB}/asyncio/base_events.py", 640, "run_until_complete"],
    [f"{LIB}/selectors.py", 468, "select"],
]

POOL: list[list[Any]] = [
    [f"{LIB}/threading.py", 1002, "_bootstrap"],
    [f"{LIB}/threading.py", 1045, "_bootstrap_inner"],
    [f"{LIB}/concurrent/futures/thread.py", 81, "_worker"],
]


def test_library_frames_in_a_row_are_one_line() -> None:
    assert list(folded(LOOP)) == [LOOP[0], "... 3 frames in asyncio", LOOP[-1]]
    assert list(folded([LOOP[0], LOOP[1], LOOP[0]])) == [LOOP[0], LOOP[1], LOOP[0]], "one is a line anyway"
    assert list(folded(LOOP[1:3])) == LOOP[1:3], "the innermost is where it stands"
    assert list(folded([])) == []


def test_of_several_libraries_three_are_named() -> None:
    files = [f"{SITE}/{name}/x.py" for name in ("starlette", "anyio", "starlette", "httpx", "h11")]
    frames = [[file, 1, "f"] for file in [*files, "/srv/app/main.py"]]
    assert next(iter(folded(frames))) == "... 5 frames in starlette, anyio, httpx, ..."


@pytest.mark.parametrize(
    ("file", "library"),
    [
        (f"{LIB}/asyncio/runners.py", "asyncio"),
        (f"{LIB}/selectors.py", "selectors"),
        (f"{SITE}/torch/utils/data/dataloader.py", "torch"),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", "yaml"),
        ("/usr/lib/python311.zip/json/decoder.py", "json"),
        ("<frozen importlib._bootstrap_external>", "importlib"),
        ("uvloop/loop.pyx", "uvloop"),
        ("/build/uvloop/loop.pyx", "uvloop"),
    ],
)
def test_a_library_has_a_name(file: str, library: str) -> None:
    assert library_of(file) == library


def test_a_path_is_one_that_can_be_typed() -> None:
    assert relative("/srv/app/train.py", "/srv/app") == "train.py"
    assert relative("/srv/app/train.py", "/srv/app/") == "train.py"
    assert relative("/srv/apple/train.py", "/srv/app") == "/srv/apple/train.py"
    assert relative("/srv/app/train.py", "/") == relative("/srv/app/train.py", "") == "/srv/app/train.py"
    assert short("/srv/app/train.py", "/srv/app", 40) == "train.py"
    assert short(f"{LIB}/asyncio/runners.py", "/srv/app", 40) == "asyncio/runners.py"
    assert short("/srv/venv/lib/python3.11/site-packages/torch/x.py", "/srv", 40) == "torch/x.py"
    assert short("<string>", "/srv", 40) == "<string>"


def test_what_is_too_long_is_shortened_from_the_left_down_to_its_name() -> None:
    path = "/data/projects/rollouts/trainer/main.py"
    assert short(path, "/srv", 39) == path
    assert short(path, "/srv", 38) == ".../projects/rollouts/trainer/main.py"
    assert short(path, "/srv", 16) == ".../main.py"
    assert short(path, "/srv", 1) == ".../main.py", "a name is never broken"
    assert short("a_long_name.py", "", 3) == "a_long_name.py"


def test_the_innermost_frame_of_the_user_s_comes_before_any_other() -> None:
    assert innermost(LOOP) == LOOP[0]
    assert innermost(POOL) == POOL[-1]
    assert innermost([]) is None


@pytest.mark.parametrize(
    "inside",
    [
        [],
        [[f"{LIB}/queue.py", 171, "get"], [f"{LIB}/threading.py", 320, "wait"]],
    ],
)
@pytest.mark.parametrize(
    "pool",
    [
        [f"{LIB}/concurrent/futures/thread.py", 81, "_worker"],
        [f"{LIB}/multiprocessing/pool.py", 114, "worker"],
        [f"{SITE}/anyio/_backends/_asyncio.py", 962, "run"],
    ],
)
def test_a_thread_of_a_pool_that_waits_for_work_is_idle(pool: list[Any], inside: list[Any]) -> None:
    frames = [*POOL[:2], pool, *inside]
    assert is_idle({"frames": frames})
    assert not is_idle({"frames": [*frames, ["/srv/app/train.py", 3, "load"]]})
    assert not is_idle({"frames": [*frames, [f"{LIB}/socket.py", 706, "readinto"]]})


def test_other_threads_are_not() -> None:
    assert not is_idle({"frames": []})
    assert not is_idle({})
    assert not is_idle({"frames": [[f"{LIB}/threading.py", 320, "wait"]]})
    assert not is_idle({"frames": [["/srv/app/concurrent/futures/thread.py", 81, "_worker"]]}), "the user's"


def test_the_thread_that_the_verdict_is_about_comes_first() -> None:
    main, pool = {"frames": LOOP}, {"frames": POOL}
    loader = {"frames": [*POOL[:2], ["/srv/app/data.py", 15, "read"], [f"{LIB}/socket.py", 7, "recv"]]}
    passed = {"frames": [["/srv/app/data.py", 15, "read"], ["/srv/app/data.py", 30, "log"]]}
    assert guilty_first([main, passed, loader, pool], "data.py:15") == [loader, main, passed, pool]
    assert guilty_first([main, passed], "data.py:15") == [passed, main]
    assert guilty_first([main, pool], "") == [main, pool], "the order is the evidence's own"
    assert guilty_first([pool, main, loader], "") == [main, pool, loader], "but for those that are idle"
    current = main | {"current": True}
    assert guilty_first([pool, loader, current], "") == [current, pool, loader], "in which its loop answered"
    entered = pool | {"entered": True}
    assert guilty_first([current, entered], "") == [entered, current], "whose block it is"
    assert guilty_first([pool], "data.py:15") == [pool]
    assert guilty_first([], "data.py:15") == []


def test_a_line_is_found_by_the_path_or_its_last_part() -> None:
    assert frame_at(LOOP, "train.py:9") == frame_at(LOOP, "/srv/app/train.py:9") == LOOP[0]
    assert frame_at(LOOP, "rain.py:9") is None
    assert frame_at(LOOP, "train.py:8") is None
    assert frame_at(LOOP, "9") is frame_at(LOOP, "") is None
