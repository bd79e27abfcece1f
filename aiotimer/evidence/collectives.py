"""A dictionary of collectives: in which one a thread is, by the names of its frames.

The laws of this file:

* It knows names, and reads nothing. That a thread is in a collective does not mean that it waits there.
* A collective is called what the program calls it: ``all_gather_object``, which gathers sizes first, and not
  the ``all_gather`` below it. So ranks at different points inside of one are in the same one.
* What native code calls it is said only where Python has no name for it, and as it stands there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .findings import Frame

BACKWARD = "backward"
"""Gradients are reduced in C++, while they are computed: so it is a collective, and is none."""

_POINT_TO_POINT = "send recv isend irecv batch_isend_irecv send_object_list recv_object_list"

_OF_C10D = frozenset(
    (
        "all_reduce all_reduce_coalesced reduce broadcast broadcast_object_list barrier monitored_barrier "
        "all_gather all_gather_single all_gather_into_tensor _all_gather_base all_gather_coalesced "
        "all_gather_object gather gather_object scatter scatter_object_list reduce_scatter "
        "reduce_scatter_single reduce_scatter_tensor _reduce_scatter_base all_to_all all_to_all_single "
        "all_gather_tensor all_gather_tensor_autograd reduce_scatter_tensor_autograd permute_tensor "
        "wait_tensor init_process_group new_group split_group new_subgroups new_subgroups_by_enumeration "
        f"destroy_process_group {_POINT_TO_POINT}"
    ).split()
)

_PYTHON: dict[str, dict[str, str]] = {
    "torch/distributed/distributed_c10d.py": {},
    "torch/distributed/_functional_collectives.py": {},
    "torch/distributed/utils.py": {
        "_verify_param_shape_across_processes": "DistributedDataParallel",
        "_sync_module_states": "broadcast of a model",
        "_sync_params_and_buffers": "broadcast of a model",
    },
    "torch/nn/parallel/distributed.py": {
        "_pre_forward": "DistributedDataParallel.forward",  # buffers are broadcast, buckets are agreed upon
        "_post_forward": "DistributedDataParallel.forward",
        "_check_global_requires_backward_grad_sync": "join",
    },
    "torch/autograd/graph.py": {"_engine_run_backward": BACKWARD},
    "torch/autograd/__init__.py": {"backward": BACKWARD, "grad": BACKWARD},
}
"""By file and function, what a collective is called; in a file with none, as c10d's functions are."""

_TORCH = re.compile(
    r"(.*/)?torch/(_tensor|_ops|_compile|_dynamo/.*|_functorch/.*|autograd/.*|distributed/.*|nn/.*|optim/.*|utils/.*)"
    r"\.py\Z",
    re.DOTALL,
)

_NATIVE = re.compile(
    r"\bP?(MPI_[A-Z]\w+)"  # PMPI_Allreduce is what a profiler's MPI_Allreduce calls
    r"|\bp?(nccl[A-Z]\w+)"
    r"|\b(gloo::(?!transport\b)\w+)"
    r"|\b(c10d::(?:\w+::)*\w+)"
    r"|\b(gloo)::transport\b"
)
_MPI4PY = re.compile(r"mpi4py/.*\.(pyx|pxi)\Z")

_BY_ALL_ALIKE = re.compile(
    r"(MPI[_ ]I?|nccl|gloo::)?(all_?(reduce|gather|to_?all)|reduce_?scatter)\w*"
    rf"|{BACKWARD}|DistributedDataParallel\S*",
    re.IGNORECASE,
)
_POINT_TO_POINT_OF_MPI = re.compile(r"(MPI[_ ]|nccl)(\w*send|\w*recv)\w*", re.IGNORECASE)


def is_torchs(file: str) -> bool:
    """Whether a file is one of torch's own, wherever that lies: it may be no library by its path."""
    return _TORCH.match(file) is not None


def of_frames(frames: Sequence[Frame], native: Collection[str] = ()) -> str:
    """Return in which collective a thread is, "" if it is in none that is known.

    Args:
        frames: below the innermost one of the user's code, the outermost first.
        native: the C functions on top, the outermost first, as far as they are known.
    """
    for file, _line, function in frames:
        last = function.rpartition(".")[2]  # some probes know the class, and some do not
        if _MPI4PY.search(file):
            return f"MPI {last}"
        for name, known in _PYTHON.items():
            if file.endswith(name) and (found := known.get(last) or ("" if known else _of_c10d(last))):
                return found
    found_native = (_NATIVE.search(name) for name in native)
    return next((next(filter(None, one.groups())) for one in found_native if one), "")


def _of_c10d(function: str) -> str:
    return function if function in _OF_C10D else ""


def is_point_to_point(name: str) -> bool:
    """Whether two ranks take part in it, so that others are elsewhere as they should be."""
    return name in _POINT_TO_POINT.split() or _POINT_TO_POINT_OF_MPI.fullmatch(name) is not None


def may_be_called_apart(name: str) -> bool:
    """Whether ranks call it at different lines in sound programs, as ``if rank == 0: ...; barrier()``.

    So it is of whatever one rank has another part in, and of what is not known well.
    """
    return _BY_ALL_ALIKE.fullmatch(name) is None
