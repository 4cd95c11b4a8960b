"""Where the context ends and the continuation begins: does the sound change there more than music does anyway?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import decibels, log_mel, signal, window_length
from encore.evaluation.metrics.registry import Item, metric

FLUX_SECONDS = 0.02
STEP_SECONDS = 0.1
POSITIONS_PER_SECOND = 100


@metric(
    "seam_flux",
    title="boundary flux, %",
    group="Sound",
    note="Spectral flux at the join, as a percentile of that inside the real music.",
    goal="truth",
)
def boundary_flux(item: Item) -> float:
    """Percentile, 0 to 100, of the spectral flux at the boundary; see `percentile_at_boundary`.

    Near 100 is a click or a jump; near 0 for many items means that nothing ever changes there.
    """
    return percentile_at_boundary(flux, item)


@metric(
    "seam_step",
    title="boundary step, %",
    group="Sound",
    note="Level step at the join, as a percentile of those inside the real music.",
    goal="truth",
)
def boundary_step(item: Item) -> float:
    """Percentile, 0 to 100, of the level step at the boundary; see `percentile_at_boundary`."""
    return percentile_at_boundary(level_step, item)


def percentile_at_boundary(quantity: Callable[[Tensor, int, Tensor], Tensor], item: Item) -> float:
    """The rank of a quantity at the boundary among its values every 10 ms in the real music: 50 is typical.

    The real music is the context and the truth after it. The rank is a mid-rank,
    `100 · (#smaller + #equal / 2) / #positions`, so silence after silence is at 50.

    Args:
        quantity: `quantity(audio [C, N], sample_rate, positions [P])` to `[P]`, positions in samples.

    Raises:
        EncoreError: the context or the continuation is shorter than the 0.1 s on either side that are compared.
    """
    before, after, rate = signal(item.context), signal(item.continuation), item.sample_rate
    reach = max(round(STEP_SECONDS * rate), window_length(rate, FLUX_SECONDS))
    if min(before.shape[-1] - reach, after.shape[-1]) < reach:
        raise EncoreError(
            f"the boundary of a context of {before.shape[-1] / rate:.2f} s and a continuation of "
            f"{after.shape[-1] / rate:.2f} s: at least {2 * reach / rate:.2f} s and {reach / rate:.2f} s are compared; "
            "give longer ones"
        )
    real = torch.cat([before, signal(item.truth)], dim=-1)
    positions = torch.arange(reach, real.shape[-1] - reach + 1, rate // POSITIONS_PER_SECOND)
    around = torch.cat([before[..., -reach:], after[..., :reach]], dim=-1)
    return _percentile(quantity(around, rate, torch.tensor([reach])), quantity(real, rate, positions))


def flux(audio: Tensor, sample_rate: int, positions: Tensor) -> Tensor:
    """The spectral flux of `audio [C, N]` at `positions [P]` (samples): dB, `[P]`.

    `max_k mean_b |L_k[b] − L_0[b]|`, where L_0 is the log-mel spectrum of the 20 ms that end at the position, and L_1
    … L_4 those of windows that begin a quarter of a window later each, so that the last begins at the position. A jump
    shows in L_4, a click in L_2. Logarithmic flux as in Böck and Widmer, "Maximum filter vibrato suppression for onset
    detection", 2013, but of changes in either direction.
    """
    n_fft = window_length(sample_rate, FLUX_SECONDS)
    spectra = log_mel(_around(audio, positions, n_fft), sample_rate, n_fft, n_fft // 4)
    return (spectra[:, 1:] - spectra[:, :1]).abs().mean(-1).amax(-1)


def level_step(audio: Tensor, sample_rate: int, positions: Tensor) -> Tensor:
    """`|level of the 100 ms after − level of the 100 ms before|` at `positions [P]` of `audio [C, N]`: dB, `[P]`."""
    around = _around(audio, positions, round(STEP_SECONDS * sample_rate))
    levels = decibels(around.unflatten(-1, (2, -1)).square().mean((1, 3)))
    return (levels[:, 1] - levels[:, 0]).abs()


def _around(audio: Tensor, positions: Tensor, reach: int) -> Tensor:
    """The `reach` samples before and after each position: `[P, C, 2 · reach]`."""
    return audio[:, positions[:, None] + torch.arange(-reach, reach)].transpose(0, 1)


def _percentile(value: Tensor, among: Tensor) -> float:
    return 100 * float(((among < value).float() + (among == value).float() / 2).mean())
