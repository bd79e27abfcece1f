"""The membership of a process: what it is told, else what its innermost launcher says."""

import os

import pytest

from aiotimer._core.membership import SOME, Membership
from aiotimer.client.membership import found_membership, membership

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "4711", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {"SLURM_JOB_ID": "88", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Membership()),
        (TORCHRUN, Membership("4711", 5, 8, 4, 4)),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, Membership("4711", 5, 8, 0, 8)),
        (TORCHRUN | {"LOCAL_RANK": "4"}, Membership("4711", 5, 8, 0, SOME)),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, Membership("4711", 5, 8)),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}, Membership("node1:29500", 5, 8, 4, 4)),
        ({"TORCHELASTIC_RUN_ID": "4711"}, Membership("4711")),
        ({"TORCHELASTIC_RUN_ID": "none"}, Membership()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Membership("", 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "1"}, Membership("", 1)),
        ({"RANK": "of honour"}, Membership()),
        ({"RANK": "²", "WORLD_SIZE": "4"}, Membership()),
        ({"RANK": "9" * 30, "WORLD_SIZE": "4"}, Membership()),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Membership("", 1, 2)),
        (SLURM, Membership("88", 3, 4)),
        (SLURM | {"SLURM_STEP_ID": "2"}, Membership("88.2", 3, 4)),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, Membership("88", 3, 4, 0, 4)),
        (SLURM | {"SLURM_NNODES": "2"}, Membership("88", 3, 4, 0, SOME)),
        (SLURM | TORCHRUN, Membership("4711", 5, 8, 4, 4)),
        (SLURM | {"RANK": "3", "WORLD_SIZE": "4"}, Membership("88", 3, 4)),
        ({"SLURM_JOB_ID": "88"}, Membership()),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-7@1"},
            Membership("prterun-7@1", 1, 4),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Membership("", 1, 4, 0, SOME),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, Membership("", 0, 2, 0, 2)),
        ({"RAY_JOB_ID": "01000000"}, Membership("01000000")),
        (
            {"RAY_JOB_ID": "01", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
            Membership("01 a:7", 1, 2),
        ),
        ({"AIOTIMER_RUN": "mine"}, Membership()),
        (TORCHRUN | {"AIOTIMER_RUN": "mine"}, Membership("mine", 5, 8, 4, 4)),
    ],
)
def test_a_launcher_says_it(environment: dict[str, str], found: Membership) -> None:
    assert found_membership(environment) == found


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (("", None, None), TORCHRUN, Membership("4711", 5, 8, 4, 4)),
        (("mine", None, None), TORCHRUN, Membership("mine", 5, 8, 4, 4)),
        (("mine", 2, 3), TORCHRUN, Membership("mine", 2, 3)),
        (("", 7, None), TORCHRUN, Membership("4711", 7, 8)),
        (("", 9, None), TORCHRUN, Membership("4711", 9)),
        (("", None, 6), TORCHRUN, Membership("4711", 5, 6)),
        (("", None, None), {}, Membership()),
        (("mine", None, None), {}, Membership("mine")),
        (("", None, 2), {}, Membership()),
    ],
)
def test_what_a_program_says_counts_more(
    given: tuple[str, int | None, int | None], environment: dict[str, str], said: Membership
) -> None:
    assert membership(*given, environment) == said


def test_a_rank_of_a_run_without_a_name_is_one_of_its_session() -> None:
    name = f"session {os.getsid(0)}"
    assert membership("", 1, 2, {}) == Membership(name, 1, 2)
    assert membership("", None, None, {"RANK": "1", "WORLD_SIZE": "2"}) == Membership(name, 1, 2)
