"""The training loop of one rank."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from encore.codecs import load_codec
from encore.config.checks import validate
from encore.config.schema import TrainConfig
from encore.data.dataset import Batch
from encore.tracking import Tracker, build_tracker
from encore.training.baseline_cache import baselines
from encore.training.build import build_state, build_terms
from encore.training.checkpoint import TrainState, add_run_id
from encore.training.console import PRIOR, SHARE, EpochMetrics, TrainConsole, named_metrics
from encore.training.data import PairData
from encore.training.distributed import AgreedError, Ranks
from encore.training.meters import WeightedMean, means
from encore.training.run_folder import RunFolder, Start
from encore.training.validation import Values, validate_model, write_example
from encore.training.watch import SAVING

MAX_NOT_FINITE = 10  # steps in a row
ROLLOUT_PHASE = 0.25  # last share of the steps, in which the model continues from its own output
SHARES_EVERY = 10  # steps between measurements of the gradients' shares, each of which takes a pass per loss


class Diverged(AgreedError):
    """Too many steps in a row whose loss or gradient was not finite."""


class StopSignal:
    """True once SIGINT or SIGTERM has come, so that the loop can finish its step and save."""

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """Notes signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return self.number > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


@dataclass
class StepMetrics:
    """What an optimiser step gave: running means with this step in them, and whether it could be taken.

    `stop` waits until all ranks have told whether a signal has come.
    """

    running: WeightedMean
    stop: Callable[[], bool] = bool
    loss: float = 0.0
    seconds: float = 0.0  # of audio, over all ranks
    finite: bool = True
    left_out: set[str] = field(default_factory=set)


