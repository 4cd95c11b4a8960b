"""Distances between the distribution of continuations and that of real music, from samples of their features.

Features are patches of the items' audio, `[I, P, F]` (`encore.evaluation.metrics.embeddings`). Patches of one item are
not independent, nor are the continuation and the truth of one item: both follow the same context. So the unit is the
item: pairs of patches of the same item are left out of every mean, and the bootstrap draws items. Different items must
be independent: the truths in another order cannot be compared with the truths, their distance would be below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.registry import MetricSpec, short_name
from encore.statistics import Interval, bootstrap

KERNEL_SCALE = 100  # as in the kernel audio distance's own tool
MOST_PATCHES = 4096  # from which the kernel's bandwidth is computed
BLOCK = 2**23  # distances in memory at a time, 64 MB
GROUPS = 20  # of items, for the jackknife
PATCHES = "log_mel"  # the features of the patch distance


def distribution_specs(spaces: Sequence[str]) -> list[MetricSpec]:
    """The columns of the distances between distributions in these feature spaces."""
    kernel = "Kernel audio distance (MMD, unbiased, × 100) to real music, {} features."
    patches = "Energy distance between half-second log-mel patches and those of real music, nepers."
    return [
        *(
            MetricSpec(f"kernel_distance_{n}", f"kernel, {short}", "Distribution", kernel.format(short), "zero")
            for n, short in zip(spaces, map(short_name, spaces), strict=True)
        ),
        *(
            MetricSpec(
                f"frechet_{n}",
                f"Fréchet, {short}",
                "Distribution",
                f"Fréchet distance to real music, {short} features.",
                "zero",
            )
            for n, short in zip(spaces, map(short_name, spaces), strict=True)
        ),
        MetricSpec("patch_distance", "patch distance", "Distribution", patches, "zero"),
    ]


class RealMusic:
    """Features of the truths, `[I, Q, F]` by feature space, with which the continuations of several systems compare."""

    def __init__(self, features: Mapping[str, Tensor]):
        self.features = features
        self.frechet = {space: FrechetReference(real) for space, real in features.items()}

    def distances(self, candidates: Mapping[str, Tensor]) -> dict[str, Interval]:
        """Every distance of the features of continuations, `[I, P, F]` by feature space."""
        values = {}
        for space, features in candidates.items():
            values[f"kernel_distance_{space}"] = kernel_distance(features, self.features[space])
            values[f"frechet_{space}"] = self.frechet[space].distance(features)
            if space == PATCHES:
                values["patch_distance"] = energy_distance(features, self.features[space])
        return values


@torch.no_grad()
def kernel_distance(candidates: Tensor, real: Tensor, seed: int = 0) -> Interval:
    """Kernel audio distance: `100 · (E k(x, x′) + E k(y, y′) − 2 E k(x, y))`, `k(a, b) = exp(−‖a − b‖² / 2 s²)`.

    The unbiased squared maximum mean discrepancy (Gretton et al. 2012) with KAD's kernel (Chung et al. 2025, "KAD: No
    More FAD!"): s is the median distance of two patches of the real music. Its mean is 0
    where the distributions are the same, so a value may be negative; without a unit; at most 200. The means are over
    pairs of different items; with one patch per item that is KAD, except for the pairs of an item's continuation with
    its own truth.

    Args:
        candidates: features of the continuations, `[I, P, F]`; several continuations of an item lie on P.
        real: features of the real music, `[I, Q, F]`, item for item.

    Returns:
        The distance, with a bootstrap interval over items; near 0 the interval is wider than necessary.

    Raises:
        ValueError: the shapes do not match, or there are fewer than two items.
        EncoreError: the patches of the real music are all the same.
    """
    x, y = _prepared(candidates, real)
    gamma = 1 / (2 * bandwidth(y) ** 2)
    return _paired(x, y, lambda distances: (-gamma * distances.square()).exp(), KERNEL_SCALE, seed)


@torch.no_grad()
def energy_distance(candidates: Tensor, real: Tensor, seed: int = 0) -> Interval:
    """Energy distance (Székely & Rizzo 2013) `2 E δ(x, y) − E δ(x, x′) − E δ(y, y′)`, `δ(a, b) = ‖a − b‖ / √F`.

    In the features' unit (nepers for log-mel patches, where this is the *patch distance*); unbiased, otherwise as
    `kernel_distance`, without the choice of a scale. scipy's `energy_distance` is the square root of it.
    """
    x, y = _prepared(candidates, real)
    return _paired(x, y, lambda distances: distances / x.shape[2] ** 0.5, -1, seed)


def bandwidth(real: Tensor) -> float:
    """The median Euclidean distance between patches of different items of `[I, Q, F]`, of at most 4096 evenly spaced.

    Raises:
        EncoreError: the median is 0.
    """
    patches = real.flatten(0, 1).double()
    item = torch.arange(len(patches), device=real.device) // real.shape[1]
    step = -(-len(patches) // MOST_PATCHES)
    patches, item = patches[::step], item[::step]
    median = float(torch.cdist(patches, patches)[item[:, None] < item].median())
    if not median > 0:
        raise EncoreError(
            f"{len(patches)} patches of real music are all the same: is it silence? Evaluate on other music"
        )
    return median


def _prepared(candidates: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, less the mean of the real music: far from 0, distances would lose digits."""
    if candidates.dim() != 3 or real.dim() != 3 or candidates.shape[::2] != real.shape[::2] or len(real) < 2:
        raise ValueError(
            "features must be [I, P, F] and [I, Q, F] of the same items, at least two, "
            f"got {list(candidates.shape)} and {list(real.shape)}"
        )
    mean = real.double().mean((0, 1))
    return candidates.double() - mean, real.double() - mean


