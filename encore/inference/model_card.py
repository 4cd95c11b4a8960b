"""Model cards: what a model is, what it learned from and by which losses, how good it was found to be, its licence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from encore.config.knobs import knobs_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.json_files import read_json
from encore.models.loading import Generator

CARD_FILE = "README.md"
UNKNOWN_LICENCE = "unknown"
TAGS = ["music", "audio", "music-continuation", "pytorch_model_hub_mixin", "model_hub_mixin"]
COMPARED = ("prior", "replay")  # systems of the table beside the model
# Settings whose values say how a model was trained; those of its losses come first.
SHOWN = ("batch_size", "lr", "scheduler", "warmup_steps", "ema_decay", "decode_seconds", "samples", "rollout_blocks")


def model_card(
    generator: Generator,
    license: str = UNKNOWN_LICENCE,
    data: str = "",
    evaluation: str | Path | Mapping[str, Any] | None = None,
) -> str:
    """A card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        generator: the model.
        license: identifier as on the Hub, such as mit or cc-by-4.0.
        data: what it was trained on: music, its source and licence; Markdown.
        evaluation: evaluation.json, or its content.

    Raises:
        EncoreError: the evaluation is not one that `evaluate.py` wrote.
    """
    title = "A model that continues music"
    front = {"license": license, "library_name": "encore", "pipeline_tag": "audio-to-audio", "tags": TAGS}
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", f"# {title}", ""]
    lines += [*_use(generator), *_model(generator), *_training(generator, data)]
    lines += ["## Evaluation", "", *(["Not evaluated."] if evaluation is None else _evaluation(evaluation)), ""]
    lines += ["## Licence", "", "Not stated." if license == UNKNOWN_LICENCE else f"{license}.", ""]
    return "\n".join(lines)


def _use(generator: Generator) -> Iterator[str]:
    seconds = generator.context_frames / generator.codec.frame_rate
    yield f"It is given the last {seconds:g} s of a song and goes on from there. In Python:"
    yield from ("", "```python", "from encore import ContinuationModel", "")
    yield 'model = ContinuationModel.from_pretrained("…")  # this folder, or its name on the Hub'
    yield 'audio = model.continue_("song.wav", seconds=16)  # [C, N], at the song\'s sample rate'
    yield from ("```", "", "In the shell:", "")
    yield from ("    encore sample --checkpoint FOLDER --input song.wav", "")


def _model(generator: Generator) -> Iterator[str]:
    codec, model = generator.codec, generator.config.model
    count = sum(weight.numel() for weight in generator.model.state_dict().values())
    name = Path(generator.config.codec.name).name
    generation = generator.generation
    block = generation.block_frames / codec.frame_rate
    yield from ("## Model", "")
    yield (
        f"- codec {name}: {codec.sample_rate} Hz, {codec.channels} channel{'s' * (codec.channels > 1)}, "
        f"{codec.frame_rate:g} frames of {codec.latent_dim} latents per second"
    )
    yield (f"- transformer: {model.num_layers} layers of width {model.d_model}, {model.nhead} heads, {count:,} weights")
    yield f"- blocks of {block:g} s; a continuation starts from the prior `{model.prior}`"
    yield ""


def _training(generator: Generator, data: str) -> Iterator[str]:
    config, progress = generator.config, generator.progress
    rate = generator.codec.frame_rate
    lengths = f"{generator.context_frames / rate:g} s and the {generator.segment_frames / rate:g} s after them"
    yield from ("## Training", "", f"Data: {(data or 'not stated').rstrip('.')}.", "")
    yield f"Pairs of {lengths}: {progress.get('samples', 0):,} in {progress.get('step', 0):,} steps."
    yield from ("", f"Objective: {config.objective.kind}, the weighted sum of these losses on decoded audio:", "")
    yield from ("| loss | weight |", "|---|---|")
    yield from (f"| `{name}` | {weight:g} |" for name, weight in config.objective.weights.items() if weight)
    known = {one.name for one in knobs_of(TrainConfig)}
    values = {name: config.to_dict()[name] for name in SHOWN if name in known}
    yield from ("", "Settings: " + ", ".join(f"`--{name} {value}`" for name, value in values.items()) + ".", "")


def _evaluation(evaluation: str | Path | Mapping[str, Any]) -> Iterator[str]:
    """The headline's table: the model, what it has to beat, and the truth through the codec, with 95% intervals."""
    content = evaluation if isinstance(evaluation, Mapping) else _read(Path(evaluation))
    try:
        headings, systems = content["headline"]["measures"], content["headline"]["systems"]
        count, songs = content["items"], len(set(content["recordings"]))
        yield (
            f"`evaluate.py` on {count} pairs from {songs} recordings that it was not trained on, with 95% intervals; "
            f"continuations of {content['seconds']:g} s, candidates: {content['facts']['Candidates']}."
        )
        yield from ("", "| | " + " | ".join(headings.values()) + " |", "|---" * (len(headings) + 1) + "|")
        for name in ("model", *COMPARED):
            if name in systems:
                values = (systems[name].get(metric) for metric in headings)
                yield f"| {name} | " + " | ".join(map(_interval, values)) + " |"
        yield from ("", content["headline"]["caption"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EncoreError(
            f"evaluation: not what evaluate.py writes ({error!r:.100}); give its evaluation.json"
        ) from error


def _read(path: Path) -> Any:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise EncoreError(f"--evaluation {path}: cannot be read ({error}); give an evaluation.json") from error
    if content is None:
        raise EncoreError(f"--evaluation {path}: no such file; evaluate.py writes REPORT/evaluation.json")
    return content


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    text = f"{value['value']:.3f}"
    low, high = value.get("low"), value.get("high")
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"
