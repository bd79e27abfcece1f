"""Jobs on two nodes: two agents of torchrun, a server beside each, and the evidence of both put together.

The laws of this file:

* The script that a node is started with is that of the page docs/how-to/torchrun.md.
* Which node is the first is the agents' affair where both have one address: no test expects it there. Two
  nodes with addresses of their own are in their order: ranks 2 and 3 are on the second one.
* Nodes that are namespaces have one clock. What is said of it is how far apart the ranks entered a block, and
  an estimate of that: how good it is depends on the machine, and no test expects it to be.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.nodes import DEVICE, NAMES, two_nodes
from tests.fakes.pages import workplace
from tests.fakes.services import Session, service_environment

torch_distributed = pytest.importorskip(
    "torch.distributed", reason="torch is not installed: make test-integrations"
)

PAGE = "docs/how-to/torchrun.md"
PROGRAM = Path(__file__).parent / "programs" / "ddp.py"
NO_SHARED_STORE = "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1\n"
LADDER, APART = "dump,URG:20,KILL", 20.0
LONG = 40 * PATIENCE

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with the page's files."""
    with workplace(PAGE) as directory:
        yield directory


def environment(directory: Path, **more: str) -> dict[str, str]:
    return service_environment(directory) | {"OMP_NUM_THREADS": "1"} | more


def script(directory: Path, *changes: tuple[str, str]) -> str:
    """Return the page's script, with each text replaced that is another one here."""
    text = (directory / "node.sh").read_text()
    for shown, here in changes:
        assert text.count(shown) == 1, f"{shown!r} is not in\n{text}"
        text = text.replace(shown, here)
    return text


