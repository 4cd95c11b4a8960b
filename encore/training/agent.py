"""torch's elastic agent, with what a training run needs to be told and what a retry cannot help."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, SubprocessContext

from encore.config import cli
from encore.training.distributed import DIVERGED

FINAL = {cli.USER_ERROR, DIVERGED}  # exit statuses of ranks that would end in the same way again
STOPPED = {128 + signal.SIGTERM, 128 + signal.SIGINT}  # of ranks that have saved because one of them got a signal
# Seconds that ranks get to finish their step and save. SLURM gives the job 120 after the signal (run_train.sh).
SHUTDOWN = 100


class Machines(NamedTuple):
    """How many machines a job may have, and HOST:PORT where they meet."""

    least: int
    most: int
    endpoint: str

    @property
    def may_change(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most} machines" if self.may_change else counted(self.most, "machine")


class Signals:
    """SIGTERM, SIGINT, SIGHUP and SIGQUIT become torch's `SignalException`; not while workers are being started.

    Between the start of the first worker and the return of the function that starts them, the agent does not yet know
    of them, and could not end them. torch's own handlers do not look out for that.
    """

    def __init__(self) -> None:
        self.number = 0
        self.held = False
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # none of its own handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._note)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A block during which no signal is raised; one that has come is raised after it."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.number:
            self._raise()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            os._exit(128 + number)  # the second Ctrl-C: ranks die with their launcher
        if not self.number:
            self.number = number
            if not self.held:
                self._raise()

    def _raise(self) -> None:
        raise SignalException(f"process {os.getpid()} got a signal", signal.Signals(self.number))


class Agent(LocalElasticAgent):
    """Adds to torch's agent, all of whose decisions about membership stay:

    - what a retry cannot help ends the job, on all machines;
    - ranks that stopped because another machine's were told to are not counted as failed;
    - a stopped (SIGSTOP) rank is continued, so that it sees the signal that is to end it;
    - a line on standard error for every machine that joins or leaves, and for every restart.
    """

    def __init__(self, machines: Machines, signals: Signals, spec: WorkerSpec):
        super().__init__(spec, DefaultLogsSpecs(), shutdown_timeout=SHUTDOWN)
        self.machines, self.signals = machines, signals

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with self.signals.hold():
            started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        before: Any = worker_group.group_world_size
        if self.machines.most > 1 and before is not None:
            say(f"waiting at {self.machines.endpoint} for {self.machines}")
        super()._rendezvous(worker_group)
        now, ranks = worker_group.group_world_size, worker_group.workers[0].world_size
        if self.machines.most > 1 and now is not None:
            change = ""
            if before not in (None, now):
                change = f"{counted(abs(now - before), 'machine')} {'joined' if now > before else 'left'}: "
            say(f"{change}training on {counted(now, 'machine')} with {counted(ranks, 'rank')}")

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if any(process.proc.poll() for process in self._processes()):  # one has failed: the others are ended
            self._continue_stopped()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is not WorkerState.FAILED:
            return result
        statuses = {failure.exitcode for failure in result.failures.values()}
        if statuses & FINAL:
            self._remaining_restarts = 0
        elif statuses <= STOPPED and self.machines.may_change:
            self._remaining_restarts += 1  # of which the restart that follows takes one
            say("the ranks were told to stop through another machine; going on with those that remain")
        elif self._remaining_restarts:
            rank, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
            say(f"rank {rank} ended with status {failure.exitcode}: starting again, from the last checkpoint")
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = SHUTDOWN, **more: Any) -> None:
        self._continue_stopped()
        # A terminal that was closed: ranks save for SIGTERM and SIGINT.
        super()._shutdown(signal.SIGTERM if death_sig == signal.SIGHUP else death_sig, timeout, **more)

    def _processes(self) -> list[Any]:
        context = self._pcontext
        return list(context.subprocess_handlers.values()) if isinstance(context, SubprocessContext) else []

    def _continue_stopped(self) -> None:
        for process in self._processes():
            if process.proc.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.proc.pid, signal.SIGCONT)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