def _item_means(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
    """Mean of `function(‖a − b‖)` over patches a of item i and b of item j; `[I, P, F]`, `[I, Q, F]` to `[I, I]`."""
    size = max(1, BLOCK // (x.shape[1] * y.shape[0] * y.shape[1]))
    rows = []
    for items in x.split(size):
        distances = torch.cdist(items.flatten(0, 1), y.flatten(0, 1))
        rows.append(function(distances).reshape(len(items), x.shape[1], len(y), y.shape[1]).mean((1, 3)))
    return torch.cat(rows).cpu().numpy()


def _paired(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor], scale: float, seed: int) -> Interval:
    """`scale · mean_{i≠j} (xx + yy − xy − yx)` over items, an unbiased U-statistic of the pairs (x_i, y_i)."""
    cross = _item_means(x, y, function)
    h = scale * (_item_means(x, x, function) + _item_means(y, y, function) - cross - cross.T)
    np.fill_diagonal(h, 0)

    def statistic(chosen: NDArray[np.int64]) -> float:
        # An item drawn twice makes no pair with itself, whose distance of 0 would be spurious.
        times = np.bincount(chosen, minlength=len(h)).astype(float)
        pairs = times.sum() ** 2 - (times**2).sum()
        return float(times @ h @ times / pairs) if pairs else float("nan")

    return bootstrap(statistic, np.arange(len(h)), seed=seed)


class FrechetReference:
    """The Fréchet distances of several sets of continuations to the same real music.

    What follows from the real music alone, the roots of its covariances, is computed once.

    Args:
        real: features of the real music, `[I, Q, F]`.

    Raises:
        ValueError: fewer than two items.
    """

    @torch.no_grad()
    def __init__(self, real: Tensor):
        self.real, self.groups = real, min(GROUPS, len(real))
        patches = _prepared(real, real)[1]
        self.basis = _span(patches.flatten(0, 1))
        self.gaussians = [_Gaussian(moments) for moments in self._sets(patches)]
        self.roots = [gaussian.root() for gaussian in self.gaussians]

    @torch.no_grad()
    def distance(self, candidates: Tensor) -> Interval:
        """The distance of the patches `[I, P, F]`, corrected for the bias of few samples.

        `frechet` of all patches grows with `1 / I` where the distributions are the same. A jackknife that leaves out a
        20th of the items at a time (Efron & Tibshirani 1993, chapter 11) removes that term, so a value may be negative,
        and gives the interval (Student's t). The remaining bias is small only where `frechet_warning` returns None.

        Raises:
            ValueError: the shapes do not match.
        """
        sets = self._sets(_prepared(candidates, self.real)[0])
        compared = zip(sets, self.gaussians, self.roots, strict=True)
        all_items, *rest = (_frechet(_Gaussian(moments), real, root) for moments, real, root in compared)
        without = np.array(rest)
        value = self.groups * all_items - (self.groups - 1) * without.mean()
        error = ((self.groups - 1) * without.var()) ** 0.5
        reach = float(scipy.special.stdtrit(self.groups - 1, 0.975)) * error
        return Interval(float(value), float(value - reach), float(value + reach))

    def _sets(self, patches: Tensor) -> list[Moments]:
        """Moments of all items, and without each of the groups."""
        parts = [_moments(group.flatten(0, 1), self.basis) for group in patches.tensor_split(self.groups)]
        whole = tuple(sum(values) for values in zip(*parts, strict=True))
        return [whole, *(tuple(all_ - own for all_, own in zip(whole, part, strict=True)) for part in parts)]


def frechet_distance(candidates: Tensor, real: Tensor) -> Interval:
    """The Fréchet distance between the patches `[I, P, F]` and `[I, Q, F]`, see `FrechetReference.distance`.

    Raises:
        ValueError: the shapes do not match, or there are fewer than two items.
    """
    return FrechetReference(real).distance(candidates)


def frechet_warning(candidates: Tensor, real: Tensor) -> str | None:
    """A warning if there are fewer patches than ten times the features, else None."""
    samples, features = min(s.shape[0] * s.shape[1] for s in (candidates, real)), real.shape[2]
    if samples >= 10 * features:
        return None
    return (
        f"Fréchet distance: {samples} patches are too few for {features} features; below {10 * features} it comes out "
        "too large and its interval too narrow: trust the kernel distance, or evaluate more music"
    )


def frechet(x: Tensor, y: Tensor) -> float:
    """`‖μ_x − μ_y‖² + tr(C_x + C_y − 2 (C_x C_y)^½)` of two sets `[n, F]` and `[m, F]`, in the features' unit squared.

    The Fréchet distance between the Gaussians of the sets' means and (unbiased) covariances (Dowson & Landau 1982; for
    audio Kilgour et al. 2019, FAD), in float64, from the eigenvalues of `C_y^½ C_x C_y^½`: singular covariances of
    few samples need no regularisation.

    Raises:
        ValueError: fewer than two samples, or different numbers of features.
    """
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"sets must be [n, F] and [m, F], n and m at least 2, got {list(x.shape)} and {list(y.shape)}")
    mean = y.double().mean(0)
    x, y = x.double() - mean, y.double() - mean
    basis = _span(y)
    gaussian = _Gaussian(_moments(y, basis))
    return _frechet(_Gaussian(_moments(x, basis)), gaussian, gaussian.root())


