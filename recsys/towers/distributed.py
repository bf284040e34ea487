"""Several processes that fit towers together: torchrun starts them, the first does the run, the others help.

`torchrun --nproc-per-node 2 --no-python recsys train CONFIG`. Whatever the first process fits, it hands to the others
as a call; they wait for the next one and neither read data, judge, print nor write.
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
    """How many processes there are; 1 where torchrun started none."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first is 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def device() -> torch.device:
    """Where this process computes: on a graphics card of its own where there is one. Not run on a GPU yet."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else CPU


def run_distributed(work: Callable[[], None]) -> None:
    """Do `work` in the first process; in every other one what it calls for by `broadcast_call`, until it is done.

    A failure in any process ends that one, and torchrun ends the others.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(days=7),  # the others wait as long as the first one reads, judges and writes
    )
    if rank() == 0:
        try:
            work()
        except SystemExit as end:  # how commands end, well or not
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
    except RuntimeError:  # the first process is gone, and has said why
        distributed.destroy_process_group()
        raise SystemExit(1) from None


def broadcast_call(call: Callable[[], Any]) -> None:
    """Let the other processes begin a call, where this is the first one, which goes on with its own."""
    if size() > 1 and rank() == 0:
        broadcast_value(call)


def broadcast_value(value: Any) -> Any:
    """The first process's value, in every process."""
    box = [value]
    if size() > 1:
        distributed.broadcast_object_list(box, src=0, device=CPU)
    return box[0]


def mean(values: Tensor) -> Tensor:
    """Mean over the processes, of a tensor that each has one of."""
    if size() > 1:
        distributed.all_reduce(values)
    return values / size()


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients that are the mean over the processes."""
    if size() == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, static_graph=True)


@contextmanager
def process_rng(seed: int) -> Iterator[None]:
    """Random numbers of this process alone; outside of this all processes draw the same ones."""
    if size() == 1:
        yield
        return
    with torch.random.fork_rng([device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield
