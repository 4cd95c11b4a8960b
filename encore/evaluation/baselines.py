"""What may continue a clip: models, and the baselines that they are measured beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs.encodec import FrozenCodec
from encore.data.dataset import PairDataset
from encore.errors import EncoreError
from encore.evaluation.dataset import Clips, load_clips
from encore.evaluation.metrics.repetition import best_lag
from encore.inference.continuation import continue_latents
from encore.models.loading import Generator
from encore.models.priors import draw_lags, replay

TRUTH = "truth"
OTHER_MUSIC = "other_music"
BASELINES = ("silence", "copy", "loop", "replay", OTHER_MUSIC, "codec", TRUTH)
SEEDS_PER_PAIR = 1000  # so far apart are the seeds of two pairs' first candidates


@dataclass(frozen=True)
class System:
    """Something that continues music.

    Attributes:
        name: in tables, and of its metrics.
        note: what it is, in a sentence.
        make: `make(clips, candidates, seed)` gives audio `[B, candidates, C, frames * hop_length]`.
        deterministic: all candidates would be equal, so there is one.
        endless: it can go on for longer than a pair.
    """

    name: str
    note: str
    make: Callable[[Clips, int, int], Tensor]
    deterministic: bool = True
    endless: bool = False

    @torch.no_grad()
    def draw(self, clips: Clips, candidates: int, seed: int) -> Tensor:
        """Continuations `[B, N, C, S]`; N is 1 for a deterministic system.

        Candidate n of a pair is the same whatever the batch and however many candidates there are.
        """
        return self.make(clips, 1 if self.deterministic else candidates, seed)


def seeds_of(clips: Clips, candidates: int, seed: int) -> list[int]:
    """One seed per pair and candidate, those of a pair beside each other."""
    return [
        (seed * 1_000_003 + number) * SEEDS_PER_PAIR + candidate
        for number in clips.numbers
        for candidate in range(candidates)
    ]


def model_system(name: str, generator: Generator, temperature: float, own_latents: bool = False) -> System:
    """A trained model; with `own_latents` the inputs are encoded by its codec, which isn't that of the cache."""

    def make(clips: Clips, candidates: int, seed: int) -> Tensor:
        context = generator.codec.encode(clips.input) if own_latents else clips.context
        seeds = seeds_of(clips, candidates, seed)
        audio = continue_latents(
            generator, context.repeat_interleave(candidates, 0), clips.frames, seeds, temperature=temperature
        )
        return audio.unflatten(0, (len(clips), candidates))

    generative = generator.generation.generative
    note = "A model that draws continuations." if generative else "A model that was trained by regression."
    return System(name, note, make, deterministic=not generative, endless=True)


def baselines(codec: FrozenCodec, pairs: PairDataset, partners: Sequence[int] | None, margin: int) -> list[System]:
    """Every baseline, from the poorest to the ceiling, and last the truth.

    Args:
        partners: by the number of a pair, that of the pair whose truth it gets as other music (see
            `partners_elsewhere`); None leaves that one out.
        margin: latent frames that a decoded crop needs on its left (`FrozenCodec.measure_margin`).
    """

    def silence(clips: Clips, candidates: int, seed: int) -> Tensor:
        return _wave(clips.input.new_zeros(*clips.input.shape[:2], clips.frames * codec.hop_length))

    def copy(clips: Clips, candidates: int, seed: int) -> Tensor:
        length = clips.input.shape[-1]
        lags = torch.full((len(clips),), length, device=clips.input.device)
        return _wave(replay(clips.input, lags, 0, clips.frames * codec.hop_length))

    def loop(clips: Clips, candidates: int, seed: int) -> Tensor:
        lags = torch.tensor([best_lag(audio, codec.sample_rate) for audio in clips.input], device=clips.input.device)
        return _wave(replay(clips.input, lags, 0, clips.frames * codec.hop_length))

    def replayed(clips: Clips, candidates: int, seed: int) -> Tensor:
        frames = clips.context.shape[-1]
        seeds = seeds_of(clips, candidates, seed)
        lags = torch.cat([draw_lags(1, frames, torch.Generator().manual_seed(number)) for number in seeds])
        context = clips.context.repeat_interleave(candidates, 0)
        latents = replay(context, lags.to(context.device), 0, clips.frames)
        return codec.decode_continuation(context, latents, margin).unflatten(0, (len(clips), candidates))

    def other_music(clips: Clips, candidates: int, seed: int) -> Tensor:
        assert partners is not None
        others = load_clips(pairs, [partners[number] for number in clips.numbers], clips.input.device)
        return _wave(others.truth)

    def through_codec(clips: Clips, candidates: int, seed: int) -> Tensor:
        return _wave(codec.decode_continuation(clips.context, clips.truth_latents, margin))

    made = [
        System("silence", "Digital silence.", silence),
        System("copy", "The input, played again.", copy),
        System("loop", "The input's last bars, repeated at the lag of its best autocorrelation.", loop, endless=True),
        System("replay", "The input's latents, repeated at a random lag.", replayed, deterministic=False, endless=True),
    ]
    if partners is not None:
        made.append(System(OTHER_MUSIC, "How another recording goes on.", other_music))
    made.append(System("codec", "The truth through the codec: the best that its latents allow.", through_codec))
    return [*made, System(TRUTH, "How the music really goes on.", lambda clips, candidates, seed: _wave(clips.truth))]


def check_comparable(codec: FrozenCodec, others: Mapping[str, FrozenCodec]) -> None:
    """Raises EncoreError for those whose codec has another sample rate, channels or hop: they make other audio."""
    problems = []
    for name, other in others.items():
        mine, its = ((c.sample_rate, c.channels, c.hop_length) for c in (codec, other))
        if mine != its:
            problems.append(
                f"--against {name}: its codec has {its[0]} Hz, {its[1]} channels and a hop of {its[2]} samples, "
                f"that of --checkpoint {mine[0]} Hz, {mine[1]} and {mine[2]}; compare models of like codecs"
            )
    if problems:
        raise EncoreError("\n".join(problems))


def _wave(audio: Tensor) -> Tensor:
    """One candidate per item."""
    return audio[:, None]
