"""All columns of an evaluation's tables, collected from the modules that compute them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from encore.errors import EncoreError
from encore.evaluation.headline import PULSE_SPEC
from encore.evaluation.metrics.critic import CRITIC_SPEC
from encore.evaluation.metrics.distribution import distribution_specs
from encore.evaluation.metrics.drift import CONTOUR_SPECS, drift_specs
from encore.evaluation.metrics.energy_score import score_specs
from encore.evaluation.metrics.losses import loss_specs
from encore.evaluation.metrics.memorization import MEMORIZATION_SPEC
from encore.evaluation.metrics.registry import METRICS, MetricSpec
from encore.evaluation.metrics.repetition import REPETITION_SPEC


def catalogue(
    distances: Sequence[str], losses: Mapping[str, str], spaces: Sequence[str], seconds: float
) -> list[MetricSpec]:
    """Every column, in the order of the tables.

    Args:
        distances: under which the energy score is computed.
        losses: what each loss to the truth is, by its name.
        spaces: features in which distributions are compared.
        seconds: length of the long continuations.

    Raises:
        EncoreError: a registered metric has the name of another column.
    """
    specs = [
        *score_specs(distances),
        *distribution_specs(spaces),
        CRITIC_SPEC,
        *CONTOUR_SPECS,
        *(metric.spec for metric in METRICS.values()),
        PULSE_SPEC,
        REPETITION_SPEC,
        MEMORIZATION_SPEC,
        *drift_specs(seconds),
        *loss_specs(losses),
    ]
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise EncoreError(f"--plugins: the metric {twice[0]} is built in; register yours under another name")
    return specs
