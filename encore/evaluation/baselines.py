"""What continues the held-out pairs: models, their priors, and the baselines that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from encore.codecs import Codec
from encore.data.dataset import Batch
from encore.errors import EncoreError
from encore.evaluation.dataset import EvalSet, partners_elsewhere
from encore.evaluation.metrics.log_mel import power_spectrogram, window_length
from encore.evaluation.metrics.repetition import best_lag
from encore.inference.continuation import Contexts, continue_latents, fade_frames, lead_frames
from encore.models.generation import make_generators
from encore.models.loading import Generator
from encore.models.priors import crossfade, draw_lags, preceding, replayed_frames, take
from encore.models.priors import replay as repeat
from encore.registry import PRIORS

MODEL = "model"  # the name of the model that is evaluated
TRUTH, CODEC = "truth", "codec"
OTHER_MUSIC = "other_music"
NEGATIVES = ("noise", "shards", OTHER_MUSIC)  # a yardstick is of use if they rank last
BASELINES = ("silence", *NEGATIVES, "copy", "loop", "replay", CODEC, TRUTH)
PRIOR = "prior"  # the prior of the model that is evaluated, without the model
SHARD_SECONDS = 0.1
NOISE_WINDOW_SECONDS = 0.085  # of the spectrum that noise is given: too short to keep single notes
SEEDS_PER_PAIR = 1000  # distance of the seeds of two pairs' first candidates


@dataclass(frozen=True)
class Continuer:
    """Something that continues music.

    Attributes:
        name: in tables and metrics.
        note: what it is, in a sentence.
        make: `make(batch, frames, seeds)` gives audio `[B · N, C, lead + frames · hop_length]`, one continuation per
            seed, those of a pair next to each other.
        deterministic: all candidates would be equal, so there is only one.
        long_form: it can continue for longer than the pairs are.
        recorded: its audio went through no codec.
        reference: the continuer that the critic takes for real music: the truth through the same codec, so that the
            sound of the codec is no cue. What is recorded goes through the codec for the critic.
        prior: the name of the continuer that is its prior alone, if it is a model with one.
        lead: samples that `make` gives of the input's end, as it goes over into the continuation.
    """

    name: str
    note: str
    make: Callable[[Batch, int, Sequence[int]], Tensor]
    deterministic: bool = True
    long_form: bool = False
    recorded: bool = False
    reference: str = CODEC
    prior: str | None = None
    lead: int = 0

    @torch.no_grad()
    def draw(self, batch: Batch, candidates: int, seed: int, frames: int | None = None) -> Tensor:
        """Continuations `[B, N, C, frames · hop_length]`; N is 1 if deterministic. See `hear`."""
        return self.hear(batch, candidates, seed, frames)[1]

    @torch.no_grad()
    def hear(self, batch: Batch, candidates: int, seed: int, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Continuations `[B, N, C, frames · hop_length]`, and what is heard before the first ones, `[B, C, K]`.

        N is 1 if deterministic. What is heard before is the input, whose end is cross-faded into `lead`. Candidate n of
        a pair is the same for any batch and any number of candidates.

        Args:
            frames: latent frames of a continuation; None for as many as the target has.
        """
        seeds = seeds_of(batch, 1 if self.deterministic else candidates, seed)
        made = self.make(batch, batch.target_latents.shape[-1] if frames is None else frames, seeds)
        made, before = made.unflatten(0, (len(batch), -1)), batch.input_audio
        if self.lead:
            faded = crossfade(before[..., -self.lead :], made[:, 0, :, : self.lead])
            before = torch.cat([before[..., : -self.lead], faded], -1)
        return before, made[..., self.lead :]


def seeds_of(batch: Batch, candidates: int, seed: int) -> list[int]:
    """One seed per pair and candidate, those of a pair next to each other."""
    return [
        (seed * 1_000_003 + number) * SEEDS_PER_PAIR + candidate
        for number in batch.number.tolist()
        for candidate in range(candidates)
    ]


