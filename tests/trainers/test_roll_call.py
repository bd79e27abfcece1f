"""The roll of a real job: four ranks of DistributedDataParallel under torchrun, one of which hangs.

The laws of this file:

* Which rank hangs is drawn, by a generator with a seed: every run has the same cases, and no rank is special.
  ``AIOTIMER_SEED`` sets another; it is not drawn, for processes that share the tests have to agree on them.
* What counts is what a user is shown: the one object of ``aiotimer why --run --json``.
* The limit that expires is one of a step that all ranks have begun: they have warmed up together.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.ranks import SEVEN

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

PROGRAM = Path(__file__).parent / "programs" / "ddp.py"
SIZE = 4
DRAW = random.Random(int(os.environ.get("AIOTIMER_SEED", "14")))
CASES = [(kind, guarded, DRAW.randrange(SIZE)) for kind in SEVEN for guarded in ("step", "collective")]

SAYS = {
    "loader": "in `read_shard` at shards.py:",
    "loop": "in `augment` at ddp.py:",
    "gil": "in `decode` at ddp.py:",
    "future": "in `rollout` at ddp.py:",
    "stop": "is stopped",
    "swallow": "in `prefetch` at ddp.py:",
    "other": "in `barrier` at ddp.py:",
}
"""What the verdict has of the rank that hangs, beside its number."""

pytestmark = pytest.mark.timeout(1800)


def aiotimer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "aiotimer", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=50 * PATIENCE, check=False,
    )  # fmt: skip


def roll_of(*arguments: str) -> dict[str, Any]:
    """Run the job with a server of its own, which ends it; return what is known of its run."""
    ended = aiotimer(
        "run", "--on-expiry", "run", "--after", "900s", "--kill-after", "60s", "--",
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}",
        str(PROGRAM), *arguments,
    )  # fmt: skip
    told = aiotimer("why", "--run", "--json")
    assert told.returncode == 0, ended.stdout + told.stdout
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "guarded", "culprit"), CASES, ids=[f"{kind}-{guarded}-{rank}" for kind, guarded, rank in CASES]
)
def test_the_rank_that_hangs_is_named_and_nobody_else(
    kind: str, guarded: str, culprit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = roll_of(kind, guarded, str(culprit))
    members = [
        (one["rank"], one["state"], one["camp"], one["wait"], one["where"], one["verdict"])
        for one in found["members"]
    ]
    assert found["culprits"] == [culprit], (found["verdict"], members)
    assert f"rank {culprit}" in found["verdict"]
    assert SAYS[kind] in found["verdict"]
    assert [rank for rank, *_ in members] == list(range(SIZE))
