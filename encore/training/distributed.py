"""The process group of a training run, and the few collective operations that training needs."""

from __future__ import annotations

import atexit
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from encore.errors import EncoreError, RestartError
from encore.training import slurm
from encore.training.watch import Place, Watch

DIVERGED = 3  # exit status of a run that ended because its steps were not finite
NO_LIMIT = timedelta(days=7)  # of collective operations; the watch is the one that judges
T = TypeVar("T")


class AgreedError(EncoreError):
    """An error that is raised on all ranks, so that it is enough if one of them prints it.

    Attributes:
        restart: whether a new start mends it (`RestartError`).
    """

    restart = False


class LostRank(Exception):
    """Another rank has gone away. It may be started again, so this is nothing that the user has to put right."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the number of processes, and its device."""

    rank: int
    world_size: int
    device: torch.device
    watch: Watch | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    def at(self, phase: str, step: int | None = None, waits: bool = False) -> None:
        """Tells the watch where this rank stands now (`Place`)."""
        if self.watch is not None:
            self.watch.at(phase, step, waits)

    def move(self) -> None:
        """Tells the watch that this rank is still where it was, but has got on."""
        if self.watch is not None:
            self.watch.move()

    def waiting(self) -> AbstractContextManager[None]:
        """A block in which this rank waits for others."""
        return nullcontext() if self.watch is None else self.watch.waiting()

    @contextmanager
    def agree(self) -> Iterator[None]:
        """A block that succeeds on all ranks or on none; the block itself must hold no collective operation.

        Raises:
            AgreedError: the block raised an EncoreError on some rank: that of the lowest such rank, on every rank.
        """
        said = None
        try:
            yield
        except EncoreError as error:
            said = str(error), isinstance(error, RestartError)
        failed = [other for other in self.gather(said) if other is not None]
        if failed:
            agreed = AgreedError(failed[0][0])
            agreed.restart = failed[0][1]
            raise agreed

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in order of rank."""
        values = [None] * self.world_size
        with self.waiting():
            dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, which alone calls it, on all ranks."""
        box: list[Any] = [function() if self.is_main else None]
        with self.waiting():
            dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def max_async(self, value: int) -> Callable[[], int]:
        """Begins to ask for the largest `value` of all ranks; the function that is returned waits for the answer."""
        largest = torch.tensor([value], device=self.device)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

        def answer() -> int:
            with self.waiting():
                work.wait()
                return int(largest)

        return answer

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        values = values.clone()
        with self.waiting():
            dist.all_reduce(values)
        return values


@contextmanager
def start(timeout_minutes: float) -> Iterator[Ranks]:
    """Joins the process group that the environment describes: torchrun's variables, or SLURM's under srun.

    NCCL where there are GPUs, gloo elsewhere. The group is left at the end of the block.

    Args:
        timeout_minutes: after which a group in which a rank hangs is ended (`Watch`). Collective operations themselves
            have no limit of use: while one rank reads a large data set, others wait for it.

    Raises:
        EncoreError: the environment describes none.
        LostRank: another rank has gone away.
    """
    slurm.set_rank()
    if "RANK" not in os.environ:
        raise EncoreError("train_worker.py is one rank of several: start it with train_ddp.py, torchrun or srun")
    place = Place("starting")
    try:
        limit = timedelta(minutes=timeout_minutes)
        store, rank, world_size = next(dist.rendezvous("env://", timeout=limit))
        # Should two jobs ever come to share a store, they do not read each other's keys.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RUN_ID", ""), store)
        with Watch(dist.PrefixStore("watch", store), rank, world_size, limit.total_seconds()) as watch:
            try:
                device = join(store, rank, world_size)
                yield Ranks(rank, world_size, device, watch)
            finally:
                place = watch.place
                if dist.is_initialized():
                    dist.destroy_process_group()
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        reason = str(error).partition("\n")[0].rpartition("] ")[2][:120]  # without the place in gloo's code
        lost = f"rank {os.environ['RANK']} has lost the connection to another rank ({reason}), at {place}"
        raise LostRank(lost) from error


def join(store: dist.Store, rank: int, world_size: int) -> torch.device:
    """Makes the process group, and returns the device that this rank works on."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=NO_LIMIT)
        return torch.device("cpu")
    # srun may show each rank only its own.
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world_size, timeout=NO_LIMIT, device_id=device)
    return device


def lost_connection(error: RuntimeError) -> bool:
    """Whether an error says that another rank has gone away: gloo's is a RuntimeError as any other."""
    return isinstance(error, dist.DistError) or re.search(r"\bgloo\b|Connection closed by peer", str(error)) is not None


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
