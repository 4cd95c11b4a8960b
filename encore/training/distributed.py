"""Ranks: the process group, and the few collective operations that training needs."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from encore.errors import EncoreError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"


def start() -> Ranks:
    """Joins the process group that the environment describes: torchrun's variables, or Slurm's under srun.

    NCCL where there are GPUs, gloo elsewhere. Under srun the caller's script exports MASTER_ADDR and MASTER_PORT.
    """
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        for name, slurm in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"), ("LOCAL_RANK", "LOCALID")):
            os.environ[name] = os.environ[f"SLURM_{slurm}"]
    if "RANK" not in os.environ:
        raise EncoreError("train_worker.py is one rank of several: start it with train_ddp.py, torchrun or srun")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_process(function: Callable[[], object]) -> NoReturn:
    """Calls `function`, the whole of a rank, and ends the process with its exit status.

    The interpreter is not torn down. A thread of gloo's drops the tensors of a finished operation some time after it;
    if that falls into the teardown, it can't take the interpreter's lock any more and aborts the process (torch 2.14).
    """
    status = 0
    try:
        function()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def together(function: Callable[[], T]) -> T:
    """Calls `function` on every rank; if it raises EncoreError on any, the first rank's is raised on all."""
    result: Any = None
    message = None
    try:
        result = function()
    except EncoreError as error:
        message = str(error)
    failed = [other for other in gather(message) if other is not None]
    if failed:
        raise EncoreError(failed[0])
    return result


def gather(value: Any) -> list[Any]:
    """Every rank's `value`, in order of rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, the only one to call it, on all ranks."""
    box: list[Any] = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks."""
    values = values.clone()
    dist.all_reduce(values)
    return values
