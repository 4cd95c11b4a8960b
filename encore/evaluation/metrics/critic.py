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

from encore.evaluation.metrics.log_mel import BANDS, log_mel, window_length
from encore.evaluation.metrics.registry import MetricSpec

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
WINDOW_SECONDS, HOP_SECONDS = 0.043, 0.0213
LEVEL, MOST_GAIN = 0.1, 1000.0  # RMS that all audio is brought to, and the most that this may amplify it
DB_SCALE = 20.0
FOLDS = 5
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 150, 32, 2e-3, 0.05
CHANNELS, DROPOUT = 32, 0.2
MOST_SHIFT = 3  # bands, of the augmentation


@dataclass(frozen=True)
class Windows:
    """What the critic is given of I items with N continuations each.

    Attributes:
        context: log-mel of the end of each context, `[I, 40, K]`.
        continuation: of the beginning of each continuation, `[I, N, 40, F]`.
    """

    context: Tensor
    continuation: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Windows]) -> Windows:
        """All items of several batches."""
        return cls(torch.cat([part.context for part in parts]), torch.cat([part.continuation for part in parts]))


@torch.no_grad()
def windows_of(context: Tensor, continuations: Tensor, sample_rate: int) -> Windows:
    """Log-mel of the end of `context [B, C, K]` and the beginning of `continuations [B, N, C, S]`, on the CPU.

    In units of 20 dB. Both are brought to one level first, and the mean of each is taken off, so that the level of a
    continuation is no cue. Then the context's spectrum (the mean of each band) is taken off both: the critic sees how
    the continuation differs from its context rather than which instruments play.
    """
    n_fft, hop = window_length(sample_rate, WINDOW_SECONDS), round(HOP_SECONDS * sample_rate)
    levels = []
    for audio in (
        context[..., -round(CONTEXT_SECONDS * sample_rate) :],
        continuations[..., : round(CONTINUATION_SECONDS * sample_rate)],
    ):
        rms = audio.square().mean((-2, -1), keepdim=True).sqrt()
        level = log_mel((audio * (LEVEL / rms).clamp_max(MOST_GAIN)).float().cpu(), sample_rate, n_fft, hop) / DB_SCALE
        levels.append((level - level.mean((-2, -1), keepdim=True)).transpose(-2, -1))
    spectrum = levels[0].mean(-1, keepdim=True)
    return Windows(levels[0] - spectrum, levels[1] - spectrum[:, None])


class Critic(nn.Module):
    """Convolutions over time, and a comparison of what they find in the context and in the continuation.

    What they find is averaged over time, so windows may have any length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(BANDS, CHANNELS, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Conv1d(CHANNELS, CHANNELS, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
            nn.GELU(),
        )
        self.head = nn.Sequential(
            nn.Linear(5 * CHANNELS, CHANNELS), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(CHANNELS, 1)
        )

    def forward(self, context: Tensor, continuation: Tensor) -> Tensor:
        """How true each continuation is, `[B]`, of `context [B, 40, K]` and `continuation [B, 40, F]`."""
        found = self.layers(torch.cat([context, continuation], -1))  # [B, channels, frames]
        share = context.shape[-1] / (context.shape[-1] + continuation.shape[-1])
        border = min(max(1, round(found.shape[-1] * share)), found.shape[-1] - 1)
        before, after = found[..., :border], found[..., border:]
        means = [part.mean(-1) for part in (before, after)]
        deviations = [part.std(-1, correction=0) for part in (before, after)]
        joint = found[..., border - 1 : border + 2].mean(-1)
        compared = [means[1], deviations[1], (means[1] - means[0]).abs(), deviations[1] - deviations[0], joint]
        return self.head(torch.cat(compared, -1))[:, 0]


def critic_values(real: Windows, made: Windows, recordings: Sequence[str], seed: int = 0) -> NDArray[np.float64]:
    """For each item the share of its continuations that the critic takes to be less true than the truth, `[I]`.

    The truth and the continuation follow one context, and where the critic's outputs are equal that counts half. The
    mean over the items is the area under the ROC curve of a choice between two (Green & Swets 1966): 0.5 if the critic
    cannot tell them apart, 1 if it always can. Each item is judged by a critic that was trained on other recordings,
    always from the same seed and for the same number of steps.

    Args:
        real: with the true continuations, `[I, 1, 40, F]`.
        made: with the system's, `[I, N, 40, F]`.
        recordings: the recording of each item, of which there must be at least two.
    """
    folds = folds_of(recordings, seed)
    values = np.zeros(len(folds))
    for fold in range(folds.max() + 1):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        critic = train_critic(real, made, torch.from_numpy(outside), seed)
        with torch.no_grad():
            truth = critic(real.context[inside], real.continuation[inside, 0])
            others = [critic(real.context[inside], one) for one in made.continuation[inside].unbind(1)]
        values[inside] = torch.stack([(truth - other).sign() / 2 + 0.5 for other in others]).mean(0).numpy()
    return values


def folds_of(recordings: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """The fold of each item, `[I]`: all items of a recording are in one. Five folds, or one per recording if fewer."""
    names = sorted(set(recordings))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[place]: turn % FOLDS for turn, place in enumerate(order.tolist())}
    return np.array([fold[name] for name in recordings])


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
            continuation = torch.cat([real.continuation[chosen, 0], made.continuation[chosen, candidate]])
            truth, other = critic(*augmented(real.context[chosen].repeat(2, 1, 1), continuation)).chunk(2)
            optimizer.zero_grad()
            softplus(other - truth).mean().backward()
            optimizer.step()
            schedule.step()
    return critic.eval()


def augmented(context: Tensor, continuation: Tensor) -> tuple[Tensor, Tensor]:
    """Both a few bands higher or lower, and the continuation cut to a random length, at least half."""
    shift = int(torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, ()))
    frames = continuation.shape[-1]
    length = int(torch.randint((frames + 1) // 2, frames + 1, ()))
    return context.roll(shift, -2), continuation[..., :length].roll(shift, -2)
