"""The join of context and continuation: does the sound change there more than music does anyway?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import decibels, log_mel, signal, window_length

FLUX_SECONDS = 0.02
STEP_SECONDS = 0.1
PLACES_PER_SECOND = 100


@dataclass(frozen=True)
class Seam:
    """Percentiles, 0 to 100, among all places of the real music: 50 is typical.

    Near 100 is a click or a jump; near 0 for many items means that nothing ever changes there.

    Attributes:
        flux: of the spectral flux.
        step: of the level step.
    """

    flux: float
    step: float


def flux(audio: Tensor, sample_rate: int, places: Tensor) -> Tensor:
    """The spectral flux of `audio [C, N]` at `places [P]` (samples): dB, `[P]`.

    `max_k mean_b |L_k[b] − L_0[b]|`, where L_0 is the log-mel spectrum of the 20 ms that end at the place, and L_1
    … L_4 those of windows a quarter of that later each, so that the last begins at the place. A jump shows in L_4,
    a click in L_2. Logarithmic flux as in Böck and Widmer, "Maximum filter vibrato suppression for onset detection",
    2013, but of changes in either direction.
    """
    n_fft = window_length(sample_rate, FLUX_SECONDS)
    spectra = log_mel(_around(audio, places, n_fft), sample_rate, n_fft, n_fft // 4)
    return (spectra[:, 1:] - spectra[:, :1]).abs().mean(-1).amax(-1)


def level_step(audio: Tensor, sample_rate: int, places: Tensor) -> Tensor:
    """`|level of the 100 ms after − level of the 100 ms before|` at `places [P]` of `audio [C, N]`: dB, `[P]`."""
    around = _around(audio, places, round(STEP_SECONDS * sample_rate))
    levels = decibels(around.unflatten(-1, (2, -1)).square().mean((1, 3)))
    return (levels[:, 1] - levels[:, 0]).abs()


def seam(
    context: Tensor | ArrayLike,
    continuation: Tensor | ArrayLike,
    sample_rate: int,
    truth: Tensor | ArrayLike | None = None,
) -> Seam:
    """The join of `context [C, K]` and `continuation [C, M]`, compared with places 10 ms apart in the real music.

    The real music is the context and, where it is given, the truth `[C, M]` after it. Percentiles are of mid-rank:
    `100 · (#smaller + #equal / 2) / #places`, so silence in silence is at 50.

    Raises:
        EncoreError: context or continuation are shorter than the 0.1 s at either side that are compared.
    """
    before, after = signal(context), signal(continuation)
    reach = max(round(STEP_SECONDS * sample_rate), window_length(sample_rate, FLUX_SECONDS))
    if min(before.shape[-1] - reach, after.shape[-1]) < reach:
        raise EncoreError(
            f"the seam of a context of {before.shape[-1] / sample_rate:.2f} s and a continuation of "
            f"{after.shape[-1] / sample_rate:.2f} s: at least {2 * reach / sample_rate:.2f} s and "
            f"{reach / sample_rate:.2f} s are compared; give longer ones"
        )
    real = before if truth is None else torch.cat([before, signal(truth)], dim=-1)
    places = torch.arange(reach, real.shape[-1] - reach + 1, sample_rate // PLACES_PER_SECOND)
    join = torch.cat([before[..., -reach:], after[..., :reach]], dim=-1)
    at_join = torch.tensor([reach])
    return Seam(
        _percentile(flux(join, sample_rate, at_join), flux(real, sample_rate, places)),
        _percentile(level_step(join, sample_rate, at_join), level_step(real, sample_rate, places)),
    )


def _around(audio: Tensor, places: Tensor, reach: int) -> Tensor:
    """The `reach` samples before and after each place: `[P, C, 2 · reach]`."""
    return audio[:, places[:, None] + torch.arange(-reach, reach)].transpose(0, 1)


def _percentile(value: Tensor, among: Tensor) -> float:
    return 100 * float(((among < value).float() + (among == value).float() / 2).mean())
