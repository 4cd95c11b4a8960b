"""What an ablation found, in sentences: which run is the best, as far as the intervals tell, and the ranking."""

from __future__ import annotations

from encore.ablation.comparison import Comparison
from encore.evaluation.headline import LOG_MEL
from encore.evaluation.metrics.energy_score import SKILL
from encore.evaluation.results import LEVEL, is_silence
from encore.evaluation.verdict import MEASURE, caveats
from encore.reporting.wording import enumerated, percent, quantity, sentence
from encore.statistics import Interval, skill

RANKED_BY = SKILL + LOG_MEL  # gain over replaying the input


def sentences(comparison: Comparison) -> list[str]:
    """Which run is the best, the ranking, what is left out of it, and how far to trust it.

    A run is called the best only if the interval of its gain over every other run, on the same pairs, is above 0.
    """
    order = ranking(comparison)
    found = [_best(comparison, order)] if len(order) > 1 else []
    if order:
        places = [f"{n}. {name} {percent(comparison.runs[name][RANKED_BY])}" for n, name in enumerate(order, 1)]
        found.append(f"Gain over replaying the input ({MEASURE}): {', '.join(places)}.")
    found += [
        sentence(f"not ranked: {name} gives silence, {quantity(values[LEVEL], ' dB')} from the level of music")
        for name, values in comparison.runs.items()
        if is_silence(values)
    ]
    if comparison.failures:
        found.append(sentence(f"not ranked: {enumerated([*comparison.failures])} failed"))
    return found + caveats(len(set(comparison.recordings)))


def ranking(comparison: Comparison) -> list[str]:
    """The runs from the best to the worst, by their gain over replaying the input; without those that give silence."""
    gains = {
        name: values[RANKED_BY].value
        for name, values in comparison.runs.items()
        if RANKED_BY in values and not is_silence(values)
    }
    return sorted(gains, key=lambda name: -gains[name])


def gain(comparison: Comparison, run: str, other: str) -> Interval:
    """How much better a run is than another, over the same pairs: `1 − score / score of the other`."""
    return skill(comparison.scores[run], comparison.scores[other], comparison.recordings)


def _best(comparison: Comparison, order: list[str]) -> str:
    """The best run, or those among which none was found to be it."""
    first, *others = order
    gains = {name: gain(comparison, first, name) for name in others}
    tied = [name for name, found in gains.items() if found.low is None or found.low <= 0]
    if not tied:
        following = order[1]
        return sentence(
            f"the best run is {first}, by {percent(gains[following])} ahead of {following} on the same pairs"
        )
    every = "any of the runs" if len(tied) == len(others) else enumerated([first, *tied])
    return sentence(f"no best run: no difference found between {every}")