# Number, sum [F], sum of squares; and of the coordinates in a basis, sum [R] and sum of products [R, R].
Moments = tuple[Any, ...]


def _span(y: Tensor) -> Tensor | None:
    """Orthonormal basis `[F, m]` of a space that holds the centred samples `[m, F]`; None if that is all of it."""
    return torch.linalg.qr(y.T)[0] if len(y) < y.shape[1] else None


def _moments(x: Tensor, basis: Tensor | None) -> Moments:
    z = x if basis is None else x @ basis
    return len(x), x.sum(0), x.square().sum(), z.sum(0), z.T @ z


class _Gaussian:
    """The Gaussian of moments: its mean, the trace of its covariance, and its covariance within the basis."""

    def __init__(self, moments: Moments):
        n, total, squares, coordinates, products = moments
        self.mean = total / n
        self.trace = (squares - n * self.mean.square().sum()) / (n - 1)
        self.covariance = (products - torch.outer(coordinates, coordinates) / n) / (n - 1)

    def root(self) -> Tensor:
        """The root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _frechet(x: _Gaussian, y: _Gaussian, root: Tensor) -> float:
    """`root` is y's, and the basis spans y's samples: what of x lies outside adds nothing to the overlap."""
    overlap = torch.linalg.eigvalsh(root @ x.covariance @ root).clamp_min(0).sqrt().sum()
    return float((x.mean - y.mean).square().sum() + x.trace + y.trace - 2 * overlap)
