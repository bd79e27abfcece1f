"""The fuzzer's targets: a few random bytes in the ordinary suite, libFuzzer in the soak."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=3000))
def test_any_bytes_are_something_or_an_error(target: str, data: bytes) -> None:
    assert TARGETS[target](data) <= len(data) + 2


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_atheris(target: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (the extra `fuzz`)")
    seconds = int(float(os.environ.get("AIOTIMER_SOAK_S", "600")) / len(TARGETS)) + 1
    command = [sys.executable, "-m", "tests.fuzz.targets", target, f"-max_total_time={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
