"""The headline of an evaluation: four figures that have to be read together, and what the codec alone makes of them."""

from __future__ import annotations

from collections.abc import Mapping

from encore.evaluation.metrics.critic import CRITIC
from encore.evaluation.metrics.energy_score import SKILL
from encore.evaluation.metrics.registry import MetricSpec
from encore.evaluation.results import format_value
from encore.statistics import Interval

LOG_MEL = "floored_mel"  # the distance of the headline's skill
PULSE, PULSE_DIFFERENCE = "pulse_context", "pulse_difference"
PULSE_GOAL = 0.1  # largest difference from the truth's that is good enough
HEADLINE = {  # headings of the columns, by metric
    SKILL + LOG_MEL: "log-mel skill",
    PULSE_DIFFERENCE: "pulse − truth’s",
    CRITIC: "critic’s AUC",
    "patch_distance": "patch distance",
}
PULSE_SPEC = MetricSpec(
    PULSE_DIFFERENCE,
    "pulse − truth’s",
    "Music",
    f"Agreement of the pulse with the context’s, less the truth’s; within {PULSE_GOAL:g} of 0 is the goal.",
    "zero",
)
HOW_TO_READ = (
    "Skill says how close to the truth, pulse whether the beat goes on, the critic whether a small network can tell it "
    "from what really follows (0.5: it cannot), patch distance whether the sounds are right. A good system is good at "
    "all four; noise, shards and other music have to fail."
)

Values = Mapping[str, Interval]  # by metric


def caption(codecs: Mapping[str, str], values: Mapping[str, Values]) -> str:
    """How to read the headline, and the figures of the truth through each codec, which are a ceiling.

    Args:
        codecs: the name of each codec, by that of the row with the truth through it.
        values: by row and metric.
    """
    ceilings = [
        f"The ceiling of all that is played through the codec {codec} is the truth through it (row {row}): "
        f"{_figures(values[row])}."
        for row, codec in codecs.items()
    ]
    if any(CRITIC in values[row] for row in codecs):
        ceilings.append(
            "That critic compares with the recordings; for the other rows the truth goes through the codec too."
        )
    return " ".join([HOW_TO_READ, *ceilings])


def _figures(values: Values) -> str:
    figures = {title: values[name].value for name, title in HEADLINE.items() if name in values}
    return ", ".join(f"{title} {format_value(value)}" for title, value in figures.items())
