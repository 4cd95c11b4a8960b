"""The registry of metrics: what each computes for one held-out pair, and what the tables say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from encore import registry
from encore.registry import Registry

GOALS = {
    "low": "lower is better",
    "high": "higher is better",
    "zero": "0 is best",
    "one": "1 is best",
    "half": "0.5 is best",
    "truth": "the truth’s is best",
}
SHORT_NAMES = {
    "spectral_energy": "spectral",
    "audible_energy": "audible",
    "mel": "log-mel",
    "floored_mel": "log-mel −75 dB",
    "log_mel": "log-mel",
    "variogram": "variogram",
    "codec": "codec",
}


@dataclass(frozen=True)
class MetricSpec:
    """One column of the tables.

    Attributes:
        name: in evaluation.json and in MLflow.
        title: heading of the column.
        group: heading of the table that the column belongs to.
        note: what the metric is, in a sentence, with its unit.
        goal: which value is best, a key of `GOALS`; None if no value is better than another.
        transform: an increasing function that is applied to the mean over the pairs and to its interval; `math.exp`
            makes a mean of logarithms a geometric mean.
    """

    name: str
    title: str
    group: str
    note: str
    goal: str | None = None
    transform: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.goal is not None and self.goal not in GOALS:
            raise ValueError(f"metric {self.name!r}: goal must be None or one of {', '.join(GOALS)}, got {self.goal!r}")


@dataclass(frozen=True)
class Item:
    """One held-out pair and a continuation of it, as float audio on the CPU.

    Attributes:
        context: what was continued, `[C, K]`.
        continuation: the first candidate, `[C, M]`.
        truth: the music that really follows, `[C, M]`.
        sample_rate: Hz.
    """

    context: Tensor
    continuation: Tensor
    truth: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Metric:
    """A metric of one continuation: its column, its function, and whether it compares with the truth."""

    spec: MetricSpec
    compute: Callable[[Item], float]
    against_truth: bool


METRICS: Registry[Metric] = registry.METRICS


def metric(
    name: str,
    *,
    title: str,
    group: str,
    note: str,
    goal: str | None = None,
    transform: Callable[[float], float] | None = None,
    against_truth: bool = False,
) -> Callable[[Callable[[Item], float]], Callable[[Item], float]]:
    """Decorator that registers `function(item) -> float` as a metric of one continuation.

    It is computed for every held-out pair and every continuer, and appears in the tables, in evaluation.json, on the
    page and in MLflow: the mean over the pairs, with a 95% interval. Metrics of a group make one table.

    Args:
        name, title, group, note, goal, transform: see `MetricSpec`.
        against_truth: the function compares the continuation with the truth, so the truth itself gets no value.

    Raises:
        ValueError: the name is taken, or there is no such goal.
    """

    def register(function: Callable[[Item], float]) -> Callable[[Item], float]:
        METRICS.register(name)(Metric(MetricSpec(name, title, group, note, goal, transform), function, against_truth))
        return function

    return register


def short_name(name: str) -> str:
    """What the tables call a distance or a feature space."""
    return SHORT_NAMES.get(name, name)
