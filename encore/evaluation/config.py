"""The configuration of an evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from encore.config.components import unknown_losses
from encore.config.knobs import MAX_COUNT, MAX_SECONDS, MAX_SEED, knob, problems_of
from encore.data.pairs import TEST
from encore.errors import EncoreError
from encore.evaluation.baselines import BASELINES, CODEC, MODEL, prior_name
from encore.evaluation.dataset import VAL
from encore.evaluation.metrics.embeddings import WEIGHTS
from encore.inference.config import MAX_TEMPERATURE
from encore.models.model_folder import is_model
from encore.registry import DATASETS


@dataclass(frozen=True)
class EvalConfig:
    """All settings of an evaluation. `checkpoint` and `dataset_folder` have no default: `check` refuses None."""

    checkpoint: Path = knob(None, "checkpoint of a training run, or a folder that encore export wrote", common=True)
    dataset_folder: Path = knob(
        None, "folder with train/, val/ and perhaps test/ pairs, manifest, or folder of songs", common=True
    )
    dataset_format: str | None = knob(
        None, "how the pairs are stored there; default: as for training", choices=DATASETS
    )
    split: str | None = knob(
        None, "pairs to judge on; default: test if the data set has them, else val", choices=(TEST, VAL), common=True
    )
    output: Path = knob(Path("report"), "folder for the report", common=True)
    against: tuple[str, ...] = knob(
        (), "checkpoints or such folders to compare with: FILE or NAME=FILE, a list a,b or several flags", common=True
    )
    candidates: int = knob(
        4, "continuations per pair; the energy score needs at least 2", minimum=2, maximum=1024, common=True
    )
    seed: int = knob(0, "seed of everything random", minimum=0, maximum=MAX_SEED, common=True)
    temperature: float = knob(1.0, "scale of the models' noise", minimum=0, maximum=MAX_TEMPERATURE, common=True)
    items: int | None = knob(None, "number of pairs; default: all", minimum=2, maximum=MAX_COUNT, common=True)
    batch_size: int = knob(4, "pairs per batch", minimum=1, maximum=65536, common=True)
    metrics: str | None = knob(None, "losses to the truth: a,b,c; default: the training run's", common=True)
    long_seconds: float = knob(60.0, "length of the long continuations", minimum=2, maximum=MAX_SECONDS, common=True)
    long_items: int = knob(
        4, "pairs to continue for --long_seconds; 0: none", minimum=0, maximum=MAX_COUNT, common=True
    )
    embedding: str = knob(
        "none",
        "pretrained features in which distributions are compared too",
        choices=("none", *WEIGHTS),
        common=True,
    )
    embedding_weights: Path | None = knob(None, "file of its weights; default: in torch.hub's folder")
    critic: bool = knob(True, "train a critic to tell true continuations from each system's", common=True)
    memorisation: int = knob(
        500, "training segments to search for copies; 0: none", minimum=0, maximum=MAX_COUNT, common=True
    )
    mlflow_uri: str | None = knob(None, "MLflow server or store to log to; default: none", common=True)
    experiment: str = knob("encore", "MLflow experiment of a new run")
    run_id: str | None = knob(None, "MLflow run to log to; default: the checkpoint's, or a new one")
    codec_repository: Path | None = knob(None, "folder with the pretrained codecs' files")
    cache_dir: Path | None = knob(None, "folder for encoded latents; default: DATASET_FOLDER/.latents")
    device: str | None = knob(None, "cpu or cuda; default: a GPU if there is one", common=True)

    @property
    def others(self) -> dict[str, Path]:
        """The checkpoints of --against by their names: NAME=FILE, or the stem of the file.

        Raises:
            EncoreError: a name is taken.
        """
        named: dict[str, Path] = {}
        taken = {MODEL, prior_name(MODEL), *BASELINES}
        for part in [part.strip() for entry in self.against for part in entry.split(",") if part.strip()]:
            name, equals, path = part.rpartition("=")
            file = Path(path if equals else part)
            name = re.sub(r"[^\w.-]", "_", name if equals else file.stem)
            if name in taken or any(reserved in taken for reserved in (prior_name(name), f"{name}_{CODEC}")):
                raise EncoreError(f"--against {part}: the name {name!r} is taken; give it another: other={file}")
            named[name] = file
            taken |= {name, prior_name(name), f"{name}_{CODEC}"}
        return named

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        files = {"--checkpoint": self.checkpoint, **{f"--against {name}:": path for name, path in self.others.items()}}
        problems = [
            f"{flag} {path}: no such file; training writes CHECKPOINT_DIR/best_model.pt"
            for flag, path in files.items()
            if path is not None and not is_model(path)
        ]
        folder = self.dataset_folder
        if folder is not None and not folder.exists():
            problems.append(
                f"--dataset_folder {folder}: no such folder or manifest; python prepare_data.py MUSIC --output {folder}"
            )
        for flag, value in (("--checkpoint", self.checkpoint), ("--dataset_folder", folder)):
            if value is None:
                problems.append(f"{flag}: missing; evaluate.py --help says what it is")
        problems += unknown_losses(self.metrics) + problems_of(self)
        if problems:
            raise EncoreError("\n".join(problems))
