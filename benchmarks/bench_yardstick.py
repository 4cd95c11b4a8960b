"""What the scoring distances hear: the truth changed a little, and continuations that are worse, under all of them.

python -m benchmarks.bench_yardstick PAIRS [--split test] [--items N] [--codec starter]

The first table has the skill, 1 − score / score of the replay, with a 95% bootstrap interval over recordings. The
replay is of the recording itself, without the codec. The second has the share of pairs at which a system is nearer to
the truth than any of four replays; the agreement of the pulse with the context's; and the patch distance. Needs a
libsndfile that writes MP3 (1.1 or later).
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import losses
from encore.codecs import Codec, load_codec
from encore.data import find_pairs
from encore.data.dataset import Batch
from encore.evaluation.dataset import EvalSet, partners_elsewhere
from encore.evaluation.metrics.distribution import energy_distance
from encore.evaluation.metrics.embeddings import latent_deviation, latent_distance, log_mel_patches
from encore.evaluation.metrics.registry import short_name
from encore.evaluation.metrics.rhythm_harmony import pulse_agreement
from encore.evaluation.per_item import DISTANCES, LATENTS
from encore.models.priors import draw_lags, replay
from encore.statistics import group_mean, skill

CANDIDATES, BATCH = 4, 2
NOISE_DB = 30
DELAY_SECONDS, SHARD_SECONDS, JOIN_SECONDS = 0.01, 0.1, 0.005
MP3_BITS = 128_000
REFERENCE = "replay"

Distance = Callable[[Tensor, Tensor], Tensor]


class Systems:
    """Continuations of a batch by name, `[N, B, C, S]`, N candidates; seeded by the batch.

    Args:
        codec: that of the rows which go through one.
        others: the pair of another recording for each, if there are several recordings.
    """

    def __init__(self, codec: Codec, data: EvalSet):
        self.codec, self.data = codec, data
        self.others = partners_elsewhere(data.recordings, 0)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(int(batch.number[0]))
        context, truth = batch.input_audio[..., -batch.target_audio.shape[-1] :], batch.target_audio
        latents = batch.context[..., -batch.target_latents.shape[-1] :]
        level = truth.square().mean((1, 2), keepdim=True).sqrt()
        delay = round(DELAY_SECONDS * self.codec.sample_rate)
        white = torch.randn((CANDIDATES, *truth.shape), generator=random)
        lags = [draw_lags(len(batch), latents.shape[-1], random) for _ in range(CANDIDATES)]
        samples = truth.shape[-1]
        made = {
            "truth": truth[None],
            "truth through the codec": self._decoded(batch.target_latents, samples)[None],
            f"truth, noise at {NOISE_DB} dB": (truth + 10 ** (-NOISE_DB / 20) * level * white[0])[None],
            "truth, 1 dB louder": (truth * 10 ** (1 / 20))[None],
            "truth, 1 dB softer": (truth * 10 ** (-1 / 20))[None],
            "truth, 10 ms late": torch.cat([context[..., -delay:], truth[..., :-delay]], -1)[None],
            "truth, MP3 at 128 kb/s": torch.stack([through_mp3(sound, self.codec.sample_rate) for sound in truth])[
                None
            ],
            REFERENCE: torch.stack([replay(context, one * self.codec.hop_length, 0, samples) for one in lags]),
            "replay through the codec": torch.stack(
                [self._decoded(replay(latents, one, 0, latents.shape[-1]), samples) for one in lags]
            ),
            "shards of 100 ms": torch.stack(
                [shards(context, self.codec.sample_rate, random) for _ in range(CANDIDATES)]
            ),
            "white noise": level * white,
            "silence": torch.zeros_like(truth)[None],
        }
        if self.others is not None:
            numbers = [self.others[number] for number in batch.number.tolist()]
            made["other music"] = self.data.load(numbers).target_audio[None]
        return made

    def _decoded(self, latents: Tensor, samples: int) -> Tensor:
        return self.codec.decode(latents)[..., :samples]


def through_mp3(sound: Tensor, sample_rate: int) -> Tensor:
    """`[C, N]` through libsndfile's MP3 encoder at the bit rate that it has nearest to 128 kb/s.

    Its compression level of 0 to 1 is linear in the bit rate, from 320 kb/s to 32 above 24 kHz, else from 160 to 8.
    """
    most, least = (320_000, 32_000) if sample_rate > 24_000 else (160_000, 8_000)
    level, file = (most - MP3_BITS) / (most - least), io.BytesIO()
    with soundfile.SoundFile(
        file, "w", sample_rate, len(sound), format="MP3", compression_level=level, bitrate_mode="CONSTANT"
    ) as coded:
        coded.write(sound.T.numpy())
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(decoded.T.copy())


def shards(context: Tensor, sample_rate: int, random: torch.Generator) -> Tensor:
    """Pieces of a tenth of a second from anywhere in the context `[B, C, N]`, joined by cross-fades of 5 ms."""
    size, join, samples = round(SHARD_SECONDS * sample_rate), round(JOIN_SECONDS * sample_rate), context.shape[-1]
    ramp = torch.linspace(0, 1, join)
    window = torch.cat([ramp, torch.ones(size - join), 1 - ramp])
    made = torch.zeros(*context.shape[:-1], samples + size + join)
    for start in range(0, samples, size):
        places = torch.randint(samples - size - join, (len(context),), generator=random).tolist()
        pieces = [row[:, place : place + size + join] for row, place in zip(context, places, strict=True)]
        made[..., start : start + size + join] += window * torch.stack(pieces)
    return made[..., :samples]


class Scores:
    """What is measured of each system, one value per pair: scores, nearness, pulses; and patches."""

    def __init__(self, codec: Codec, distances: Mapping[str, Distance], deviation: Tensor):
        self.codec, self.distances, self.deviation = codec, distances, deviation
        self.scores: dict[tuple[str, str], list[float]] = {}
        self.nearer: dict[tuple[str, str], list[float]] = {}
        self.pulses: dict[str, list[float]] = {}
        self.patches: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, systems: Mapping[str, Tensor]) -> None:
        for name, distance in self.distances.items():
            with losses.shared_spectra():
                self._compare(name, distance, {key: list(made) for key, made in systems.items()}, batch.target_audio)
        encoded = {key: [self.codec.encode(one) for one in made] for key, made in systems.items()}

        def between_latents(one: Tensor, other: Tensor) -> Tensor:
            return latent_distance(one, other, self.deviation)

        self._compare(LATENTS, between_latents, encoded, encoded["truth"][0])
        for key, made in systems.items():
            agreements = [
                pulse_agreement(context, sound, self.codec.sample_rate)
                for context, sound in zip(batch.input_audio, made[0], strict=True)
            ]
            self.pulses.setdefault(key, []).extend(agreements)
            self.patches.setdefault(key, []).append(log_mel_patches(made[0], self.codec.sample_rate))

    def _compare(self, name: str, distance: Distance, systems: Mapping[str, Sequence[Tensor]], truth: Tensor) -> None:
        to_truth = {key: torch.stack([distance(one, truth) for one in made]) for key, made in systems.items()}
        least = to_truth[REFERENCE].amin(0)
        for key, made in systems.items():
            between = [distance(one, other) for one, other in itertools.combinations(made, 2)]
            repulsion = torch.stack(between).mean(0) if between else torch.zeros(len(truth))
            self.scores.setdefault((key, name), []).extend((to_truth[key].mean(0) - repulsion / 2).tolist())
            self.nearer.setdefault((key, name), []).extend((to_truth[key].mean(0) < least).float().tolist())

    def tables(self, recordings: Sequence[str], title: str) -> list[Table]:
        names = [*self.distances, LATENTS]
        skills, others = Table(title=f"Skill, {title}"), Table(title="Nearer to the truth than any of 4 replays")
        for table, more in ((skills, []), (others, ["pulse", "patch distance"])):
            table.add_column("continuation")
            for name in [*map(short_name, names), *more]:
                table.add_column(name, justify="right")
        for key in self.pulses:
            cells = []
            for name in names:
                found = skill(self.scores[key, name], self.scores[REFERENCE, name], recordings)
                cells.append(f"{found.value:+.0%} [{found.low or 0:+.0%}, {found.high or 0:+.0%}]")
            skills.add_row(key, *cells)
            near = [f"{torch.tensor(self.nearer[key, name]).mean():.0%}" for name in names]
            patch = energy_distance(torch.cat(self.patches[key]), torch.cat(self.patches["truth"])).value
            others.add_row(key, *near, f"{group_mean(self.pulses[key], recordings).value:.2f}", f"{patch:.3f}")
        return [skills, others]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--cache_dir", type=Path)
    options = parser.parse_args()
    codec, cpu = load_codec(options.codec), torch.device("cpu")
    pairs = find_pairs(options.pairs, codec.sample_rate)
    if options.split not in pairs:
        parser.error(f"{options.pairs} has no pairs of the split {options.split}; there are {', '.join(pairs)}")
    chosen = {"train": pairs["train"], "val": pairs[options.split]}
    data = EvalSet.open(codec, chosen, options.cache_dir or options.pairs / ".latents", options.items, 0, cpu)
    distances = {name: losses.create(name, codec.sample_rate, reduction="none") for name in DISTANCES}
    deviation = latent_deviation(torch.stack([data.load([number]).context[0] for number in range(len(data))]))
    systems, scores = Systems(codec, data), Scores(codec, distances, deviation)
    for first in range(0, len(data), BATCH):
        batch = data.load(range(first, min(first + BATCH, len(data))))
        scores.add(batch, systems(batch))
    title = f"{len(data)} pairs of {len(set(data.recordings))} recordings"
    for table in scores.tables(data.recordings, title):
        Console(width=180).print(table)


if __name__ == "__main__":
    main()
