"""What the environment tells a process."""

import pytest

from aiotimer._linux.paths import observes


@pytest.mark.parametrize(("value", "means"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_can_ask_to_observe(
    monkeypatch: pytest.MonkeyPatch, value: str | None, means: bool
) -> None:
    monkeypatch.delenv("AIOTIMER_OBSERVE", raising=False)
    if value is not None:
        monkeypatch.setenv("AIOTIMER_OBSERVE", value)
    assert observes() is means
