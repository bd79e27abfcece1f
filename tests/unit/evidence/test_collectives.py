"""The names of collectives: by Python's frames, by native ones, and how they are called."""

from typing import Any

import pytest

from aiotimer.evidence.collectives import is_point_to_point, is_torchs, may_be_called_apart, of_frames

TORCH = "/opt/venv/lib/python3.11/site-packages/torch"
C10D = f"{TORCH}/distributed/distributed_c10d.py"


@pytest.mark.parametrize(
    ("frames", "name"),
    [
        ([[C10D, 3252, "all_reduce"]], "all_reduce"),
        ([[f"{TORCH}/distributed/c10d_logger.py", 83, "wrapper"], [C10D, 5300, "barrier"]], "barrier"),
        ([[C10D, 3500, "all_gather_object"], [C10D, 4200, "all_gather"]], "all_gather_object"),
        (
            [[C10D, 1892, "init_process_group"], [f"{TORCH}/distributed/rendezvous.py", 9, "f"]],
            "init_process_group",
        ),
        ([[f"{TORCH}/distributed/_functional_collectives.py", 161, "all_reduce"]], "all_reduce"),
        ([[f"{TORCH}/autograd/graph.py", 979, "_engine_run_backward"]], "backward"),
        (
            [
                [f"{TORCH}/nn/parallel/distributed.py", 1064, "DistributedDataParallel.__init__"],
                [f"{TORCH}/distributed/utils.py", 286, "_verify_param_shape_across_processes"],
            ],
            "DistributedDataParallel",
        ),
        (
            [
                [f"{TORCH}/nn/modules/module.py", 1, "Module._call_impl"],
                [f"{TORCH}/nn/parallel/distributed.py", 1500, "DistributedDataParallel._pre_forward"],
            ],
            "DistributedDataParallel.forward",
        ),
        ([["mpi4py/MPI.src/Comm.pyx", 9, "Comm.allreduce"]], "MPI allreduce"),
        ([[C10D, 2560, "get_rank"]], ""),
        ([[f"{TORCH}/nn/parallel/distributed.py", 1500, "DistributedDataParallel.forward"]], ""),
        ([["/srv/train.py", 3, "all_reduce"]], ""),
        ([], ""),
    ],
)
def test_a_collective_has_the_name_that_the_program_calls(frames: list[Any], name: str) -> None:
    assert of_frames(frames, ["ncclRecv (libnccl.so.2)"] if name else []) == name


@pytest.mark.parametrize(
    ("native", "name"),
    [
        (["PMPI_Allreduce (libmpi.so.40)", "opal_progress (libopen-pal.so)"], "MPI_Allreduce"),
        (["MPI_Barrier (libmpi.so.40)"], "MPI_Barrier"),
        (["pncclAllReduce (libnccl.so.2)"], "ncclAllReduce"),
        (["c10d::ProcessGroupGloo::allreduce (libtorch_cpu.so)"], "c10d::ProcessGroupGloo::allreduce"),
        (["gloo::(anonymous namespace)::ring (x.so)", "gloo::allreduce (x.so)"], "gloo::allreduce"),
        (["gloo::transport::tcp::UnboundBuffer::waitRecv (x.so)"], "gloo"),
        (["pthread_cond_wait (libc.so.6)", "0x7f3a"], ""),
    ],
)
def test_where_python_has_no_name_native_frames_may(native: list[str], name: str) -> None:
    assert of_frames([], native) == name


@pytest.mark.parametrize(
    "name",
    ["all_reduce", "all_gather_object", "reduce_scatter_tensor", "all_to_all", "backward", "MPI_Allreduce",
     "MPI allreduce", "ncclAllReduce", "ncclReduceScatter", "gloo::allgather",
     "DistributedDataParallel.forward"],
)  # fmt: skip
def test_what_all_ranks_call_alike(name: str) -> None:
    assert not may_be_called_apart(name)
    assert not is_point_to_point(name)


@pytest.mark.parametrize(
    "name",
    ["barrier", "monitored_barrier", "broadcast", "reduce", "gather_object", "scatter", "MPI_Bcast",
     "MPI_Barrier", "ncclBroadcast", "init_process_group", "c10d::Work::wait", "gloo", "recv",
     "MPI_Recv", "MPI_Isend"],
)  # fmt: skip
def test_what_ranks_may_call_apart(name: str) -> None:
    assert may_be_called_apart(name)
    assert is_point_to_point(name) is name.lower().endswith(("recv", "send"))


def test_what_is_torchs_own_wherever_it_lies() -> None:
    assert is_torchs("/opt/pytorch/torch/autograd/graph.py")
    assert not is_torchs("/home/me/torch/train.py")
