"""The page docs/how-to/torchrun.md: a DDP job under torchrun, one rank of which hangs."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import Block, assert_shown, block_with, workplace
from tests.fakes.services import service_environment

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

PAGE = "docs/how-to/torchrun.md"
KILLED = block_with(PAGE, "aiotimer run -- torchrun")
ENDED = block_with(PAGE, "aiotimer run --reap")
PRIVATE = block_with(PAGE, "aiotimer why --run")

NO_CLUSTER = """
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/none
NodeName=node
PartitionName=all Nodes=node Default=YES
MessageTimeout=1
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with the page's files."""
    with workplace(PAGE) as directory:
        yield directory


def run(commands: list[str], directory: Path) -> str:
    """Run commands to their end; return what they have printed."""
    done = subprocess.run(
        ["bash", "-ec", "\n".join(commands)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=directory, env=service_environment(directory) | {"OMP_NUM_THREADS": "1"},
        timeout=20 * PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("block", "kept"), [(KILLED, {20, 25}), (ENDED, {25})], ids=["killed", "saves first"]
)
def test_a_hung_rank_is_reaped_and_the_job_goes_on_and_ends(
    block: Block, kept: set[int], directory: Path
) -> None:
    """Who is only killed may be quicker to save at the SIGTERM of torchrun than to die."""
    printed = printed_as_shown(block, directory)
    assert_gone_on_and_ended(printed, kept)
    told = " ".join(re.findall(r"aiotimer: reaped .*", printed))
    assert "in next_batch" in told, printed
    assert "rank 1" in told, printed


def test_with_a_private_server_the_hung_rank_is_reaped_and_the_job_goes_on_and_ends(directory: Path) -> None:
    printed = printed_as_shown(PRIVATE, directory)
    assert_gone_on_and_ended(printed, {20, 25})
    found = json.loads(run(["aiotimer why --run --json"], directory))
    assert found["culprits"] == [1], found["verdict"]
    assert [(one["rank"], one["state"]) for one in found["members"]] == [(0, "expired"), (1, "expired")]
    assert all(one["evidence"]["stacks"] for one in found["members"])


def printed_as_shown(block: Block, directory: Path) -> str:
    """Run the commands of a block; return what they have printed, which is what the page shows."""
    printed = run(block.commands, directory)
    assert_shown(block.output, printed, directory, f"{PAGE}:{block.line + 1}")
    return printed


def assert_gone_on_and_ended(printed: str, kept: set[int]) -> None:
    """Check that both ranks went on after one of these numbers of steps, and came to their end."""
    begun = dict(re.findall(r"rank (\d) goes on after (\d+) steps", printed))
    assert set(begun) == {"0", "1"}
    assert {int(steps) for steps in begun.values()} <= kept
    assert sorted(re.findall(r"rank (\d) has done (\d+) steps", printed)) == [("0", "60"), ("1", "60")]


def test_the_batch_file_is_what_its_parsers_take(directory: Path) -> None:
    subprocess.run(["bash", "-n", "ddp.sbatch"], cwd=directory, check=True)
    options = re.findall(r"^#SBATCH (--[\w-]+)=(\S+)$", (directory / "ddp.sbatch").read_text(), re.MULTILINE)
    assert len(options) == 6
    if shutil.which("sbatch") is None:
        pytest.skip("sbatch is not installed: apt-get install slurm-client")
    # Without a cluster's configuration it reads its options, and then stops.
    empty = directory / "slurm.conf"
    empty.write_text(NO_CLUSTER)
    done = subprocess.run(
        ["sbatch", "--test-only", "ddp.sbatch"], cwd=directory, env=os.environ | {"SLURM_CONF": str(empty)},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stderr == "allocation failure: Unable to contact slurm controller (connect failure)\n"
