"""The tracker `tensorboard`: event files in the run's folder."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encore.config.schema import TrackingConfig
from encore.tracking.groups import split_constants
from encore.tracking.media import examples
from encore.tracking.steps import LoggedSteps
from encore.tracking.tracker import Tracker, register_tracker

FOLDER = "tensorboard"


@register_tracker("tensorboard")
class TensorBoardTracker(Tracker):
    """Writes scalars in groups, settings and baselines as text, and examples as audio and pictures to `tensorboard/`.

    Args:
        settings: the tracking flags, of which this one needs none.
        run_id: of the run to continue; see `LoggedSteps`.
        folder: the run's.
        log: prints a line to the user.
    """

    requires = ("tensorboard",)  # packages

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._log, self._step = folder / FOLDER, log, 0
        self._steps = LoggedSteps(self._folder, run_id)
        self.run_id = self._steps.run_id
        self._writer = SummaryWriter(str(self._folder))

    @staticmethod
    def prepare(settings: TrackingConfig) -> None:
        with contextlib.suppress(ImportError):  # which is reported when the tracker is built
            import torch.utils.tensorboard  # noqa: F401

    def params(self, values: Mapping[str, Any]) -> None:
        self._table("settings", values)

    def tags(self, values: Mapping[str, str]) -> None:
        self._table("run", values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a row for each step. Baselines, which are constants, are a table."""
        self._step = step
        if self._steps.is_new(step):
            constant, row = split_constants(values)
            if constant:
                self._table(next(iter(constant)).partition("_")[0], constant)
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Shows the audio and pictures of a folder of examples. Other files stay where they are."""
        if not path.is_dir() or not self._steps.is_new(self._step):
            return
        import numpy as np
        import soundfile
        from PIL import Image

        for name, file in examples(path):
            if file.suffix == ".wav":
                audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
                mono = audio.mean(axis=1)  # TensorBoard plays one channel
                self._writer.add_audio(name, mono, self._step, sample_rate=rate)
            else:
                picture = np.asarray(Image.open(file).convert("RGB"))
                self._writer.add_image(name, picture, self._step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()
        self._steps.save()

    def close(self, status: str) -> None:
        self.flush()
        self._writer.close()
        above = shlex.quote(str(self._folder.parent.resolve().parent))
        self._log(f"charts of this run: python -m tensorboard.main --logdir {shlex.quote(str(self._folder))}")
        self._log(f"charts of all runs: python -m tensorboard.main --logdir {above}")

    def _table(self, name: str, values: Mapping[str, Any]) -> None:
        rows = "".join(f"| {key} | {value} |\n" for key, value in values.items() if value not in (None, ""))
        self._writer.add_text(name, f"| | |\n|---|---|\n{rows}")
