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
from typing import Any, NamedTuple

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.ranks import SEVEN

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

PROGRAM = Path(__file__).parent / "programs" / "ddp.py"
SIZE = 4
DRAW = random.Random(int(os.environ.get("AIOTIMER_SEED", "14")))
CASES = [(kind, guarded, DRAW.randrange(SIZE)) for kind in SEVEN for guarded in ("step", "collective")]


class Hang(NamedTuple):
    """What is told of a rank that hangs.

    Attributes:
        why: the reason, in the verdict, after the rank.
        where: of the member, up to the number of the line.
        wait: of the member.
        state: of the member, if nothing of it has expired and nothing is armed.
    """

    why: str
    where: str
    wait: str = ""
    state: str = "connected"


HANGS = {
    "loader": Hang("never arrived: it is in `read_shard` at shards.py:", "in read_shard at shards.py:"),
    "loop": Hang("never arrived: it is spinning in `augment` at ddp.py:", "in augment at ddp.py:"),
    "gil": Hang(
        "never arrived: it is holding the GIL in C, called in `decode` at ddp.py:", "in decode at ddp.py:"
    ),
    "future": Hang("never arrived: it is in `rollout` at ddp.py:", "in rollout at ddp.py:"),
    "stop": Hang(
        "never arrived: it is stopped in `prepare` at ddp.py:", "in prepare at ddp.py:", state="stopped"
    ),
    "swallow": Hang("never arrived: it is idle, asleep in `prefetch` at ddp.py:", "in prefetch at ddp.py:"),
    "other": Hang("in `barrier` at ddp.py:", "in validate at ddp.py:", wait="barrier"),
}

pytestmark = pytest.mark.timeout(1800)


def aiotimer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "aiotimer", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=50 * PATIENCE, check=False,
    )  # fmt: skip


def roll_of(run: str, *arguments: str) -> dict[str, Any]:
    """Run the job, by that name, with a server of its own, which ends it; return what is known of its run."""
    ended = aiotimer(
        "run", "--on-expiry", "run", "--after", "900s", "--kill-after", "60s", "--",
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}",
        str(PROGRAM), *arguments,
    )  # fmt: skip
    told = aiotimer("why", "--run", run, "--json")  # whatever else runs on this machine
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
    monkeypatch.setenv("AIOTIMER_RUN", run := f"{kind}-{guarded}-{os.getpid()}")
    found = roll_of(run, kind, guarded, str(culprit))
    members = [
        (one["rank"], one["state"], one["camp"], one["wait"], one["where"], one["verdict"])
        for one in found["members"]
    ]
    told = found["verdict"], members
    assert found["culprits"] == [culprit], told
    assert [rank for rank, *_ in members] == list(range(SIZE)), told
    hang = HANGS[kind]
    assert f"rank {culprit} {hang.why}" in found["verdict"], told
    if kind == "other":
        assert f"; rank {culprit} is apart from the rest" in found["verdict"], told
    _, state, camp, wait, where, _ = members.pop(culprit)
    assert (camp, wait) == (1, hang.wait), told
    assert where.startswith(hang.where), told
    # The time of all is up in one moment: that of the others, or of the culprit, may come first.
    states = ("expired", "armed", hang.state) if guarded == "step" else (hang.state,)
    assert state in states, told
    # On a busy machine the budget may be over before one of the others has been looked at.
    others = {(camp, wait, where.partition(":")[0]) for _, _, camp, wait, where, _ in members if where}
    assert others == {(0, "backward", "in Trainer.learn at ddp.py")}, told
    assert "expired" in (state, *(other for _, other, *_ in members)), told
