"""An optimiser step of one rank: its batches forward and backward, and the update that all ranks take or skip."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from encore.config.schema import TrainConfig
from encore.data.dataset import Batch
from encore.training.checkpoint import TrainState
from encore.training.console import SHARE, TrainConsole
from encore.training.data import PairData
from encore.training.distributed import AgreedError, Ranks
from encore.training.meters import WeightedMean
from encore.training.objective import Forward

MAX_NOT_FINITE = 10  # steps in a row
ROLLOUT_PHASE = 0.25  # last share of the run, in which the model continues from its own output
SHARES_EVERY = 10  # steps between measurements of the gradients' shares, each of which takes a pass per loss
MOST_NAMES = 8  # of pairs in a line


class Diverged(AgreedError):
    """Training has come to no good: losses or gradients were not finite."""


class Request(IntEnum):
    """What a rank asks of all of them at the end of a step; the largest counts."""

    NONE = 0
    SAVE = 1
    STOP = 2  # a signal has come
    FAIL = 3  # a checkpoint could not be written


@dataclass
class StepMetrics:
    """What an optimiser step gave: running means with this step in them, and whether it could be taken.

    `request` waits until all ranks have told theirs.
    """

    running: WeightedMean
    request: Callable[[], int] = int
    loss: float = 0.0
    finite: bool = True
    left_out: set[str] = field(default_factory=set)
    values: list[tuple[Mapping[str, Tensor], Tensor]] = field(default_factory=list)  # of each batch, with its numbers


class Step:
    """Takes optimiser steps.

    Args:
        config: of the run.
        ranks: of which this is one.
        console: for steps that are skipped.
        data: whose pairs are named.
        state: that each step changes.
        model: `state.model`, as it is called.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        console: TrainConsole,
        data: PairData,
        state: TrainState,
        model: DistributedDataParallel,
    ):
        self.config, self.ranks, self.console = config, ranks, console
        self.data, self.state, self.model = data, state, model

    def take(self, batches: Iterator[Batch], running: WeightedMean, request: Callable[[], Request]) -> StepMetrics:
        """Accumulates the gradients of a step's batches and clips them.

        The only collective operations are DDP's, and one that gathers requests beside the last backward pass.
        """
        progress, division = self.state.progress, self.state.division
        # All randomness of a step follows from its number, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(seed_of(self.config.run.seed, progress.step, self.ranks.rank))
        # The cost of a step depends on the plan: with the same on all ranks, none waits for another.
        common = torch.Generator().manual_seed(seed_of(self.config.run.seed, progress.step))
        step, items = StepMetrics(WeightedMean(running.sums)), 0
        for remaining in reversed(range(division.accumulation)):
            self.ranks.at("loading data", progress.step + 1)
            batch = next(batches).to(self.ranks.device)
            asked = None if remaining else request
            with self.model.no_sync() if remaining else contextlib.nullcontext():
                self.accumulate(step, batch, common, asked)
            items += len(batch)
        self.ranks.at("update", progress.step + 1)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        step.running.add_value("grad_norm", float(norm), items)
        step.finite = bool(norm.isfinite())  # equal on all ranks, as their gradients are
        return step

    def accumulate(
        self, step: StepMetrics, batch: Batch, common: torch.Generator, request: Callable[[], Request] | None
    ) -> None:
        """Adds a batch's share of the step's gradient, and asks all ranks for their requests, if this rank has one."""
        objective, progress, division = self.state.objective, self.state.progress, self.state.division
        rollout = progress.samples >= (1 - ROLLOUT_PHASE) * self.state.schedule.total
        plan = objective.synthesizer.plan(self.data.frames.target, rollout, common, self.data.most_shift)
        self.ranks.at("forward", progress.step + 1, waits=True)  # DDP sends buffers from rank 0
        forward: Forward = objective(self.model, batch.shifted(plan.shift), plan)
        if request is not None:
            step.request = self.ranks.max_async(request())
        self.ranks.at("backward", progress.step + 1, waits=request is not None)
        # DDP takes the mean over the ranks, the objective over the batch: every pair of the step counts the same.
        scale = len(batch) * division.ranks / division.pairs
        result = objective.backward(forward, scale, progress.epoch_step % SHARES_EVERY == 0)
        step.values.append((forward.values, batch.number))
        step.left_out |= {*result.left_out}
        step.loss = result.total.mean().item()
        step.running.add(result.values, result.total)
        for name, share in result.shares.items():
            step.running.add_value(SHARE + name, share, len(batch))

    def apply(self, step: StepMetrics, lr: float) -> None:
        """Updates the weights, unless the step was not finite on some rank.

        Raises:
            Diverged: too many steps in a row were not finite.
        """
        state, progress = self.state, self.state.progress
        if not step.finite:
            what = "skipped: its loss or gradient is not finite"
            self.console.print(f"step {progress.step + 1} {what} ({self.causes(step)})", style="yellow")
        else:
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            state.optimizer.step()
            if state.ema is not None:
                state.ema.update_parameters(state.model)
            if step.left_out:  # the same on all ranks
                what = f"without {', '.join(sorted(step.left_out))}: not finite"
                self.console.print(f"step {progress.step + 1} {what} ({self.causes(step)})", style="yellow")
        state.objective.end_step(skip=not step.finite)
        state.optimizer.zero_grad(set_to_none=True)
        progress.step_done(state.division.pairs, skipped=not step.finite)
        if progress.skipped_in_a_row >= MAX_NOT_FINITE:
            raise Diverged(
                f"loss or gradient was not finite for {MAX_NOT_FINITE} steps in a row, so training ends; the last good "
                f"checkpoint is in {self.config.run.checkpoint_dir}. Lower --lr ({self.config.optim.lr:g}) or "
                "--clip_norm; if the lines above name the same pairs again and again, look at those"
            )

    def causes(self, step: StepMetrics) -> str:
        """The terms that were not finite and the pairs that they were computed of, on all ranks; called by all."""
        found = [cause for cause in self.ranks.gather(self.cause(step)) if cause is not None]
        return "; ".join(found) or "all losses are finite, the gradient is not"

    def cause(self, step: StepMetrics) -> str | None:
        """The same on this rank; None if all its terms are finite."""
        terms: dict[str, None] = {}
        pairs: dict[int, None] = {}
        for values, numbers in step.values:
            for name, value in values.items():
                broken = ~value.isfinite()
                if broken.any():
                    terms[name] = None
                    pairs |= dict.fromkeys(numbers[broken].tolist())
        if not terms:
            return None
        names = [self.data.pairs["train"].names[number] for number in [*pairs][:MOST_NAMES]]
        more = [f"and {len(pairs) - MOST_NAMES} more"] if len(pairs) > MOST_NAMES else []
        return f"{', '.join(terms)} of {', '.join([*names, *more])}, on rank {self.ranks.rank}"


def seed_of(*numbers: int) -> int:
    """A seed of 64 bits, different for different numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
