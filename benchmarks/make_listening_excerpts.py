"""Makes the excerpts of docs/listen: `python -m benchmarks.make_listening_excerpts MUSIC docs/listen [--picture PNG]`.

MUSIC holds the recordings of docs/pretrained_model.md. Those that are continued here were held out from all training.
The model is the one that Encore comes with, seed and temperature those of `encore demo`; nothing was chosen by ear.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import torch
from PIL import Image
from torch import Tensor

import encore
from encore.audio import find_audio_files, read_audio
from encore.commands.demo import PRETRAINED_TEMPERATURE
from encore.errors import EncoreError
from encore.inference.pipeline import ContinuationPipeline
from encore.reporting.spectrograms import spectrograms

CONTEXT_SECONDS, MADE_SECONDS, SHOWN_SECONDS = 16.0, 8.0, 8.0  # given to the model, made by it, heard before that
COLOURS = 128  # of a picture
QUALITY = 0.35  # of Vorbis, as libsndfile's compression level counts it: 0 best, 1 smallest


@dataclass(frozen=True)
class Piece:
    """A recording that is continued: its file in MUSIC without a suffix, who made it, and where it was published."""

    file: str
    name: str
    title: str
    author: str
    source: str
    licence: str = "CC0 1.0"
    boundary_seconds: float = SHOWN_SECONDS


PIECES = (
    Piece("Downtown_Boogie_Teoh", "downtown_boogie", "Downtown Boogie", "Bryan Teoh", "FreePD.com", "public domain"),
    Piece("Pressure", "pressure", "Pressure", "yd", "opengameart.org/content/pressure"),
    Piece("skyward_storm", "eye_of_the_storm", "Eye of the Storm", "Joth", "opengameart.org/content/eye-of-the-storm"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("music", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--picture", type=Path, help="also draw how the first piece is continued")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = encore.load(device="cpu", precision="fp32")
    songs = {path.stem: path for path in find_audio_files(options.music)}
    for piece in PIECES:
        if piece.file not in songs:
            raise EncoreError(f"{options.music}: no recording {piece.file}; docs/pretrained_model.md lists them")
        song = read_audio(songs[piece.file], model.sample_rate, model.channels)
        write_piece(options.output, piece, song, model)
    listed = [{name: value for name, value in asdict(piece).items() if name != "file"} for piece in PIECES]
    (options.output / "pieces.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    if options.picture is not None:
        draw_first(options.output, options.picture)


def write_piece(folder: Path, piece: Piece, song: Tensor, model: ContinuationPipeline) -> None:
    """Writes a piece as the model continues it, as it is, and the spectrograms of both."""
    rate = model.sample_rate
    end, shown = round(CONTEXT_SECONDS * rate), round(SHOWN_SECONDS * rate)
    made = model.continue_(song[:, :end], rate, MADE_SECONDS, temperature=PRETRAINED_TEMPERATURE)
    signals = {
        "continued": torch.cat([song[:, end - shown : end], made], -1),
        "original": song[:, end - shown : end + made.shape[-1]],
    }
    for kind, audio in signals.items():
        path = folder / f"{piece.name}_{kind}.ogg"
        soundfile.write(path, audio.T.numpy(), rate, format="OGG", subtype="VORBIS", compression_level=QUALITY)
    titles = (f"{piece.title}, continued by the model", f"{piece.title}, as it is")
    draw(dict(zip(titles, signals.values(), strict=True)), rate, folder / f"{piece.name}.png")


def draw_first(folder: Path, picture: Path) -> None:
    """Draws the first piece alone, as it is continued: low enough for the first screen of README.md."""
    audio, rate = soundfile.read(folder / f"{PIECES[0].name}_continued.ogg", dtype="float32", always_2d=True)
    draw({f"{PIECES[0].title}, and from the line on Encore": torch.from_numpy(audio.T)}, rate, picture)


def draw(signals: dict[str, Tensor], rate: int, picture: Path) -> None:
    """Writes spectrograms in few colours, a third of the size, with a line where the continuation begins."""
    spectrograms(signals, rate, picture, begins=SHOWN_SECONDS)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main()
