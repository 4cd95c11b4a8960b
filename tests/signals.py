"""Signals and comparisons that the tests of losses share."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from encodec.modules import SEANetEncoder
from torch import Tensor

import losses
from losses.doctor import cases

RATE = 24000
SIGNAL_SEED = int(os.environ.get("SIGNAL_SEED", "0"))  # SIGNAL_SEED=1 ./run_tests.sh: the same tests on other signals


def seeded(seed: int) -> int:
    """The seed of a test signal, another one for each SIGNAL_SEED."""
    return seed + 1000 * SIGNAL_SEED


def noise(shape: tuple[int, ...], seed: int, level: float = 0.2) -> tuple[Tensor, Tensor]:
    """Prediction and target of white noise, RMS `level`."""
    generator = torch.Generator().manual_seed(seeded(seed))
    prediction, target = (torch.randn(shape, generator=generator) * level for _ in range(2))
    return prediction, target


def music(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Prediction and target of plucked notes, different ones, RMS 0.1: those of the loss doctor, with hiss over them.

    The hiss, 34 dB below, fills the bins between the partials, so that float32 has digits for their levels and angles.
    """
    first = 2 * seeded(seed)
    notes = [cases.music(shape, RATE, note_seed) for note_seed in (first, first + 1)]
    prediction, target = (tune + hiss for tune, hiss in zip(notes, noise(shape, seed, 0.002), strict=True))
    return prediction, target


def korvax() -> Any:
    """The package and JAX, on one thread; skips where it does not exist, on Python 3.10."""
    if sys.version_info < (3, 11):
        pytest.importorskip("korvax")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    import korvax
    import korvax.loss

    return korvax


def loss_named(name: str, **options: Any) -> losses.base.Loss:
    """The registered loss at 24 kHz as training has it, one value per item.

    "embedding" has a small random encoder, always the same.
    """
    options = {"reduction": "none", **losses.REGISTRY[name].training, **options}
    if name == "embedding" and "encoder" not in options:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of encodec's, about weight_norm
            torch.manual_seed(0)
            options["encoder"] = SEANetEncoder(n_filters=2, dimension=4, lstm=1)
    return losses.create(name, RATE, **options)


def shape_for(name: str, items: int) -> tuple[int, int, int]:
    """A shape that the registered loss can take: of its channels, and a little longer than it needs."""
    return items, losses.REGISTRY[name].channels or 1, 8000 if name == "pesq" else 2500


def second_call(name: str, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over items and its gradient, at the second training step."""
    loss = loss_named(name)
    loss.reduction = "mean"
    signal = prediction.clone().requires_grad_()
    loss(signal, target)
    value = loss(signal, target)
    (gradient,) = torch.autograd.grad(value, signal)
    return value.detach(), gradient


def gradient_of(function: Callable[[Tensor], Tensor], signal: Tensor) -> tuple[Tensor, Tensor]:
    """The value and its gradient."""
    signal = signal.clone().requires_grad_()
    value = function(signal)
    (gradient,) = torch.autograd.grad(value, signal)
    return value.detach(), gradient


def assert_same(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, Tensor], Tensor],
    prediction: Tensor,
    target: Tensor,
    exact: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Equal in float32, values to 1e-5 and gradients to the prediction (norm of the difference) to 1e-4.

    Where a gradient is ill-conditioned in float32, as that of ln|X| is at bins near 0, two right answers differ by
    more, and by much at a bin that rounding puts on the other side of a floor. There `exact`, the reference in
    float64, is given: value and gradient must be equal to it in float64, and in float32 near the reference's almost
    everywhere (the median over stretches of 250 samples).
    """
    value, gradient = gradient_of(lambda signal: ours(signal, target), prediction)
    expected, reference = gradient_of(lambda signal: theirs(signal, target), prediction)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5 if exact is None else 1e-4)
    if exact is None:
        assert (gradient - reference).norm() <= 1e-4 * reference.norm()
        return
    errors = (gradient - reference).unfold(-1, 250, 250).norm(dim=-1)
    assert (errors / reference.unfold(-1, 250, 250).norm(dim=-1)).median() <= 1e-3
    target = target.double()
    value, gradient = gradient_of(lambda signal: ours(signal, target), prediction.double())
    expected, reference = gradient_of(lambda signal: exact(signal, target), prediction.double())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - reference).norm() <= 1e-4 * reference.norm()