def model_continuers(name: str, generator: Generator, temperature: float, own_codec: bool = False) -> list[Continuer]:
    """A trained model, its prior alone if it draws continuations around one, and its codec's ceiling if it has its own.

    Args:
        own_codec: the model's codec is not the evaluation's. It encodes the inputs, as the cached latents are another
            codec's.
    """
    codec, generative = generator.codec, generator.generation.generative
    has_prior = generative and not PRIORS.find(generator.generation.prior).empty
    ceiling = f"{name}_{CODEC}" if own_codec else CODEC

    def latents_of(batch: Batch) -> Tensor:
        return codec.encode(batch.input_audio) if own_codec else batch.context

    def make(batch: Batch, frames: int, seeds: Sequence[int], prior_alone: bool = False) -> Tensor:
        contexts = Contexts(latents_of(batch), batch.input_audio)
        return continue_latents(generator, contexts, frames, list(seeds), temperature, prior_alone)

    def through_codec(batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return truth_through(codec, Contexts(latents_of(batch), batch.input_audio), batch, generator.margin)

    note = "A model that draws continuations." if generative else "A model that was trained by regression."
    own_prior = prior_name(name) if has_prior else None
    # Excerpts are played with what the codec leaves out, so for the critic they go through the codec once more.
    model = Continuer(name, note, make, not generative, True, recorded=has_prior, reference=ceiling, prior=own_prior)
    made = [model]
    if own_prior is not None:
        note = f"The prior of {name} ({generator.generation.prior}) without the model, from the same seeds."
        alone = partial(make, prior_alone=True)
        made.append(replace(model, name=own_prior, note=note, make=alone, prior=None))
    if own_codec:
        note = f"The truth through the codec of {name}: the best that its latents allow."
        made.append(Continuer(ceiling, note, through_codec, reference=TRUTH))
    return [replace(continuer, lead=fade_frames(codec) * codec.hop_length) for continuer in made]


def prior_name(model: str) -> str:
    """The name of the continuer that is a model's prior alone."""
    return PRIOR if model == MODEL else f"{model}_{PRIOR}"


class Baselines:
    """The baselines of an evaluation, whose methods are `Continuer.make`.

    Args:
        data: the held-out pairs; those of other recordings serve as other music.
        margin: latent frames that a decoded crop needs on its left (`Codec.measure_margin`).
        seed: for the choice of other music.
    """

    def __init__(self, codec: Codec, data: EvalSet, margin: int, seed: int):
        self.codec, self.data, self.margin = codec, data, margin
        self.partners = partners_elsewhere(data.recordings, seed)

    def continuers(self) -> list[Continuer]:
        """Every baseline, from the poorest to the upper bound, and the truth last; other music if there is any."""
        note = "The music of another recording."
        other = [Continuer(OTHER_MUSIC, note, self.other_music, recorded=True)] if self.partners else []
        note = "The input's last bars, repeated at the lag of its best autocorrelation."
        loop = Continuer("loop", note, self.loop, long_form=True, recorded=True)
        lead = fade_frames(self.codec) * self.codec.hop_length
        note = "The input, played again from a random lag."
        replayed = Continuer("replay", note, self.replay, deterministic=False, long_form=True, recorded=True, lead=lead)
        note = "Gaussian noise with the truth's spectrum and level."
        noise = Continuer("noise", note, self.noise, deterministic=False, recorded=True)
        note = "The input's latents in random pieces of a tenth of a second."
        shards = Continuer("shards", note, self.shards, deterministic=False)
        note = "The truth through the codec: the best that its latents allow."
        made = [
            Continuer("silence", "Digital silence.", self.silence, recorded=True),
            noise,
            shards,
            *other,
            Continuer("copy", "The input’s end, played again.", self.copy, recorded=True),
            loop,
            replayed,
            Continuer(CODEC, note, self.through_codec, reference=TRUTH),
            Continuer(TRUTH, "The music that really follows.", self.truth, recorded=True, reference=TRUTH),
        ]
        return [one if one.recorded else replace(one, lead=lead) for one in made]

    def silence(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return batch.input_audio.new_zeros(*batch.input_audio.shape[:2], frames * self.codec.hop_length)

    def noise(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        truth = batch.target_audio.repeat_interleave(len(seeds) // len(batch), 0)
        length = frames * self.codec.hop_length
        white = torch.stack([torch.randn(length, generator=generator) for generator in make_generators(seeds)])
        return coloured(white.to(truth), truth, self.codec.sample_rate)

    def shards(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        context = batch.context.repeat_interleave(len(seeds) // len(batch), 0)
        size = min(context.shape[-1], max(1, round(SHARD_SECONDS * self.codec.frame_rate)))
        count, places = -(-frames // size), context.shape[-1] - size + 1
        starts = torch.stack([torch.randint(places, (count,), generator=each) for each in make_generators(seeds)])
        index = (starts[..., None] + torch.arange(size)).flatten(1)[:, :frames]
        return self.decode(context, take(context, index.to(context.device)), starts[:, 0])

    def copy(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        audio = batch.input_end
        lags = torch.full((len(batch),), audio.shape[-1], device=audio.device)
        return repeat(audio, lags, 0, frames * self.codec.hop_length)

    def loop(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        audio = batch.input_audio
        lags = torch.tensor([best_lag(item, self.codec.sample_rate) for item in audio], device=audio.device)
        return repeat(audio, lags, 0, frames * self.codec.hop_length)

    def replay(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        length, hop = batch.context.shape[-1], self.codec.hop_length
        lags = torch.cat([draw_lags(1, length, torch.Generator().manual_seed(seed)) for seed in seeds])
        before = preceding(length - lags, fade_frames(self.codec), length)
        index = torch.cat([before, replayed_frames(length, lags, 0, frames)], 1)
        recorded = batch.input_audio[..., -length * hop :].unflatten(-1, (length, hop))
        rows = torch.arange(len(seeds)) // (len(seeds) // len(batch))
        return recorded[rows[:, None], :, index].transpose(1, 2).flatten(2)

    def decode(self, context: Tensor, latents: Tensor, begin: Tensor) -> Tensor:
        """Audio of `latents`, and before it what lies before frames `begin [R]` of the context."""
        fade = fade_frames(self.codec)
        lead = lead_frames(self.codec, self.margin, context.shape[-1])
        before = take(context, preceding(begin.to(context.device), lead, context.shape[-1]))
        return self.codec.decode_continuation(before, latents, self.margin, fade)

    def other_music(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        assert self.partners is not None
        return self.data.load(self.partners[number] for number in batch.number.tolist()).target_audio

    def through_codec(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return truth_through(self.codec, Contexts(batch.context, batch.input_audio), batch, self.margin)

    def truth(self, batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
        return batch.target_audio


def truth_through(codec: Codec, contexts: Contexts, batch: Batch, margin: int) -> Tensor:
    """The targets through a codec, encoded with the end of the input in front, as music that goes on.

    `[B, C, fade + N]`: the last frames of the input, see `fade_frames`, and the targets.
    """
    lead = 0 if codec.segment_frames is not None else min(margin, contexts.latents.shape[-1])
    past = batch.input_audio[..., batch.input_audio.shape[-1] - lead * codec.hop_length :]
    latents = codec.encode(torch.cat([past, batch.target_audio], -1))[..., lead:]
    return codec.decode_continuation(contexts.latents, latents, margin, fade_frames(codec))


def coloured(white: Tensor, music: Tensor, sample_rate: int) -> Tensor:
    """White noise `[R, N]` with the mean power spectrum and the level of `music [R, C, M]`: `[R, C, N]`."""
    n_fft = min(window_length(sample_rate, NOISE_WINDOW_SECONDS), music.shape[-1])
    power = power_spectrogram(music[:, :, None].cpu(), n_fft, n_fft // 2).mean(-2)  # [R, C, bins]
    gains = interpolate(power.sqrt(), white.shape[-1] // 2 + 1, mode="linear").to(white.device)
    noise = torch.fft.irfft(torch.fft.rfft(white)[:, None] * gains, white.shape[-1])
    levels = [audio.square().mean(-1, keepdim=True).sqrt() for audio in (music, noise)]
    return noise * levels[0] / levels[1].clamp_min(1e-12)


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
