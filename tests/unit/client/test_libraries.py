"""Where this process's interpreter has its libraries."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from typing import Any

import msgspec
import pytest

import aiotimer
from aiotimer.client.libraries import LONGEST, MOST, library_paths
from aiotimer.evidence.verdict import is_users

ZIP = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"


def test_they_are_those_of_sysconfig_and_ours() -> None:
    there = library_paths()
    for name in ("stdlib", "purelib", "platlib"):
        assert sysconfig.get_path(name) + "/" in there
    for file in (zipfile.__file__, msgspec.__file__, aiotimer.__file__):
        assert not is_users(file, there), file
    assert is_users(__file__, there)


@pytest.mark.parametrize("name", ["site-packages", "dist-packages", ZIP])
def test_directories_of_packages_on_the_path_are_libraries(name: str) -> None:
    there = library_paths(["", "/srv/app", f"/srv/{name}"])
    assert f"/srv/{name}/" in there
    assert not {"/", "/srv/app/"} & set(there)


def test_a_frozen_program_has_no_directories() -> None:
    there = library_paths(frozen=True)
    assert not is_users("asyncio/runners.py", there)
    assert is_users("app.py", there)


@pytest.mark.parametrize("path", [7, b"/srv", "/srv/\udcff/site-packages"])
def test_whatever_is_on_the_path_nothing_is_raised(path: Any) -> None:
    assert isinstance(library_paths([path]), tuple)


def test_no_more_is_said_than_there_is_room_for() -> None:
    paths = [f"/srv/{number}/site-packages" for number in range(100)]
    there = library_paths(["/" + "x" * LONGEST + "/site-packages", *paths])
    assert len(there) == MOST
    assert all(len(path) <= LONGEST for path in there)
