"""How good the priors are by themselves: expected energy scores of excerpts of the context, as a recording and as the
codec's rendering of it.

python -m benchmarks.bench_priors PAIRS [--split test] [--items 40] [--draws 32] [--codec starter] [--checkpoint FILE]

A prior that plays excerpts chooses frames of the context. Its energy score follows from how far these are from the
truth and from one another, so it is computed from tables of distances between frames, over many draws and without a
decoder; how excerpts are joined is left out. Distances: the audible one and log-mel with a floor as in `losses` (one
FFT, 1024), and `spectral_energy` (FFT 256 and 1024). Skill is 1 − score / score of the replay, with a 95% bootstrap
interval over recordings, on the same pairs for all. "pointer" is that of the checkpoint, or one trained on the training
pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from encore.codecs import Codec, load_codec
from encore.data import Pairs, find_pairs, segment_frames
from encore.data.dataset import PairDataset
from encore.data.latent_cache import LatentCache
from encore.evaluation.dataset import spread
from encore.models.generation import make_generators
from encore.models.loading import load_generator
from encore.models.pointer import Pointer
from encore.models.pointer_prior import Pointed
from encore.models.priors import Context, FrameOrder, draw_lags, lag_probs
from encore.statistics import skill
from encore.training.pointer import HELD_OUT, PAIRS, train_pointer
from losses.audible import FLOOR_DB, full_scale_power
from losses.dsp.scales import Log, SpecificLoudness
from losses.dsp.transforms import ERB, STFT, Mel

BLOCK_SECONDS = 1.0
DECODED = "rhythm, lags of the decoded context"  # instead of those of the recording
EVERY = 2  # frames: of the spectra that are compared
Frames = Callable[[Context, Tensor, int, list[torch.Generator]], Tensor]


def replayed(context: Context, probs: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
    """The context at uniform lags, from a quarter of it on."""
    frames = context.latents.shape[-1]
    lags = torch.cat([draw_lags(1, frames, generator) for generator in generators])[:, None]
    return frames - lags + torch.arange(steps) % lags


def latest(context: Context, probs: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
    """The end of the context, always the same."""
    frames = context.latents.shape[-1]
    return (frames - steps + torch.arange(steps)).clamp_min(0).expand(len(generators), -1)


def rhythmic(context: Context, probs: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
    """The prior "rhythm"."""
    return torch.stack([FrameOrder(probs, generator).indices(0, steps) for generator in generators])


def pointed(pointer: Pointer) -> Frames:
    """The prior "pointer" with these weights."""

    def frames(context: Context, probs: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
        given = Context(context.latents, context.codec, context.audio, len(generators), pointer)
        prior, history, found = Pointed.draw(given, generators), context.latents, []
        block = max(1, round(BLOCK_SECONDS * context.codec.frame_rate))
        for start in range(0, steps, block):
            history = torch.cat([history, prior.frames(start, block, history)], -1)
            found.append((prior.end - block)[:, None] + torch.arange(block))
        return torch.cat(found, 1)[:, :steps]

    return frames


def tables(source: Tensor, target: Tensor, codec: Codec) -> dict[str, tuple[Tensor, Tensor]]:
    """Distances of every second frame of a target to those of a context, and of these to one another.

    Args:
        source: `[1, N]`, what excerpts are taken from.
        target: `[1, N′]`.
    """
    hop, rate = EVERY * codec.hop_length, codec.sample_rate
    mel, erb = Mel(1024, hop, sample_rate=rate, n_mels=80, unit_area=False), ERB(1024, hop, sample_rate=rate)
    loudness = SpecificLoudness(erb.frequencies, full_scale_power(1024))
    log = Log(offset=full_scale_power(1024) * 10 ** (FLOOR_DB / 10))
    parts = []
    for audio in (source[None], target[None]):
        magnitudes = [STFT(size, hop, power=1)(audio)[0, 0] for size in (256, 1024)]
        parts.append((loudness(erb(audio))[0, 0], log(mel(audio))[0, 0] / 2, magnitudes))

    def compare(one: tuple, other: tuple) -> tuple[Tensor, Tensor, Tensor]:
        spectral = [
            torch.cdist(a, b, p=1) / a.shape[1]
            + torch.cdist(a.clamp_min(1e-5).log(), b.clamp_min(1e-5).log()) / a.shape[1] ** 0.5
            for a, b in zip(one[2], other[2], strict=True)
        ]
        bands = one[1].shape[1]
        return (
            torch.cdist(one[0], other[0], p=1),
            torch.cdist(one[1], other[1], p=1) / bands,
            torch.stack(spectral).mean(0),
        )

    to_truth, between = compare(parts[1], parts[0]), compare(parts[0], parts[0])
    return dict(zip(("audible", "floored mel", "spectral"), zip(to_truth, between, strict=True), strict=True))


def score(index: Tensor, to_truth: Tensor, between: Tensor) -> float:
    """The energy score of draws of context frames `index [R, T]`, as `encore.evaluation.metrics.energy_score`."""
    places = (index[:, ::EVERY] // EVERY).T  # [T / EVERY, R]
    steps, draws = places.shape
    attraction = to_truth[torch.arange(steps)[:, None], places].mean()
    pairs = between[places[:, :, None], places[:, None]]
    return float(attraction - pairs.sum() / (steps * draws * (draws - 1)) / 2)


def chosen(pairs: Mapping[str, Pairs], split: str, items: int | None, codec: Codec, folder: Path) -> PairDataset:
    """Some pairs of a split, encoded."""
    every = pairs[split]
    some = every.take(spread(range(len(every)), len(every) if items is None else items))
    cache = LatentCache.open(folder, codec, some.segments)
    cache.complete(np.unique(some.numbers), codec, torch.device("cpu"))
    return PairDataset(some, cache, codec, segment_frames(pairs, codec.hop_length))


def find_pointer(options: argparse.Namespace, pairs: Mapping[str, Pairs], codec: Codec, folder: Path) -> Pointer:
    """That of the checkpoint, or one trained on the training pairs."""
    if options.checkpoint is None:
        train, val = (
            chosen(pairs, split, most, codec, folder) for split, most in (("train", PAIRS), ("val", HELD_OUT))
        )
        return train_pointer(train, val, codec, round(BLOCK_SECONDS * codec.frame_rate), 0)
    pointer = load_generator(options.checkpoint, torch.device("cpu")).model.pointer
    if pointer is None:
        raise SystemExit(f"{options.checkpoint}: was not trained with --prior pointer")
    return pointer


@torch.no_grad()
def measure(data: PairDataset, systems: Mapping[str, Frames], codec: Codec, draws: int) -> dict:
    """Scores of each item by rendering, distance and system."""
    scores: dict[tuple[str, str, str], list[float]] = {}
    for number in range(len(data)):
        latents, audio, target, _, _ = data[number]
        rows = latents[None].expand(draws, -1, -1)
        context = Context(rows, codec, partial(audio.unsqueeze, 0), draws)
        renderings = {"recording": audio, "codec": codec.decode(latents[None])[0, :, : audio.shape[-1]]}
        probs = {key: lag_probs(a[None], codec.hop_length, codec.frame_rate)[0] for key, a in renderings.items()}
        found = {}
        for name, frames in systems.items():
            generators = make_generators([number * 1000 + draw for draw in range(draws)])
            of = probs["codec" if name == DECODED else "recording"]
            found[name] = frames(context, of, target.shape[-1] // codec.hop_length, generators)
        for rendering, source in renderings.items():
            for distance, table in tables(source.mean(0, keepdim=True), target.mean(0, keepdim=True), codec).items():
                for name, index in found.items():
                    scores.setdefault((rendering, distance, name), []).append(score(index, *table))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--items", type=int)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cache_dir", type=Path)
    options = parser.parse_args()
    codec = load_codec(options.codec)
    folder = options.cache_dir or options.pairs / ".latents"
    pairs = find_pairs(options.pairs, codec.sample_rate)
    data = chosen(pairs, options.split, options.items, codec, folder)
    systems = {
        "replay": replayed,
        "latest": latest,
        "rhythm": rhythmic,
        DECODED: rhythmic,
        "end-match": pointed(Pointer()),
        "pointer": pointed(find_pointer(options, pairs, codec, folder)),
    }
    scores = measure(data, systems, codec, options.draws)
    recordings = [pair.recording or pair.name for pair in data.pairs]
    table = Table(title=f"{len(data)} pairs of {options.split}, {len(set(recordings))} recordings")
    for column in ("excerpts of", "distance", "prior", "score", "skill"):
        table.add_column(column)
    for (rendering, distance, name), values in scores.items():
        found = skill(values, scores[rendering, distance, "replay"], recordings)
        interval = "" if found.low is None else f" [{found.low:+.1%}, {found.high:+.1%}]"
        table.add_row(rendering, distance, name, f"{np.mean(values):.4f}", f"{found.value:+.1%}{interval}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
