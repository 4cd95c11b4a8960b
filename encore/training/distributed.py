"""The process group of a training run, and the few collective operations that training needs."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from encore.errors import EncoreError

T = TypeVar("T")


class AgreedError(EncoreError):
    """An error that is raised on all ranks, so that it is enough if one of them prints it."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the number of processes, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    @contextmanager
    def agree(self) -> Iterator[None]:
        """A block that succeeds on all ranks or on none; the block itself must hold no collective operation.

        Raises:
            AgreedError: the block raised an EncoreError on some rank: that of the lowest such rank, on every rank.
        """
        message = None
        try:
            yield
        except EncoreError as error:
            message = str(error)
        failed = [other for other in self.gather(message) if other is not None]
        if failed:
            raise AgreedError(failed[0])

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in order of rank."""
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, which alone calls it, on all ranks."""
        box: list[Any] = [function() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def max_async(self, value: int) -> Callable[[], int]:
        """Begins to ask for the largest `value` of all ranks; the function that is returned waits for the answer."""
        largest = torch.tensor([value], device=self.device)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

        def answer() -> int:
            work.wait()
            return int(largest)

        return answer

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        values = values.clone()
        dist.all_reduce(values)
        return values


@contextmanager
def start() -> Iterator[Ranks]:
    """Joins the process group that the environment describes: torchrun's variables, or Slurm's under srun.

    NCCL where there are GPUs, gloo elsewhere. Under srun the caller's script exports MASTER_ADDR and MASTER_PORT. The
    group is left at the end of the block.

    Raises:
        EncoreError: the environment describes none.
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
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def share_cores() -> None:
    """Divides the cores among the ranks of this machine, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1")
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def end_process(function: Callable[[], object]) -> NoReturn:
    """Calls `function`, the whole of a rank, and ends the process with its exit status.

    The interpreter is not torn down: a thread of gloo's releases the tensors of a finished operation some time after
    it, and if that falls into the teardown, it cannot take the interpreter's lock any more and aborts the process
    (torch 2.14).
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
