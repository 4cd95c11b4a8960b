"""The critic: a small network that learns to tell what really follows a context from what a system makes of it.

A classifier two-sample test (Lopez-Paz & Oquab 2017). It is trained and asked on different recordings: once for each
fold of recordings, on all others (cross-fitting), so that it needs no continuations of further music.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from encore.evaluation.metrics.log_mel import log_mel, window_length
from encore.evaluation.metrics.registry import MetricSpec
from encore.statistics import Interval, bootstrap

CRITIC = "critic"
CRITIC_SPEC = MetricSpec(
    CRITIC,
    "critic",
    "Distribution",
    "AUC of a small network that tells true continuations from these, on recordings it was not trained on: 0.5 if it "
    "cannot, 1 if it always can.",
    "half",
)
CONTEXT_SECONDS, CONTINUATION_SECONDS = 2.0, 4.0  # that the critic is given, at most
WINDOW_SECONDS, HOP_SECONDS = 0.043, 0.0215
DB_SCALE = 20.0
FOLDS = 5
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 150, 32, 2e-3, 0.05, 0.2
CHANNELS = 32
MOST_SHIFT = 3  # bands, of the augmentation


@dataclass(frozen=True)
class Windows:
    """What the critic is given of I items with N continuations each.

    Attributes:
        context: log-mel of the end of each context, `[I, K, 40]`.
        continuation: of the beginning of each continuation, `[I, N, F, 40]`.
    """

    context: Tensor
    continuation: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Windows]) -> Windows:
        """All items of several batches."""
        return cls(torch.cat([part.context for part in parts]), torch.cat([part.continuation for part in parts]))


def windows_of(context: Tensor, continuations: Tensor, sample_rate: int) -> Windows:
    """Log-mel of the end of `context [B, C, K]` and the beginning of `continuations [B, N, C, S]`, on the CPU.

    In units of 20 dB. Each of the two has its own mean level taken off, and from both the spectrum of the context is
    taken off (the mean of each band): neither the level of a continuation nor the instruments of a piece decide, but
    whether the continuation sounds like its context does.
    """
    n_fft, hop = window_length(sample_rate, WINDOW_SECONDS), round(HOP_SECONDS * sample_rate)
    before = context[..., -round(CONTEXT_SECONDS * sample_rate) :].float().cpu()
    after = continuations[..., : round(CONTINUATION_SECONDS * sample_rate)].float().cpu()
    levels = [log_mel(audio, sample_rate, n_fft, hop) / DB_SCALE for audio in (before, after)]
    known, made = (level - level.mean((-2, -1), keepdim=True) for level in levels)
    spectrum = known.mean(-2, keepdim=True)
    return Windows(known - spectrum, made - spectrum[:, None])


class Critic(nn.Module):
    """Convolutions over time and frequency, and a comparison of what they find in the context and in the continuation.

    Means and deviations over time, so that windows of any length can be compared.
    """

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels // 2, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Conv2d(channels, channels, 3, stride=(1, 2), padding=1),
            nn.GELU(),
        )
        self.head = nn.Sequential(
            nn.Linear(5 * channels, channels), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(channels, 1)
        )

    def forward(self, context: Tensor, continuation: Tensor) -> Tensor:
        """How true each continuation is, `[B]`; `context [B, K, 40]`, `continuation [B, F, 40]`."""
        found = self.layers(torch.cat([context, continuation], 1)[:, None])  # [B, channels, frames, bands]
        length = context.shape[1] + continuation.shape[1]
        border = min(max(1, round(found.shape[2] * context.shape[1] / length)), found.shape[2] - 1)
        before, after = found[:, :, :border], found[:, :, border:]
        means = [part.mean(2) for part in (before, after)]
        deviations = [part.std(2, correction=0) for part in (before, after)]
        joint = found[:, :, border - 1 : border + 1].mean(2)
        compared = [means[1], deviations[1], (means[1] - means[0]).abs(), deviations[1] - deviations[0], joint]
        return self.head(torch.cat(compared, 1).mean(-1))[:, 0]


@dataclass(frozen=True)
class Verdicts:
    """The critic's outputs for items that it was not trained on.

    Attributes:
        real: of the true continuations, `[I]`.
        made: of those of a system, `[I, N]`.
        folds: of each item; outputs of different folds are those of different networks and not comparable.
    """

    real: NDArray[np.float64]
    made: NDArray[np.float64]
    folds: NDArray[np.int64]


def folds_of(recordings: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """The fold of each item, `[I]`: all items of a recording are in one fold. At most five, of about equally many
    recordings."""
    names = list(dict.fromkeys(recordings))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[place]: turn % FOLDS for turn, place in enumerate(order.tolist())}
    return np.array([fold[name] for name in recordings])


def critic_auc(real: Windows, made: Windows, recordings: Sequence[str], seed: int = 0) -> Interval:
    """How well a critic tells a system from real music: the AUC of its verdicts, with an interval over recordings.

    Args:
        real: the true continuations, `[I, 1, F, 40]`.
        made: the system's, `[I, N, F, 40]`.
        recordings: the recording of each item, of which there must be at least two.
    """
    return auc(judge(real, made, folds_of(recordings), seed), recordings)


def judge(real: Windows, made: Windows, folds: NDArray[np.int64], seed: int = 0) -> Verdicts:
    """The verdicts on each fold of a critic that was trained on the others, always with the same seed and steps."""
    found = Verdicts(np.zeros(len(folds)), np.zeros(made.continuation.shape[:2]), folds)
    for fold in range(folds.max() + 1):
        inside, outside = np.flatnonzero(folds == fold), torch.from_numpy(np.flatnonzero(folds != fold))
        critic = train_critic(real, made, outside, seed)
        with torch.no_grad():
            context = real.context[inside]
            found.real[inside] = critic(context, real.continuation[inside, 0]).numpy()
            for number in range(made.continuation.shape[1]):
                found.made[inside, number] = critic(context, made.continuation[inside, number]).numpy()
    return found


def train_critic(real: Windows, made: Windows, items: Tensor, seed: int) -> Critic:
    """A critic trained on these items, in evaluation mode.

    With s its output, it minimises the mean of `ln(1 + exp(s(context, made) − s(context, real)))`: both continue one
    context, so that nothing but the continuation can tell them apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic()
        optimizer = torch.optim.AdamW(critic.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
        for _ in range(STEPS):
            chosen = items[torch.randint(len(items), (BATCH_SIZE,))]
            candidate = torch.randint(made.continuation.shape[1], (BATCH_SIZE,))
            context, true = real.context[chosen], real.continuation[chosen, 0]
            parts = augmented(context, true, made.continuation[chosen, candidate])
            scores = critic(torch.cat([parts[0], parts[0]]), torch.cat(parts[1:]))
            loss = softplus(scores[BATCH_SIZE:] - scores[:BATCH_SIZE]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return critic.eval()


def augmented(context: Tensor, *continuations: Tensor) -> tuple[Tensor, ...]:
    """All of them a few bands higher or lower, and the continuations cut to a random length, at least half."""
    shift = int(torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, ()))
    frames = continuations[0].shape[1]
    length = int(torch.randint(frames // 2, frames + 1, ()))
    return tuple(part.roll(shift, -1) for part in (context, *(one[:, :length] for one in continuations)))


def auc(verdicts: Verdicts, recordings: Sequence[str]) -> Interval:
    """`P(s(real) > s(made)) + ½ P(s(real) = s(made))` over all pairs of one fold; the bootstrap draws recordings."""
    names = list(dict.fromkeys(recordings))
    member = np.array([[recording == name for name in names] for recording in recordings], float)  # [I, R]
    together = verdicts.folds[:, None] == verdicts.folds[None]
    difference = verdicts.real[:, None, None] - verdicts.made[None]
    wins = ((np.sign(difference) + 1) / 2).mean(-1) * together
    won, compared = (member.T @ pairs @ member for pairs in (wins, together.astype(float)))

    def statistic(drawn: NDArray[np.int64]) -> float:
        weights = np.bincount(drawn, minlength=len(names))
        return float(weights @ won @ weights / (weights @ compared @ weights))

    return bootstrap(statistic, np.arange(len(names)))
