"""The settings of inference_sample.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from encore.config.components import unknown_losses
from encore.config.knobs import MAX_SECONDS, MAX_SEED, knob, problems_of
from encore.config.schema import PRECISIONS
from encore.errors import EncoreError
from encore.inference.continuation import BATCH_SIZE
from encore.models.model_folder import is_model
from encore.models.precision import AUTO

MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class SampleConfig:
    """All settings of continuations: of one song, `input`, or of all in the folder `inputs`."""

    input: Path | None = knob(None, "song to continue: wav, flac, ogg or mp3", common=True)
    inputs: Path | None = knob(None, "folder of songs to continue instead, searched to any depth", common=True)
    batch_size: int = knob(
        BATCH_SIZE, "songs of --inputs that are continued at once", minimum=1, maximum=1024, common=True
    )
    checkpoint: Path | None = knob(
        None, "checkpoint of a training run, or a folder that encore export wrote", common=True
    )
    run_id: str | None = knob(None, "MLflow run whose best checkpoint to use", common=True)
    mlflow_uri: str = knob("sqlite:///mlflow.db", "MLflow tracking server or store of --run_id", common=True)
    seconds: float = knob(
        16.0, "length of the continuation in seconds", minimum=0.001, maximum=MAX_SECONDS, common=True
    )
    start: float | None = knob(
        None,
        "second of the song where the continuation begins; default: the song's end",
        minimum=0.001,
        maximum=MAX_SECONDS,
        common=True,
    )
    target: Path | None = knob(None, "the true continuation, if it is not in the song itself", common=True)
    metrics: str | None = knob(None, "losses of the table: a,b,c; default: the training run's", common=True)
    candidates: int = knob(1, "number of continuations, each from its own seed", minimum=1, maximum=1024, common=True)
    seed: int = knob(
        0,
        "seed of the first candidate; each further one has the next seed",
        minimum=0,
        maximum=MAX_SEED,
        common=True,
    )
    temperature: float = knob(
        1.0,
        "scale of the noise; at 0 candidates differ only in what the prior draws",
        minimum=0,
        maximum=MAX_TEMPERATURE,
        common=True,
    )
    stream: bool = knob(
        False, "write the wavs while they are generated, so that they can be played; Ctrl-C ends it", common=True
    )
    output: Path = knob(Path("out"), "folder for the results", common=True)
    codec_repository: Path | None = knob(None, "folder with the pretrained codecs' files", common=True)
    device: str | None = knob(None, "cpu or cuda; default: a GPU if there is one", common=True)
    precision: str = knob(
        AUTO, "of the transformer's products; auto: bf16 if this device is faster with it", choices=PRECISIONS
    )

    @property
    def seeds(self) -> range:
        """One seed per candidate."""
        return range(self.seed, self.seed + self.candidates)

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        problems = []
        if (self.input is None) == (self.inputs is None):
            found = "neither is" if self.input is None else "both are"
            problems.append(f"--input, --inputs: {found} given; name either a song or a folder of songs")
        if self.inputs is not None:
            problems += [
                f"--{flag}: for one song only; use it with --input"
                for flag, given in (("target", self.target is not None), ("stream", self.stream))
                if given
            ]
        if (self.checkpoint is None) == (self.run_id is None):
            found = "neither is" if self.checkpoint is None else "both are"
            problems.append(f"--checkpoint, --run_id: {found} given; name either a checkpoint or an MLflow run")
        if self.checkpoint is not None and not is_model(self.checkpoint):
            problems.append(
                f"--checkpoint {self.checkpoint}: no such file; training writes CHECKPOINT_DIR/best_model.pt"
            )
        problems += unknown_losses(self.metrics) + problems_of(self)
        if problems:
            raise EncoreError("\n".join(problems))

    def check_model(self, generative: bool) -> None:
        """Raises EncoreError if a deterministic model is asked for several candidates, or for more or less noise."""
        given = {"--candidates": (self.candidates, 1), "--temperature": (self.temperature, 1)}
        problems = [
            f"{flag} {value:g}: this model was trained with --objective regression and makes one continuation only, "
            "without noise; leave the flag out, or train with --objective energy"
            for flag, (value, neutral) in given.items()
            if value != neutral and not generative
        ]
        if problems:
            raise EncoreError("\n".join(problems))
