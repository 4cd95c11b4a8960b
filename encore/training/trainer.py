"""The training loop of one rank."""

from __future__ import annotations

import contextlib
import json
import math
import time
from functools import partial
from typing import cast

import torch
from torch import nn

from encore.config.checks import validate
from encore.config.schema import TrainConfig
from encore.errors import disk_space
from encore.tracking import Tracker, build_tracker
from encore.tracking.description import named, source, tags
from encore.training.baseline_cache import baselines
from encore.training.build import build_run
from encore.training.checkpoint import TrainState
from encore.training.checkpoint_writer import CheckpointWriter
from encore.training.console import PRIOR, EpochMetrics, TrainConsole, named_metrics
from encore.training.data import PairData
from encore.training.distributed import AgreedError, Ranks
from encore.training.meters import WeightedMean, means
from encore.training.pace import Pace, duration, gpu_memory
from encore.training.parallel import whole, wrap
from encore.training.run_folder import BEST, LAST, RunFolder
from encore.training.step import Diverged, Request, Step
from encore.training.stop_signal import StopSignal
from encore.training.validation import Validation, validate_model, write_example
from encore.training.verdict import data_warnings, next_command, verdict
from encore.training.watch import SAVING


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
        model = cast(nn.Module, torch.compile(state.model)) if config.optim.compile else state.model
        self.model = wrap(model)
        self.step = Step(config, ranks, console, data, state, self.model)
        self.writer = CheckpointWriter()
        self.saved = time.monotonic()  # when the last checkpoint was
        self.pace = Pace()
        self.measured: dict[str, Validation] = {}
        self.tracker: Tracker | None = None
        self.tracker_opened = False
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
            trainer = cls(config, ranks, console, folder, *build_run(config, ranks, console, folder))
            opened.pop_all()  # `close` gives the folder free
        return trainer

    def start_run(self) -> None:
        """Opens the run's folder and log, measures the baselines, and gives rank 0's tracker what it sends first."""
        objective, progress = self.state.objective, self.state.progress
        with self.ranks.agree():
            if self.ranks.is_main:
                self.run_folder.begin()
                flags = {**self.config.to_dict(), "resume": None}  # a run with this file for --config is a new one
                path = self.folder / "config.json"
                with disk_space(path, "the settings"):
                    path.write_text(json.dumps(flags, indent=2) + "\n")
                self.console.open_log(self.folder / "train.log")
        self.measured = baselines(objective, self.config.objective, self.data, self.ranks, self.console)
        measured = {name: found.values for name, found in self.measured.items()}
        self.console.baselines(objective.components, measured)
        for warning in data_warnings(self.recordings):
            self.console.print(f"warning: {warning}", style="yellow")
        if self.source is not None:
            place = f"epoch {progress.epoch + 1}, step {progress.epoch_step}"
            self.console.print(f"resumed from {self.source} at {place}")
        if self.ranks.is_main:
            self.tracker = build_tracker(named(self.config), progress.run_id, self.folder, self.console.print)
            self.tracker.params(self.config.to_dict())
            self.tracker.tags(tags(self.config) | source())
            for kind, values in measured.items():
                self.tracker.metrics(named_metrics(kind, values, objective.components), step=0)
            self.tracker.artifact(self.folder / "config.json")
        if self.source is None and PRIOR in measured and math.isfinite(measured[PRIOR]["loss"]):
            self.start_from(self.measured[PRIOR])

    def open_tracker(self) -> None:
        """Has the tracker send what it was given, once: opening a store delays a step that runs beside it."""
        if self.tracker is not None and not self.tracker_opened:
            self.tracker.flush()
            self.tracker_opened = True

    def start_from(self, prior: Validation) -> None:
        """Takes the untrained model, whose continuations are the prior's, for the best one until another is better."""
        self.state.progress.best, self.state.progress.best_totals = prior.values["loss"], prior.totals
        if self.tracker is not None:
            self.tracker.metrics(named_metrics("val", prior.values, self.state.objective.components), step=0)
        self.save(BEST)

    @property
    def finished(self) -> bool:
        """Whether all epochs or steps are done, or --patience is used up."""
        progress = self.state.progress
        return (
            progress.epoch >= self.config.optim.epochs
            or progress.samples >= self.state.schedule.total
            or self.out_of_patience
        )

    @property
    def out_of_patience(self) -> bool:
        patience = self.config.optim.patience
        return patience is not None and self.state.progress.waited >= patience

    def fit(self, stop: StopSignal) -> None:
        """Trains to the end, or until a signal stops it after a whole step, and saves.

        Raises:
            Diverged: too many steps were not finite, or no validation was.
            EncoreError: nothing is left to train, or a checkpoint could not be written.
        """
        self.start_run()
        stop.listen()
        if self.finished:
            self.explain_end()
        while not self.finished:
            train = self.train_epoch(stop)
            if train is None:
                self.interrupt()
                return
            self.end_epoch(train, self.validate())
        with self.ranks.agree():
            self.writer.wait()
        best, prior = self.state.progress.best, self.console.measured.get(PRIOR, {"loss": math.inf})["loss"]
        if math.isinf(best):
            raise Diverged(
                f"no validation loss was finite, so this run has no {BEST}: lower --lr ({self.config.optim.lr:g}), or "
                "look at the pairs and losses that are named above"
            )
        self.status = "FINISHED"
        note = "; it is the prior's, on which training has not improved" if best >= prior else ""
        self.console.print(f"best validation loss {best:.4f}, in {self.folder / BEST}{note}")
        for line in self.verdict():
            self.console.print(line, style="bold")
        if not self.config.data.unity_test:
            self.console.print(f"next: {next_command(self.config, self.folder / BEST)}", whole=True)

    def verdict(self) -> list[str]:
        """What the run has come to, in sentences."""
        best = Validation({"loss": self.state.progress.best}, self.state.progress.best_totals)
        return verdict(best, self.measured, self.recordings, self.config)

    @property
    def recordings(self) -> list[str | None]:
        """What each validation pair was cut from, as far as it is known."""
        pairs = self.data.pairs["val"]
        return [pairs.recordings[number] for number in range(len(pairs))]

    def explain_end(self) -> None:
        """Says why nothing is trained.

        Raises:
            EncoreError: the run would have no best model either.
        """
        progress, optim = self.state.progress, self.config.optim
        done = f"{progress.epoch} of {optim.epochs} epochs and {progress.step} steps are done"
        line = f"nothing is left to train: {done}; raise --epochs, --max_steps or --patience to go on"
        if math.isinf(progress.best):
            raise AgreedError(f"--resume {self.source}: {line}")
        self.console.print(line)

    def train_epoch(self, stop: StopSignal) -> EpochMetrics | None:
        """Trains to the end of the epoch, or of --max_steps; None if a signal stopped it before the run's last step."""
        progress, schedule, epochs = self.state.progress, self.state.schedule, self.config.optim.epochs
        self.data.sampler.start_at(progress.epoch, progress.epoch_samples)
        running = WeightedMean(progress.sums if self.ranks.is_main else {})
        batches = iter(self.data.train_loader)
        pairs, left = self.state.division.pairs, self.steps_left
        start, taken, request, lr = time.monotonic(), 0, 0, 0.0
        seconds = pairs * self.data.frames.target / self.data.codec.frame_rate  # of audio in a step
        self.model.train()
        self.pace.begin()
        title, total = f"epoch {progress.epoch + 1}/{epochs}", progress.epoch_step + left
        with self.console.task(title, total, progress.epoch_step) as advance:
            while taken < left and request != Request.STOP:
                lr = schedule.lr(progress.samples, pairs)
                step = self.step.take(batches, running, partial(self.request, stop))
                self.step.apply(step, lr)
                self.open_tracker()
                running, taken = step.running if step.finite else running, taken + 1
                request = step.request()
                self.answer(request, running)
                self.pace.stepped()
                advance(self.note(step.loss, taken * seconds / (time.monotonic() - start)))
        progress.sums = running.sum_over(self.ranks)
        if request == Request.STOP and progress.samples < schedule.total:  # after its last step a run is validated
            return None
        if progress.epoch_step and progress.epoch_skipped == progress.epoch_step:
            raise Diverged(
                f"epoch {progress.epoch + 1}: loss or gradient was not finite in any of its {progress.epoch_step} "
                f"steps, so training ends. Lower --lr ({self.config.optim.lr:g}), or look at the pairs named above"
            )
        throughput = taken * seconds / (time.monotonic() - start)
        memory = gpu_memory(self.ranks.device)
        return EpochMetrics(
            progress.epoch + 1, epochs, means(progress.sums), lr, throughput, progress.skipped, memory=memory
        )

    def note(self, loss: float, throughput: float) -> str:
        """What stands below the bar: the loss of a step, the speed, the time left for the whole run, GPU memory."""
        left, memory = self.seconds_left, gpu_memory(self.ranks.device)
        parts = [f"loss {loss:.4f}", f"{throughput:.1f} s of audio per s"]
        parts += [f"the run ends in {duration(left)}"] if left is not None else []
        return ", ".join(parts + ([str(memory)] if memory is not None else []))

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest of the run is going to take, with its validations; None before it can be told."""
        steps = (self.state.schedule.total - self.state.progress.samples) // self.state.division.pairs
        epoch = max(1, self.data.sampler.steps(0))
        return self.pace.left(steps, -(-steps // epoch))

    @property
    def steps_left(self) -> int:
        """Steps until the epoch or the run ends."""
        progress = self.state.progress
        of_run = (self.state.schedule.total - progress.samples) // self.state.division.pairs
        return min(self.data.sampler.steps(progress.epoch_samples), of_run)

    def request(self, stop: StopSignal) -> Request:
        """What this rank wants to be done after the present step."""
        if self.writer.failed:
            return Request.FAIL
        if stop:
            return Request.STOP
        due = time.monotonic() - self.saved >= 60 * self.config.run.save_minutes
        return Request.SAVE if self.ranks.is_main and due else Request.NONE

    def answer(self, request: int, running: WeightedMean) -> None:
        """Does what a rank has asked for; called by all. The epoch's end sees to STOP."""
        if request == Request.FAIL:
            with self.ranks.agree():
                self.writer.wait()
        elif request == Request.SAVE:
            self.state.progress.sums = running.sum_over(self.ranks)
            self.save(LAST)

    def validate(self) -> Validation:
        """The components over all validation pairs."""
        loader, start = self.data.val_loader, time.monotonic()
        with whole(self.state.evaluated), self.console.task("validation", len(loader)) as advance:
            self.ranks.at("validation", self.state.progress.step)
            found = validate_model(self.state.objective, self.state.evaluated, loader, self.ranks, advance)
        self.pace.validated(time.monotonic() - start)
        return found

    def end_epoch(self, metrics: EpochMetrics, validation: Validation) -> None:
        """Counts the epoch, adapts the schedule, prints, tracks and saves."""
        progress = self.state.progress
        self.ranks.at(SAVING, progress.step)
        metrics.val = values = validation.values
        metrics.best = progress.validated(values["loss"], validation.totals)
        if not self.data.sampler.steps(progress.epoch_samples):  # otherwise --max_steps has ended it early
            progress.epoch_done()
            self.state.schedule.epoch_ended(values["loss"])
        metrics.seconds_left = 0.0 if self.finished else self.seconds_left
        self.console.epoch(metrics)
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            self.console.print(f"validation is not finite: {', '.join(broken)}", style="yellow")
        with self.ranks.agree():
            if self.tracker is not None:
                # First, as of an epoch that is tracked and not saved when the run is killed nothing is missing later.
                self.tracker.metrics(metrics.by_name(self.state.objective.components), step=metrics.epoch)
        self.save_epoch(metrics)
        with whole(self.state.evaluated), self.ranks.agree():
            if self.tracker is not None:
                self.track_example(self.tracker, metrics)
        if self.out_of_patience:
            self.console.print(f"stopped early: no better validation loss for {self.config.optim.patience} epochs")

    def save_epoch(self, metrics: EpochMetrics) -> None:
        """Saves the best model if it is that, and the last one if it is time for it."""
        due = metrics.epoch % self.config.run.save_every == 0 or self.finished
        if names := [BEST] * metrics.best + [LAST] * due:
            self.save(*names)

    def track_example(self, tracker: Tracker, metrics: EpochMetrics) -> None:
        """Gives the tracker an example now and then, and has it send the epoch."""
        if metrics.epoch % self.config.tracking.artifact_every == 0 or self.finished:
            folder = self.folder / "examples" / f"epoch_{metrics.epoch:04d}"
            write_example(folder, self.state.objective, self.state.evaluated, self.data.val, self.ranks)
            tracker.artifact(folder, f"examples/{folder.name}")
        tracker.flush()

    def interrupt(self) -> None:
        """Saves the exact step that a signal stopped training at."""
        self.save(LAST)
        with self.ranks.agree():
            self.writer.wait()
        progress = self.state.progress
        self.console.print(
            f"stopped in epoch {progress.epoch + 1} after step {progress.step}; --resume auto continues from there"
        )
        self.status = "KILLED"

    def save(self, *names: str) -> None:
        """Begins to write a checkpoint to the run's folder under each of the names, with the tracker's id of the run.

        Called by all ranks, of which the first one writes.

        Raises:
            EncoreError: the one before it could not be written.
        """
        self.ranks.at(SAVING, self.state.progress.step)
        if self.tracker is not None:
            self.state.progress.run_id = self.tracker.run_id
        keep = {LAST: self.config.run.keep_last}
        content = self.state.content(self.config, self.data.frames)
        with self.ranks.agree():
            if self.ranks.is_main:
                self.writer.write(content, *((self.folder / name, keep.get(name)) for name in names))
        self.saved = time.monotonic()

    def close(self) -> None:
        """Ends the tracked run with its status and stores the best checkpoint with it; waits for what is written."""
        self.ranks.at("closing")
        self.writer.close()
        if self.tracker is not None:
            if (self.folder / BEST).is_file():
                self.tracker.artifact(self.folder / BEST, "checkpoints")
            self.tracker.close(self.status)
        self.run_folder.close()
