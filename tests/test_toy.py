"""What a model trained with each objective generates where two fixed waveforms are equally likely continuations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import losses
from encore.codecs.encodec import SEANetCodec
from encore.data.dataset import Batch
from encore.models.generation import GenerationConfig
from encore.models.transformer import ContinuationTransformer
from encore.training.objective import Component, Objective
from encore.training.optim import Schedule, adamw
from encore.training.synthesis import Synthesizer

RATE, HOP, FRAMES, CONTEXT = 160, 32, 1, 8  # Hz, samples, frames: futures of 0.2 s after contexts of 1.6 s
ITEMS, STEPS, DRAWN, LR = 64, 300, 400, 1e-2


class Pieces(nn.Module):
    """The discrete cosine transform of pieces of HOP samples, or its inverse: an exact and cheap codec."""

    hop_length = dimension = HOP
    matrix: Tensor

    def __init__(self, inverse: bool):
        super().__init__()
        time, wave = torch.arange(HOP) + 0.5, torch.arange(HOP)[:, None]
        scale = torch.where(wave == 0, 1 / HOP, 2 / HOP).sqrt()
        self.register_buffer("matrix", scale * torch.cos(math.pi / HOP * wave * time))
        self.inverse = inverse

    def forward(self, signal: Tensor) -> Tensor:
        if self.inverse:
            return (self.matrix.T @ signal).transpose(1, 2).flatten(1)[:, None]
        return self.matrix @ signal[:, 0].unflatten(-1, (-1, HOP)).transpose(1, 2)


def trained_on_two_futures(samples: int) -> tuple[Tensor, Tensor]:
    """RMS distances of what a model draws then to each of the futures, `[2, DRAWN]`, and of these to one another."""
    torch.manual_seed(0)
    codec = SEANetCodec(Pieces(inverse=False), Pieces(inverse=True), RATE, channels=1)
    time = torch.arange(FRAMES * HOP) / RATE
    futures = torch.stack([0.4 * torch.sin(2 * math.pi * pitch * time) for pitch in (10, 25)])[:, None]
    source = 0.4 * torch.randn(CONTEXT * HOP)  # of every frequency: what a model adds is as loud as its context
    generation = GenerationConfig(FRAMES, generative=samples > 1, prior="none")
    synthesizer = Synthesizer(codec, generation, samples=samples, margin=0, crop_frames=FRAMES)
    rms = losses.create("rms", RATE, reduction="none")
    component = Component("rms_target", "rms", 1.0, False, rms, distance=losses.REGISTRY["rms"].distance)
    combiner = losses.WeightedGradient({component.name: component.weight})
    objective = Objective([component], synthesizer, combiner)
    model = ContinuationTransformer(HOP, d_model=32, nhead=2, num_layers=2, dropout=0.0, window=CONTEXT)

    def batch_of(target: Tensor) -> Batch:
        given = source.expand(len(target), 1, -1)
        return Batch(codec.encode(given), given, target, codec.encode(target), torch.arange(len(target)))

    batch = batch_of(futures.repeat(ITEMS // 2, 1, 1))
    latents = batch.target_latents.transpose(0, 1).flatten(1)
    model.set_statistics(latents.std(1))
    optimizer, schedule = adamw(model, LR, 0.01), Schedule("cosine", LR, 20, STEPS)
    for step in range(STEPS):
        forward = objective(model, batch, synthesizer.plan(FRAMES))
        objective.backward(forward, 1.0, measure=False)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    drawn = synthesizer.sample(model, batch_of(futures[:1].expand(DRAWN, -1, -1)))[:: synthesizer.samples]
    return torch.stack([rms(drawn, future.expand_as(drawn)) for future in futures]), rms(futures[:1], futures[1:])


@pytest.mark.slow
def test_energy_generates_both_futures_equally_often_and_nothing_between() -> None:
    distances, apart = trained_on_two_futures(samples=4)
    nearer, other = distances.amin(0), distances.amax(0)
    assert 0.35 < (distances[0] < distances[1]).float().mean() < 0.65
    assert nearer.mean() < 0.1 * apart and (nearer < 0.25 * apart).float().mean() > 0.95
    assert other.mean() > 0.9 * apart


@pytest.mark.slow
def test_regression_generates_one_waveform_that_is_neither() -> None:
    """Of two equally likely futures all points of the straight line between them have the same mean distance."""
    distances, apart = trained_on_two_futures(samples=1)
    assert (distances == distances[:, :1]).all()  # nothing is drawn
    nearer, other = distances[:, 0].sort().values
    assert abs(nearer + other - apart) < 0.05 * apart and nearer > 0.25 * apart
