"""The gradient of several losses at once, plainly weighted, or balanced so that each weight is a share.

`WeightedGradient` and `LossBalancer` are for a training loop whose losses are all computed on one signal, the decoded
audio: from the losses' values they make one gradient at that signal, and a single backward pass continues from there
into whatever produced the signal::

    combined = balancer({"spectral": spectral(audio, target), "mel": mel(audio, target)}, audio)
    audio.backward(combined.gradient)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from losses.weighted_sum import checked_weights

REFERENCE_STEPS = 100  # with `shrink`, a term is never scaled up by more than after this many steps


@dataclass(frozen=True)
class BalancedGradient:
    """The gradient of several losses at the signal on which they were computed.

    Attributes:
        gradient: of the combined loss's mean over the items, in the signal's shape.
        shares: each term's part of the gradient, `‖scale · g‖ / Σ ‖scale · g‖`, where g is one item's gradient and
            the norms are means over this process's items; 0 for a term that contributes nothing. Empty if it was not
            measured.
        left_out: terms that were not finite on some rank and contribute nothing to this gradient.
    """

    gradient: Tensor
    shares: dict[str, float]
    left_out: tuple[str, ...] = ()


class WeightedGradient(nn.Module):
    """The gradient of the plain weighted sum and, if wanted, each term's share of it.

    Args:
        weights: name to weight. A term of weight 0 needs no value.

    Raises:
        ValueError: a weight below 0 or not finite, or none above 0.
    """

    def __init__(self, weights: Mapping[str, float]):
        super().__init__()
        self.weights = checked_weights(weights)

    def forward(self, values: Mapping[str, Tensor], signal: Tensor, measure: bool = True) -> BalancedGradient:
        """Combines `values`, `[B]` each, into one gradient at `signal [B, C, N]`, from which they were computed.

        With `measure` each term's gradient is computed separately, which gives the shares; without, all in one pass.
        """
        if not measure:
            total = torch.stack([weight * values[name] for name, weight in self.weights.items()]).sum(0)
            return BalancedGradient(gradients_at({"total": total}, signal)["total"] / len(signal), {})
        gradients = gradients_at({name: values[name] for name in self.weights}, signal)
        return BalancedGradient(_sum(gradients, self.weights, signal), _shares(_norms(gradients), self.weights))


class LossBalancer(nn.Module):
    """Gradients scaled so that each term's norm is its weight's share of `total_norm`, whatever the loss's own scale.

    `Σ_k s_k · total_norm · g_k / n_k`, with g_k the gradient of an item's loss at the signal, `s_k = w_k / Σ w`, and
    n_k a moving average of the norm ‖g_k‖ (mean over all items of all ranks): `Σ_i β^i · norm_i / Σ_i β^i`, where i
    counts steps backwards. As in EnCodec (Défossez et al. 2022, section 3.4), with two differences: the result is the
    gradient of the mean over the items, so that a larger batch gives no larger gradient; and a term without any
    gradient in a step (an adversary that has not started, a perfect prediction) keeps its average, while the others
    take its share.

    A term whose value or gradient is not finite on any rank is left out of that step on all ranks, and named.

    `shrink` lets gradients become small. Without it, the gradient of a loss that is nearly solved, by then mostly
    noise, is scaled up to its full share. With it, a term is never scaled up by more than after the first 100 steps:
    n_k is at least its value then, so a gradient that fades later fades in the result too.

    Args:
        weights: name to weight. A term of weight 0 needs no value.
        total_norm: norm of an item's gradient, if all terms pointed the same way.
        beta: decay of the averages per step.
        shrink: let fading gradients fade.

    Raises:
        ValueError: a weight below 0 or not finite, or none above 0.
    """

    def __init__(
        self, weights: Mapping[str, float], total_norm: float = 1.0, beta: float = 0.999, shrink: bool = False
    ):
        super().__init__()
        self.weights = checked_weights(weights)
        self.total_norm, self.beta, self.shrink = total_norm, beta, shrink
        self.averages = {name: Average() for name in self.weights}

    def forward(self, values: Mapping[str, Tensor], signal: Tensor, measure: bool = True) -> BalancedGradient:
        """As that of `WeightedGradient`; the shares are always given, because the norms are needed anyway."""
        gradients = gradients_at({name: values[name] for name in self.weights}, signal)
        local = _norms(gradients)
        finite = torch.stack([local[name].isfinite() & values[name].isfinite().all() for name in local])
        norms, left_out = self._over_ranks(local, finite, len(signal))
        for name, norm in norms.items():
            self.averages[name].add(norm, self.beta)
        sizes = {name: self.averages[name].size(self.shrink) for name in norms}
        scales = balance(self.weights, sizes, self.total_norm)
        return BalancedGradient(_sum(gradients, scales, signal), _shares(local, scales), left_out)

    @staticmethod
    def _over_ranks(
        norms: Mapping[str, Tensor], finite: Tensor, items: int
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Mean norms over the items of all ranks, of the terms with a gradient; the names of terms not finite."""
        sums = torch.where(finite, torch.stack(list(norms.values())), 0).double() * items
        report = torch.cat([sums, (~finite).double(), sums.new_tensor([items])])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(report)
        *numbers, whole = report.tolist()
        broken = dict(zip(norms, numbers[len(norms) :], strict=True))
        means = {name: number / whole for name, number in zip(norms, numbers, strict=False)}
        left_out = tuple(name for name in norms if broken[name])
        return {name: mean for name, mean in means.items() if mean and not broken[name]}, left_out

    def get_extra_state(self) -> dict[str, dict[str, Any]]:
        return {name: vars(average).copy() for name, average in self.averages.items()}

    def set_extra_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Restores the averages; a term that the state does not contain starts afresh."""
        self.averages = {name: Average(**state.get(name, {})) for name in self.weights}


@dataclass
class Average:
    """A bias-corrected moving average, and its value after `REFERENCE_STEPS`."""

    total: float = 0.0
    weight: float = 0.0
    steps: int = 0
    reference: float = 0.0

    def add(self, value: float, beta: float) -> None:
        self.total, self.weight = beta * self.total + value, beta * self.weight + 1
        self.steps += 1
        if self.steps <= REFERENCE_STEPS:
            self.reference = self.total / self.weight

    def size(self, shrink: bool) -> float:
        average = self.total / self.weight
        return max(average, self.reference) if shrink else average


def balance(weights: Mapping[str, float], sizes: Mapping[str, float], total_norm: float = 1.0) -> dict[str, float]:
    """The factors by which gradients of norms `sizes` (above 0) get the shares of `total_norm` that their weights are.

    `w_k / Σ w · total_norm / size_k`, the sum over the names in `sizes`.
    """
    whole = sum(weights[name] for name in sizes)
    return {name: weights[name] / whole * total_norm / size for name, size in sizes.items()}


def gradients_at(values: Mapping[str, Tensor], signal: Tensor) -> dict[str, Tensor]:
    """The gradient of each item's value `[B]` with respect to its part of `signal [B, C, N]`; 0 for constant values."""
    gradients = {name: torch.zeros_like(signal) for name in values}
    waiting = [name for name, value in values.items() if value.requires_grad]
    while waiting:
        name = waiting.pop()
        # The losses share spectra, so the graph is kept until the last pass.
        (gradients[name],) = torch.autograd.grad(values[name].sum(), signal, retain_graph=bool(waiting))
    return gradients


def _norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each term's gradient norm of an item, mean over the items."""
    return {name: torch.linalg.vector_norm(g.flatten(1), dim=1).mean() for name, g in gradients.items()}


def _sum(gradients: Mapping[str, Tensor], scales: Mapping[str, float], signal: Tensor) -> Tensor:
    """`Σ scale · gradient` over the names in `scales`, as the gradient of the mean over the items."""
    total = torch.zeros_like(signal)
    for name, scale in scales.items():
        total.add_(gradients[name], alpha=scale / len(signal))
    return total


def _shares(norms: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, float]:
    """Each term's part of the sum of the scaled norms; empty if all gradients are 0."""
    numbers = zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)
    sizes = {name: scales[name] * norm if name in scales else 0.0 for name, norm in numbers}
    whole = sum(sizes.values())
    return {name: size / whole for name, size in sizes.items()} if whole else {}
