"""The membership of this process in a run: what ``configure`` said, else what its launcher says.

The laws of this file: what a launcher says is found in variables, which children inherit; of several
launchers the innermost counts, which is the one that gave this process its rank; what is odd is no error, and
is not known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from .._core.membership import GROUP_LENGTH, MOST, SOME, Membership, check
from .._linux.paths import RUN_VARIABLES

_given: tuple[str, int | None, int | None] = ("", None, None)
"""What ``configure(group=..., rank=..., size=...)`` said."""


class _Launcher(NamedTuple):
    """The variables in which a launcher says who a process is.

    Attributes:
        rank, size: its number and how many there are.
        local_rank, here: its number on its node and how many there are on it; "": it does not say.
        nodes: on how many nodes; "": it does not say.
        consecutive: the ranks on one node are.
    """

    rank: str
    size: str
    local_rank: str = ""
    here: str = ""
    nodes: tuple[str, ...] = ()
    consecutive: bool = False


_LAUNCHERS = (
    _Launcher(
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", consecutive=True
    ),  # torchrun, Ray Train
    _Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", here="OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Launcher("PMI_RANK", "PMI_SIZE", here="MPI_LOCALNRANKS"),
    _Launcher("SLURM_PROCID", "SLURM_NTASKS", nodes=("SLURM_STEP_NUM_NODES", "SLURM_NNODES")),
    _Launcher("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)
"""The innermost first: torchrun is started by the others, and says so itself; srun starts mpirun."""


def give(group: str = "", rank: int | None = None, size: int | None = None) -> None:
    """Let this process say that, from the next connection on; what is not given, as it is found.

    Raises:
        TypeError, ValueError: that cannot be right.
    """
    global _given
    check(group, rank, size)
    _given = group, rank, size


def given_rank() -> dict[str, str]:
    """Return what it was let say of its rank and of how many there are, as torchrun would say that."""
    said = {"RANK": _given[1], "WORLD_SIZE": _given[2]}
    return {variable: str(value) for variable, value in said.items() if value is not None}


def membership_of_this_process() -> Membership:
    """Return it; without a group if it belongs to no run."""
    return membership(*_given, os.environ)


def membership(group: str, rank: int | None, size: int | None, environment: Mapping[str, str]) -> Membership:
    """Return what a process says of itself.

    Args:
        group, rank, size: as ``configure`` has been told.
        environment: its variables.
    """
    found = found_membership(environment)
    if rank is None and size is None:
        known = found
    else:
        known = Membership(
            found.group, found.rank if rank is None else rank, found.size if size is None else size
        )
    group = group or known.group
    if not group and known.rank >= 0:
        group = f"session {os.getsid(0)}"  # whoever started them all says no more
    return known._replace(group=group).checked() if group else Membership()


def found_membership(environment: Mapping[str, str]) -> Membership:
    """Return what a launcher says: a rank, if it is one, and the run's id if there is one in its words."""
    launcher = next((one for one in _LAUNCHERS if _number(environment, one.rank) >= 0), None)
    group = _group(environment, launcher).encode(errors="replace").decode()[:GROUP_LENGTH]
    if launcher is None:
        return Membership(group)
    rank, size = _number(environment, launcher.rank), max(0, _number(environment, launcher.size))
    return Membership(group, rank, size, *_here(environment, launcher, rank, size)).checked()


def _here(environment: Mapping[str, str], launcher: _Launcher, rank: int, size: int) -> tuple[int, int]:
    """Return the first rank on this node, and how many there are; see ``Membership``."""
    here, nodes = (
        _number(environment, launcher.here),
        max([_number(environment, n) for n in launcher.nodes] + [-1]),
    )
    if here == size or nodes == 1:
        return 0, size
    if here < 0 and nodes < 0:
        return 0, 0
    local = _number(environment, launcher.local_rank)
    return (rank - local, here) if launcher.consecutive and 0 <= local < here else (0, SOME)


def _group(environment: Mapping[str, str], launcher: _Launcher | None) -> str:
    """Return the id of the run: the one that people know it by, if it is the only one of its kind."""
    named = environment.get(RUN_VARIABLES[0], "")
    elastic = environment.get("TORCHELASTIC_RUN_ID", "")
    if launcher is not None and named:
        return named
    if elastic and elastic != "none":  # which it is of every torchrun that was not given one
        return elastic
    port = environment.get("MASTER_PORT", "")
    meets_at = f"{environment.get('MASTER_ADDR', '')}:{port}" if port else ""
    if ray := environment.get("RAY_JOB_ID", ""):
        return f"{ray} {meets_at}".strip()
    if launcher is None:
        return ""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    if job:
        return f"{job}.{step}" if step else job
    return environment.get("PMIX_NAMESPACE", "") or meets_at


def _number(environment: Mapping[str, str], variable: str) -> int:
    """Return the number in a variable, -1 if there is none."""
    text = environment.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() and int(text) < MOST else -1
