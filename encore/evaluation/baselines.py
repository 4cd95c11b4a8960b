"""What continues the validation pairs: models, and the baselines that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.data.dataset import Batch
from encore.errors import EncoreError
from encore.evaluation.dataset import EvalSet, partners_elsewhere
from encore.evaluation.metrics.repetition import best_lag
from encore.inference.continuation import continue_latents
from encore.models.loading import Generator
from encore.models.priors import draw_lags, replay

TRUTH = "truth"
OTHER_MUSIC = "other_music"
BASELINES = ("silence", "copy", "loop", "replay", OTHER_MUSIC, "codec", TRUTH)
SEEDS_PER_PAIR = 1000  # distance of the seeds of two pairs' first candidates


@dataclass(frozen=True)
class Continuer:
    """Something that continues music.

    Attributes:
        name: in tables and metrics.
        note: what it is, in a sentence.
        make: `make(batch, frames, seeds)` gives audio `[B · N, C, frames · hop_length]`, one continuation per seed,
            those of a pair next to each other.
        deterministic: all candidates would be equal, so there is only one.
        long_form: it can continue for longer than the pairs are.
    """

    name: str
    note: str
    make: Callable[[Batch, int, Sequence[int]], Tensor]
    deterministic: bool = True
    long_form: bool = False

    @torch.no_grad()
    def draw(self, batch: Batch, candidates: int, seed: int, frames: int | None = None) -> Tensor:
        """Continuations `[B, N, C, frames · hop_length]`; N is 1 if deterministic.

        Candidate n of a pair is the same for any batch and any number of candidates.

        Args:
            frames: latent frames of a continuation; None for as many as the target has.
        """
        seeds = seeds_of(batch, 1 if self.deterministic else candidates, seed)
        audio = self.make(batch, batch.target_latents.shape[-1] if frames is None else frames, seeds)
        return audio.unflatten(0, (len(batch), -1))


def seeds_of(batch: Batch, candidates: int, seed: int) -> list[int]:
    """One seed per pair and candidate, those of a pair next to each other."""
    return [
        (seed * 1_000_003 + number) * SEEDS_PER_PAIR + candidate
        for number in batch.number.tolist()
        for candidate in range(candidates)
    ]


def model_continuer(name: str, generator: Generator, temperature: float, own_latents: bool = False) -> Continuer:
    """A trained model.

    Args:
        own_latents: encode the inputs with the model's codec, because the cached latents are another codec's.
    """

    def make(batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        context = generator.codec.encode(batch.input_audio) if own_latents else batch.context
        return continue_latents(generator, context, frames, list(seeds), temperature=temperature)

    generative = generator.generation.generative
    note = "A model that draws continuations." if generative else "A model that was trained by regression."
    return Continuer(name, note, make, deterministic=not generative, long_form=True)


class Baselines:
    """The baselines of an evaluation, whose methods are `Continuer.make`.

    Args:
        data: the validation pairs; those of other recordings serve as other music.
        margin: latent frames that a decoded crop needs on its left (`Codec.measure_margin`).
        seed: for the choice of other music.
    """

    def __init__(self, codec: Codec, data: EvalSet, margin: int, seed: int):
        self.codec, self.data, self.margin = codec, data, margin
        self.partners = partners_elsewhere(data.recordings, seed)

    def continuers(self) -> list[Continuer]:
        """Every baseline, from the poorest to the upper bound, and the truth last; other music if there is any."""
        made = [
            Continuer("silence", "Digital silence.", self.silence),
            Continuer("copy", "The input’s end, played again.", self.copy),
            Continuer(
                "loop",
                "The input's last bars, repeated at the lag of its best autocorrelation.",
                self.loop,
                long_form=True,
            ),
            Continuer(
                "replay",
                "The input's latents, repeated at a random lag.",
                self.replay,
                deterministic=False,
                long_form=True,
            ),
        ]
        if self.partners is not None:
            made.append(Continuer(OTHER_MUSIC, "The music of another recording.", self.other_music))
        made.append(
            Continuer("codec", "The truth through the codec: the best that its latents allow.", self.through_codec)
        )
        return [*made, Continuer(TRUTH, "The music that really follows.", self.truth)]

    def silence(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return batch.input_audio.new_zeros(*batch.input_audio.shape[:2], frames * self.codec.hop_length)

    def copy(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        audio = batch.input_end
        lags = torch.full((len(batch),), audio.shape[-1], device=audio.device)
        return replay(audio, lags, 0, frames * self.codec.hop_length)

    def loop(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        audio = batch.input_audio
        lags = torch.tensor([best_lag(item, self.codec.sample_rate) for item in audio], device=audio.device)
        return replay(audio, lags, 0, frames * self.codec.hop_length)

    def replay(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        length = batch.context.shape[-1]
        lags = torch.cat([draw_lags(1, length, torch.Generator().manual_seed(seed)) for seed in seeds])
        context = batch.context.repeat_interleave(len(seeds) // len(batch), 0)
        latents = replay(context, lags.to(context.device), 0, frames)
        return self.codec.decode_continuation(context, latents, self.margin)

    def other_music(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        assert self.partners is not None
        return self.data.load(self.partners[number] for number in batch.number.tolist()).target_audio

    def through_codec(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return self.codec.decode_continuation(batch.context, batch.target_latents, self.margin)

    def truth(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return batch.target_audio


def check_comparable(codec: Codec, others: Mapping[str, Codec]) -> None:
    """Raises EncoreError for codecs with another sample rate, channels or hop, whose audio cannot be compared."""
    problems = []
    for name, other in others.items():
        mine, its = ((c.sample_rate, c.channels, c.hop_length) for c in (codec, other))
        if mine != its:
            problems.append(
                f"--against {name}: its codec has {its[0]} Hz, {its[1]} channels and a hop of {its[2]} samples, "
                f"that of --checkpoint {mine[0]} Hz, {mine[1]} and {mine[2]}; compare models with like codecs"
            )
    if problems:
        raise EncoreError("\n".join(problems))
