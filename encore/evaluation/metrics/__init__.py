"""Metrics of continuations. A module of your own adds one with `@metric`; see docs/extending.md."""

from encore.evaluation.metrics.registry import GOALS, METRICS, Item, Metric, MetricSpec, metric

# Imported for the metrics that they register, in the order of the tables.
from encore.evaluation.metrics import boundary, rhythm_harmony, repetition  # isort: skip  # noqa: F401

__all__ = ["GOALS", "METRICS", "Item", "Metric", "MetricSpec", "metric"]
