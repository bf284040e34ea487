"""Data-parallel training of the towers: torchrun starts the processes, and rank 0 does the run.

`torchrun --nproc-per-node 2 --no-python recsys train CONFIG`. Rank 0 broadcasts each call that fits towers, and all
processes execute it. Between calls the other processes wait: only rank 0 reads data, evaluates, prints and writes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


def size() -> int:
    """Number of processes; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without torchrun."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def device() -> torch.device:
    """Device of this process: the GPU of its local rank if CUDA is available, else the CPU. Not run on a GPU yet."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else CPU


def run_distributed(work: Callable[[], None]) -> None:
    """Runs `work` in rank 0. The other processes run the calls that it broadcasts (`broadcast_call`).

    A process that fails ends, and torchrun ends the others.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(days=7),  # the other processes wait while rank 0 reads, evaluates and writes
    )
    if rank() == 0:
        try:
            work()
        except SystemExit as end:  # commands end with it, also when they succeed
            if end.code:
                raise
        broadcast_value(None)
    else:
        while (call := _next_call()) is not None:
            call()
    distributed.destroy_process_group()


def _next_call() -> Any:
    try:
        return broadcast_value(None)
    except RuntimeError:  # rank 0 has ended, and has reported the reason
        distributed.destroy_process_group()
        raise SystemExit(1) from None


def broadcast_call(call: Callable[[], Any]) -> None:
    """Starts the call in the other processes if this is rank 0, which then makes its own call; else does nothing."""
    if size() > 1 and rank() == 0:
        broadcast_value(call)


def broadcast_value(value: Any) -> Any:
    """The value of rank 0, in every process."""
    box = [value]
    if size() > 1:
        distributed.broadcast_object_list(box, src=0, device=CPU)
    return box[0]


def mean(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor that each process has, of one shape. Overwrites `values`."""
    if size() > 1:
        distributed.all_reduce(values)
    return values / size()


def data_parallel(module: nn.Module) -> nn.Module:
    """The module, with gradients averaged over the processes."""
    if size() == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, static_graph=True)


@contextmanager
def process_rng(seed: int) -> Iterator[None]:
    """Context in which torch draws random numbers of this process, seeded with `seed`.

    Outside, all processes draw the same numbers. Has no effect with one process.
    """
    if size() == 1:
        yield
        return
    with torch.random.fork_rng([device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield
