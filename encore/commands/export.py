"""Writes a trained model as a folder to pass on: weights, settings and a model card, as on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from encore.config import cli
from encore.config.knobs import knob, problems_of
from encore.errors import EncoreError
from encore.inference.model_card import CARD_FILE, UNKNOWN_LICENCE, model_card
from encore.models.loading import load_generator
from encore.models.model_folder import is_model


@dataclass(frozen=True)
class ExportConfig:
    """All settings of an export. `checkpoint` and `output` have no default: `check` refuses None."""

    checkpoint: Path = knob(None, "checkpoint of a training run, best_model.pt", common=True)
    output: Path = knob(None, "folder for model.safetensors, config.json and README.md", common=True)
    half: bool = knob(False, "store 16 bits per weight instead of 32", common=True)
    evaluation: Path | None = knob(None, "evaluation.json whose figures the model card shows", common=True)
    data: str = knob("", "what the model was trained on, for the model card", common=True)
    license: str = knob(UNKNOWN_LICENCE, "licence of the model, as on the Hub: mit, cc-by-4.0", common=True)
    codec_repository: Path | None = knob(None, "folder with the pretrained codecs' files", common=True)

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        problems = []
        if self.checkpoint is None:
            problems.append("--checkpoint: missing; training writes CHECKPOINT_DIR/best_model.pt")
        elif not is_model(self.checkpoint):
            problems.append(
                f"--checkpoint {self.checkpoint}: no such file; training writes CHECKPOINT_DIR/best_model.pt"
            )
        if self.output is None:
            problems.append("--output: missing; name a folder for the model")
        problems += problems_of(self)
        if problems:
            raise EncoreError("\n".join(problems))


def main(config: ExportConfig) -> None:
    """Write a model as a folder to pass on, without the state of its training.

    `--checkpoint` of the other commands and `encore.load` take such a folder, and so does
    `ContinuationModel.from_pretrained`; `push_to_hub` uploads the same.
    """
    config.check()
    generator = load_generator(config.checkpoint, torch.device("cpu"), config.codec_repository)
    card = model_card(generator, config.license, config.data, config.evaluation)
    generator.save(config.output, config.half)
    (config.output / CARD_FILE).write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in config.output.iterdir() if file.is_file())
    Console(highlight=False).print(f"{config.output}: {size / 1e6:.1f} MB", soft_wrap=True, markup=False)


app = cli.new_app()
cli.add_command(app, ExportConfig, main)

if __name__ == "__main__":
    cli.run(app)
