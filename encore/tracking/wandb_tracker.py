"""The tracker `wandb`: Weights & Biases, online or offline."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encore.config.schema import TrackingConfig
from encore.tracking.groups import split_constants
from encore.tracking.media import examples
from encore.tracking.sender import reason
from encore.tracking.steps import LoggedSteps
from encore.tracking.tracker import Tracker, register_tracker

FOLDER = "wandb"  # that wandb makes in the run's folder
INIT_SECONDS = 30.0  # that its server may take to answer
FOUND = ("user", "source", "commit")  # tags that wandb finds by itself


@register_tracker("wandb")
class WandbTracker(Tracker):
    """One run in the project that `--experiment` names, with metrics in groups, examples and the best checkpoint.

    `WANDB_MODE=offline` keeps the run in `wandb/`, from where `wandb sync` sends it. So does a server that cannot be
    reached when the run starts, or a missing key: training neither waits nor asks.

    Args:
        settings: experiment and name of the run.
        run_id: of the run to continue; see `LoggedSteps`.
        folder: the run's, in which wandb keeps its files.
        log: prints a line to the user.
    """

    requires = ("wandb",)  # packages

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        self._folder, self._log = folder, log
        self._step, self._pending = 0, False  # whether there is a row that has not been sent
        self._steps = LoggedSteps(folder / FOLDER, run_id)
        self.run_id = self._steps.run_id
        self._run = self._start(settings)

    @staticmethod
    def prepare(settings: TrackingConfig) -> None:
        with contextlib.suppress(ImportError):  # which is reported when the tracker is built
            import wandb  # noqa: F401

    def params(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def tags(self, values: Mapping[str, str]) -> None:
        shown = {name: value for name, value in values.items() if name not in FOUND and value}
        self._run.tags = tuple(f"{name}: {value}"[:64] for name, value in shown.items())

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs a row for each step. Baselines, which are constants, go to the run's summary."""
        self._step = step
        constant, row = split_constants(values)
        self._run.summary.update(constant)
        if row and self._steps.is_new(step):
            self._run.log(row, step=step, commit=False)
            self._pending = True

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Logs audio and pictures of a folder of examples with the step's metrics; stores a file with the run."""
        import wandb

        if not path.is_dir():
            self._run.save(str(path), base_path=str(self._folder), policy="now")
        elif self._pending:
            kinds = {".wav": wandb.Audio, ".png": wandb.Image}
            found = {name: kinds[file.suffix](str(file)) for name, file in examples(path)}
            self._run.log(found, step=self._step, commit=False)

    def flush(self) -> None:
        if self._pending:
            self._run.log({}, commit=True)
            self._steps.save()
        self._pending = False

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
        if self._run.offline:
            kept = shlex.quote(str(self._folder / FOLDER))
            self._log(f"wandb: kept offline; send it with: wandb sync {kept}/offline-run-*{self.run_id}")
        else:
            self._log(f"charts of this run: {self._run.url}")

    def _start(self, settings: TrackingConfig) -> Any:
        """The run; an offline one if its server cannot be used."""
        import wandb

        quiet = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
        wandb.setup(quiet)  # silent, it never asks for a key
        about: dict[str, Any] = {"project": settings.experiment, "name": settings.run_name, "dir": str(self._folder)}
        about |= {"id": self.run_id, "resume": "allow", "settings": quiet}
        try:
            return wandb.init(**about)
        except wandb.Error as error:
            self._log(f"wandb cannot be used ({reason(error)}); the run is kept offline")
            return wandb.init(**about, mode="offline")
