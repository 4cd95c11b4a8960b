"""Continues a song with the model that Encore comes with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from encore.commands import sample
from encore.config import cli
from encore.config.knobs import MAX_SECONDS, MAX_SEED, knob
from encore.inference.config import MAX_TEMPERATURE, SampleConfig
from encore.models.model_folder import PRETRAINED

# On the five validation recordings (four continuations each) the music goes on 0.2 dB louder than it was; at 1, as in
# training, continuations were 1.3 dB louder, at 0.5 0.8 dB, and nearer to the truth (log-mel 0.744 against 0.757).
PRETRAINED_TEMPERATURE = 0.5


@dataclass(frozen=True)
class DemoConfig:
    """All settings of a demonstration; more of them has `encore sample`."""

    song: Path = knob(None, "song to continue: wav, flac, ogg or mp3", argument=True)
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
    candidates: int = knob(1, "number of continuations, each from its own seed", minimum=1, maximum=1024, common=True)
    seed: int = knob(0, "seed of the first candidate", minimum=0, maximum=MAX_SEED, common=True)
    temperature: float = knob(
        PRETRAINED_TEMPERATURE,
        "scale of the noise: how much candidates differ in tone colour and level",
        minimum=0,
        maximum=MAX_TEMPERATURE,
        common=True,
    )
    output: Path = knob(Path("out"), "folder for the results", common=True)


def main(config: DemoConfig) -> None:
    """Continue a song with the small pretrained model that Encore comes with; nothing has to be trained.

    Writes continuation.wav, full.wav, which has the end of the song in front, spectrogram.png and index.html.
    """
    settings = {one.name: getattr(config, one.name) for one in fields(config) if one.name != "song"}
    sample.main(SampleConfig(input=config.song, checkpoint=PRETRAINED, **settings))


app = cli.new_app()
cli.add_command(app, DemoConfig, main)

if __name__ == "__main__":
    cli.run(app)