class Trainer:
    """A training run on one rank.

    Attributes:
        state: all that changes.
        source: the checkpoint that the run was resumed from.
        status: of the run, for the tracker: FAILED until `fit` has ended it otherwise.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        console: TrainConsole,
        run_folder: RunFolder,
        data: PairData,
        state: TrainState,
    ):
        self.config, self.ranks, self.console, self.data, self.state = config, ranks, console, data, state
        self.run_folder, self.folder, self.source = run_folder, run_folder.path, run_folder.start.source
        model = torch.compile(state.model) if config.optim.compile else state.model
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.tracker: Tracker | None = None
        self.best_lacks_id = False
        self.status = "FAILED"

    @classmethod
    def from_config(cls, config: TrainConfig, ranks: Ranks, console: TrainConsole) -> Trainer:
        """Checks, loads and builds everything, and resumes a checkpoint if there is one to resume.

        Raises:
            EncoreError: on all ranks, whatever rank found something that the user can put right.
        """
        with ranks.agree():
            config = config.resolved()
            validate(config)
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(RunFolder.open(config.run, ranks))
            trainer = cls(config, ranks, console, folder, *cls.build(config, ranks, console, folder.start))
            opened.pop_all()  # `close` gives the folder free
        return trainer

    @staticmethod
    def build(config: TrainConfig, ranks: Ranks, console: TrainConsole, start: Start) -> tuple[PairData, TrainState]:
        """The data and the state to begin with."""
        for note in start.notes:
            console.print(note, style="yellow")
        with ranks.agree():
            codec = load_codec(config.codec.name, config.codec.repository, config.codec.bandwidth).to(ranks.device)
            data = PairData.open(config, codec)
            terms = build_terms(config, data, ranks)
        data.encode(ranks, console)
        state = build_state(config, data, terms, ranks, start.source is not None)
        state.run = start.identity.run
        with ranks.agree():
            if start.source is not None:
                state.load(start.source, config)
        return data, state

    def start_run(self) -> None:
        """Opens the run's folder and log, measures the baselines, and opens the tracker on rank 0."""
        objective, progress = self.state.objective, self.state.progress
        if self.ranks.is_main:
            self.run_folder.begin()
            flags = {**self.config.to_dict(), "resume": None}  # a run with this file for --config is a new one
            (self.folder / "config.json").write_text(json.dumps(flags, indent=2) + "\n")
            self.console.open_log(self.folder / "train.log")
        measured = baselines(objective, self.config.objective, self.data, self.ranks)
        self.console.baselines(objective.components, measured)
        if self.source is not None:
            place = f"epoch {progress.epoch + 1}, step {progress.epoch_step}"
            self.console.print(f"resumed from {self.source} at {place}")
        if self.ranks.is_main:
            self.tracker = build_tracker(self.config.tracking, progress.run_id, self.folder, self.console.print)
            self.tracker.params(self.config.to_dict())
            for kind, values in measured.items():
                self.tracker.metrics(named_metrics(kind, values, objective.components), step=0)
            self.tracker.artifact(self.folder / "config.json")
            self.tracker.flush()
        if self.source is None and PRIOR in measured:
            self.start_from(measured[PRIOR])

    def start_from(self, prior: Values) -> None:
        """Takes the untrained model, whose continuations are the prior's, for the best one until another is better.

        It is saved without the tracker's id of the run, which may take seconds to come; `end_epoch` adds it.
        """
        self.state.progress.best = prior["loss"]
        if self.tracker is not None:
            self.tracker.metrics(named_metrics("val", prior, self.state.objective.components), step=0)
            self.state.save(self.folder / "best_model.pt", self.config, self.data.frames)
            self.best_lacks_id = True

    @property
    def finished(self) -> bool:
        """Whether all epochs or steps are done, or --patience is used up."""
        progress = self.state.progress
        return (
            progress.epoch >= self.config.optim.epochs
            or progress.step >= self.state.schedule.total_steps
            or self.out_of_patience
        )

    @property
    def out_of_patience(self) -> bool:
        patience = self.config.optim.patience
        return patience is not None and self.state.progress.waited >= patience

    def fit(self, stop: StopSignal) -> None:
        """Trains to the end, or until a signal stops it after a whole step, and saves.

        Raises:
            Diverged: too many steps in a row were not finite.
        """
        self.start_run()
        stop.listen()
        while not self.finished:
            train = self.train_epoch(stop)
            if train is None:
                self.interrupt()
                return
            self.end_epoch(train, self.validate())
        self.status = "FINISHED"
        best, prior = self.state.progress.best, self.console.measured.get(PRIOR, {"loss": math.inf})["loss"]
        note = "; it is the prior's, on which training has not improved" if best >= prior else ""
        self.console.print(f"best validation loss {best:.4f}, in {self.folder / 'best_model.pt'}{note}")

    def train_epoch(self, stop: StopSignal) -> EpochMetrics | None:
        """Trains to the end of the epoch, or of --max_steps; None if a signal stopped it before the run's last step."""
        progress, schedule, epochs = self.state.progress, self.state.schedule, self.config.optim.epochs
        self.data.sampler.start_at(progress.epoch, progress.epoch_step)
        running = WeightedMean(progress.sums if self.ranks.is_main else {})
        batches = iter(self.data.train_loader)
        start, seconds, stopped, lr = time.monotonic(), 0.0, False, 0.0
        self.model.train()
        with self.console.task(f"epoch {progress.epoch + 1}/{epochs}", self.data.steps, progress.epoch_step) as advance:
            while progress.epoch_step < self.data.steps and progress.step < schedule.total_steps and not stopped:
                lr = schedule.lr(progress.step)
                step = self.train_step(batches, running, stop)
                self.apply_step(step, lr)
                stopped = step.stop()
                running = step.running if step.finite else running
                seconds += step.seconds
                advance(f"loss {step.loss:.4f}  {seconds / (time.monotonic() - start):.1f} s/s")
        progress.sums = running.sum_over(self.ranks)
        if stopped and progress.step < schedule.total_steps:  # after its last step a run is validated as usual
            return None
        throughput = seconds / (time.monotonic() - start)
        return EpochMetrics(progress.epoch + 1, epochs, means(progress.sums), lr, throughput, progress.skipped)

    def train_step(self, batches: Iterator[Batch], running: WeightedMean, stop: StopSignal) -> StepMetrics:
        """Accumulates the gradients of a step's batches and clips them.

        The only collective operations are DDP's, and one that asks for signals beside the last backward pass.
        """
        config, progress, objective = self.config, self.state.progress, self.state.objective
        # All randomness of a step follows from its number, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(seed_of(config.run.seed, progress.step, self.ranks.rank))
        # The cost of a step depends on the plan: with the same on all ranks, none waits for another.
        common = torch.Generator().manual_seed(seed_of(config.run.seed, progress.step))
        step = StepMetrics(WeightedMean(running.sums))
        accumulation = config.optim.grad_accumulation
        rollout = progress.step >= (1 - ROLLOUT_PHASE) * self.state.schedule.total_steps
        for remaining in reversed(range(accumulation)):
            self.ranks.at("loading data", progress.step + 1)
            batch = next(batches).to(self.ranks.device)
            self.ranks.at("forward", progress.step + 1, waits=True)  # DDP sends buffers from rank 0
            plan = objective.synthesizer.plan(self.data.frames.target, rollout, common, self.data.most_shift)
            with self.model.no_sync() if remaining else contextlib.nullcontext():
                forward = objective(self.model, batch.shifted(plan.shift), plan)
                if not remaining:
                    step.stop = self.ranks.any_async(bool(stop))
                self.ranks.at("backward", progress.step + 1, waits=not remaining)
                result = objective.backward(forward, 1 / accumulation, progress.epoch_step % SHARES_EVERY == 0)
            step.left_out |= {*result.left_out}
            step.loss = result.total.mean().item()
            step.running.add(result.values, result.total)
            for name, share in result.shares.items():
                step.running.add_value(SHARE + name, share, len(batch))
            step.seconds += len(batch) * self.ranks.world_size * batch.target_audio.shape[-1] / objective.sample_rate
        self.ranks.at("update", progress.step + 1)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        step.running.add_value("grad_norm", float(norm), len(batch) * accumulation)
        step.finite = bool(norm.isfinite())  # equal on all ranks, as their gradients are
        return step

    def apply_step(self, step: StepMetrics, lr: float) -> None:
        """Updates the weights, unless the step was not finite on some rank."""
        state, progress = self.state, self.state.progress
        if not step.finite:
            progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
            self.console.print(f"step {progress.step + 1} skipped: its loss or gradient is not finite", style="yellow")
        else:
            progress.skipped_in_a_row = 0
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            state.optimizer.step()
            if state.ema is not None:
                state.ema.update_parameters(state.model)
            for name in sorted(step.left_out):
                self.console.print(f"step {progress.step + 1} without {name}: it is not finite", style="yellow")
        state.objective.end_step(skip=not step.finite)
        state.optimizer.zero_grad(set_to_none=True)
        progress.step, progress.epoch_step = progress.step + 1, progress.epoch_step + 1
        if progress.skipped_in_a_row >= MAX_NOT_FINITE:
            raise Diverged(
                f"loss or gradient was not finite for {MAX_NOT_FINITE} steps in a row, so training ends; the last good "
                f"checkpoint is in {self.folder}. Lower --lr ({self.config.optim.lr:g}) or --clip_norm"
            )

    def validate(self) -> Values:
        """The components over all validation pairs."""
        self.ranks.at("validation", self.state.progress.step)
        return validate_model(self.state.objective, self.state.evaluated, self.data.val_loader, self.ranks)

    def end_epoch(self, metrics: EpochMetrics, validation: Values) -> None:
        """Counts the epoch, adapts the schedule, prints, tracks and saves."""
        progress = self.state.progress
        self.ranks.at(SAVING, progress.step)
        metrics.val = validation
        metrics.best = validation["loss"] < progress.best
        progress.best = min(validation["loss"], progress.best)
        progress.waited = 0 if metrics.best else progress.waited + 1
        if progress.epoch_step >= self.data.steps:  # otherwise --max_steps has ended it early
            progress.epoch, progress.epoch_step, progress.sums = metrics.epoch, 0, {}
            self.state.schedule.epoch_ended(validation["loss"])
        self.console.epoch(metrics)
        if self.tracker is not None:
            self.track(self.tracker, metrics)
            if metrics.best:
                self.save("best_model.pt")
            elif self.best_lacks_id:
                add_run_id(self.folder / "best_model.pt", self.tracker.run_id)
            self.best_lacks_id = False
            if metrics.epoch % self.config.run.save_every == 0 or self.finished:
                self.save("last.pt")
        if self.out_of_patience:
            self.console.print(f"stopped early: no better validation loss for {self.config.optim.patience} epochs")

    def track(self, tracker: Tracker, metrics: EpochMetrics) -> None:
        """Sends an epoch's metrics, and now and then an example, to the tracker."""
        tracker.metrics(metrics.by_name(self.state.objective.components), step=metrics.epoch)
        if metrics.epoch % self.config.tracking.artifact_every == 0 or self.finished:
            folder = self.folder / "examples" / f"epoch_{metrics.epoch:04d}"
            write_example(folder, self.state.objective, self.state.evaluated, self.data.val, self.ranks)
            tracker.artifact(folder, f"examples/{folder.name}")
        tracker.flush()

    def interrupt(self) -> None:
        """Saves the exact step that a signal stopped training at."""
        self.ranks.at(SAVING, self.state.progress.step)
        if self.ranks.is_main:
            self.save("last.pt")
        progress = self.state.progress
        self.console.print(
            f"stopped in epoch {progress.epoch + 1} after step {progress.step}; --resume auto continues from there"
        )
        self.status = "KILLED"

    def save(self, name: str) -> None:
        """Writes a checkpoint to the run's folder, with the tracker's id of the run."""
        if self.tracker is not None:
            self.state.progress.run_id = self.tracker.run_id
        self.state.save(self.folder / name, self.config, self.data.frames)

    def close(self) -> None:
        """Ends the tracked run with its status and stores the best checkpoint with it."""
        if self.tracker is not None:
            if (self.folder / "best_model.pt").is_file():
                self.tracker.artifact(self.folder / "best_model.pt", "checkpoints")
            self.tracker.close(self.status)
        self.run_folder.close()


def seed_of(*numbers: int) -> int:
    """A seed of 64 bits, different for different numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