def told(directory: Path, *nodes: str) -> dict[str, Any]:
    """Return what the evidence of the nodes says together."""
    where = [f"evidence/{node}" for node in nodes]
    done = subprocess.run(
        [directory / ".bin" / "aiotimer", "why", "--run", "job-7", *where, "--json"],
        cwd=directory, env=environment(directory), capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ended(agents: list[Session]) -> list[int]:
    """Wait until all agents have ended; return how."""
    return [agent.wait(LONG) for agent in agents]


def assert_restarted_and_done(agents: list[Session], ranks: int) -> None:
    """Check that each rank went on from the checkpoint, and came to its end."""
    printed = "\n".join(agent.output for agent in agents)
    begun = dict(re.findall(r"rank (\d) goes on after (\d+) steps", printed))
    assert set(begun) == {str(rank) for rank in range(ranks)}, printed
    assert {int(steps) for steps in begun.values()} <= {20, 25}, printed
    done = sorted(re.findall(r"rank (\d) has done (\d+) steps", printed))
    assert done == [(str(rank), "60") for rank in range(ranks)], printed


def assert_named(found: dict[str, Any], ranks: int) -> None:
    """Check that of the page's job, rank 1 is named as the culprit, and that there is evidence of all."""
    assert found["culprits"] == [1], found["verdict"]
    assert "rank 1 never arrived: it is in `next_batch` at ddp.py:" in found["verdict"]
    assert [one["rank"] for one in found["members"]] == list(range(ranks))
    assert all(one["evidence"]["stacks"] for one in found["members"]), found["members"]


def on_this_one(directory: Path, *changes: tuple[str, str]) -> list[Session]:
    """Start the page's script twice on this machine; return the agents when they have ended well."""
    # Where they meet is a store of ours: so nobody else can have its port.
    store = torch_distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meets = f"127.0.0.1:{store.port} --rdzv-conf=is_host=false --local-addr=127.0.0.1"
    text = script(directory, ("node1:29500", meets), *changes)
    with ExitStack() as stack:
        agents = [
            stack.enter_context(Session(["bash", "-c", text], directory, environment(directory, NODE=name)))
            for name in NAMES
        ]
        statuses = ended(agents)
        assert statuses == [0, 0], "\n\n".join(agent.output for agent in agents)
    return agents


@pytest.mark.parametrize("each", [1, 2])
def test_two_agents_restart_from_the_checkpoint_and_end(each: int, directory: Path) -> None:
    agents = on_this_one(
        directory, ("--nproc-per-node=2", f"--nproc-per-node={each}"), ("$HOSTNAME", "$NODE")
    )
    assert_restarted_and_done(agents, 2 * each)
    found = told(directory, *NAMES)
    assert_named(found, 2 * each)
    assert found["clocks"] == f"the servers of {os.uname().nodename} have one clock"


def test_ranks_that_have_a_private_server_each_restart_from_the_checkpoint_and_end(directory: Path) -> None:
    """There is no ``aiotimer run``: a rank without siblings starts a server that nobody else finds."""
    program = directory / "ddp.py"
    shown = "aiotimer.configure()"
    assert program.read_text().count(shown) == 1
    program.write_text(program.read_text().replace(shown, f'aiotimer.configure(reap="{LADDER}")'))
    run = f'aiotimer run --reap "{LADDER}" --evidence-dir "evidence/$HOSTNAME" -- \\\n    '
    agents = on_this_one(directory, ("--nproc-per-node=2", "--nproc-per-node=1"), (run, ""))
    assert_restarted_and_done(agents, 2)
    found = told(directory)
    assert_named(found, 2)
    assert len(found["expired"]) == 2


def on_both(text: str, directory: Path) -> tuple[list[int], list[Session]]:
    """Start a script on two nodes, and wait for its end; return how it ended, and what has run."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes())
        agents = []
        for node in nodes:
            runtime = directory / f"runtime-{node.name}"
            runtime.mkdir(mode=0o700)
            env = environment(directory, XDG_RUNTIME_DIR=str(runtime), GLOO_SOCKET_IFNAME=DEVICE)
            agents.append(stack.enter_context(node.start(text, directory, env)))
        return ended(agents), agents


def test_two_nodes_restart_from_the_checkpoint_and_end(directory: Path) -> None:
    statuses, agents = on_both("bash node.sh", directory)
    assert statuses == [0, 0], "\n\n".join(agent.output for agent in agents)
    assert_restarted_and_done(agents, 4)
    assert_named(told(directory, *NAMES), 4)


@pytest.mark.parametrize(
    ("kind", "culprit", "says"),
    [
        ("loader", 3, "in `read_shard` at shards.py:"),
        ("gil", 2, "in `decode` at ddp.py:"),
        ("other", 3, "in `barrier` at ddp.py:"),
    ],
)
def test_the_culprit_of_the_second_node_is_named_with_it(
    kind: str, culprit: int, says: str, directory: Path
) -> None:
    """Nobody is restarted: what is left is what was found out, and the agents' store serves."""
    job = f"{PROGRAM} {kind} collective {culprit}"
    text = script(directory, ("--max-restarts=2", "--max-restarts=0"), ("ddp.py", job), (NO_SHARED_STORE, ""))
    statuses, agents = on_both(text, directory)
    printed = "\n\n".join(agent.output for agent in agents)
    assert statuses == [1, 1], printed
    found = told(directory, *NAMES)
    assert found["culprits"] == [culprit], (found["verdict"], printed)
    assert f"rank {culprit}" in found["verdict"]
    assert says in found["verdict"]
    members = {one["rank"]: one["node"] for one in found["members"]}
    assert members == {0: "node1", 1: "node1", 2: "node2", 3: "node2"}
    expired = [one["rank"] for one in found["members"] if one["state"] == "expired"]
    assert expired == [rank for rank in range(4) if rank != culprit]
    assert_compared(found["clocks"])


def assert_compared(clocks: str) -> None:
    """Check that the clocks of both nodes are compared by a block, and that the error is stated."""
    said = re.fullmatch(
        r"(node\d)'s clock (?:agrees with|is (\d+\.\d+) s (?:ahead of|behind)) (node\d)'s,? "
        r"to within about (\d+\.\d+) s, by when both entered collective",
        clocks,
    )
    assert said is not None, clocks
    assert {said[1], said[3]} == set(NAMES)
    assert float(said[4]) > 0.0
    assert float(said[2] or 0.0) < APART, "both had expired before either was killed"
