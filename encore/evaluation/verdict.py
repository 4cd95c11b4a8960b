"""What an evaluation found, in sentences. Nothing is said that the intervals in the tables do not support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from encore.evaluation.baselines import BASELINES, CODEC, MODEL, PRIOR, prior_name
from encore.evaluation.headline import LOG_MEL, PULSE_DIFFERENCE, PULSE_GOAL
from encore.evaluation.metrics.critic import CRITIC
from encore.evaluation.metrics.energy_score import SCORE, SKILL, SKILL_PRIOR
from encore.evaluation.metrics.repetition import REPETITION_DIFFERENCE
from encore.evaluation.results import LEVEL, Results, is_silence
from encore.reporting.wording import compared, negative, quantity, sentence
from encore.statistics import ENOUGH_RECORDINGS, Interval, skill

MEASURE = "log-mel"  # by which better and worse are meant
LEVEL_TOLERANCE = 1.0  # dB; a difference that is hardly heard
REPETITION_TOLERANCE = 0.02
FOOLED = 0.6  # AUC of a critic that can hardly tell two things apart

Values = Mapping[str, Interval]  # by metric


def sentences(results: Results) -> list[str]:
    """What was found about the model: what it is better than, how it sounds, and how far to trust it.

    Of the metric `log-mel skill` (floored log-mel energy score), of level, repetition, pulse and critic; a clause is
    left out where its metric was not computed.
    """
    values = results.values.get(MODEL, {})
    if is_silence(values):
        return [sentence(f"the model gives silence, {quantity(values[LEVEL], ' dB')} from the level of music")]
    better = [
        *_clause(values, SKILL + LOG_MEL, lambda gain: compared(gain, "replaying the input", MEASURE)),
        *_clause(values, SKILL_PRIOR + LOG_MEL, lambda gain: compared(gain, "its own prior")),
        *(compared(gain, other) for other, gain in against(results).items()),
    ]
    sound = [
        *_clause(values, LEVEL, level),
        *_clause(values, REPETITION_DIFFERENCE, repetition),
        *_clause(values, PULSE_DIFFERENCE, pulse),
        *_clause(values, CRITIC, critic),
    ]
    found = [sentence(*clauses) for clauses in (better, sound) if clauses]
    return found + caveats(len(set(results.recordings)))


def caveats(recordings: int) -> list[str]:
    """How far intervals over so many recordings can be trusted, in a sentence, unless they are enough."""
    if recordings == 0 or recordings >= ENOUGH_RECORDINGS:
        return []
    if recordings == 1:
        return ["All from one recording, so there are no intervals: more recordings would tell."]
    return [f"From {recordings} recordings, so the intervals are rough: at least {ENOUGH_RECORDINGS} would tell more."]


def against(results: Results) -> dict[str, Interval]:
    """The model's skill against each other model, over the same pairs, as a fraction of the other's score."""
    scores = results.per_item.get(SCORE + LOG_MEL, {})
    named = [name for name in scores if name not in (MODEL, PRIOR, *BASELINES)]
    belonging = {other for name in named for other in (prior_name(name), f"{name}_{CODEC}")}
    if MODEL not in scores:
        return {}
    return {name: skill(scores[MODEL], scores[name], results.recordings) for name in named if name not in belonging}


def level(difference: Interval) -> str:
    """Whether the level is the truth's; `difference` in dB."""
    return _apart(difference, LEVEL_TOLERANCE, ("too quiet by", "too loud by"), "level right", "level", " dB")


def repetition(difference: Interval) -> str:
    """Whether it repeats itself as music does; `difference` of similarities, from the truth's."""
    words = "less repetitive than music by", "more repetitive than music by"
    return _apart(difference, REPETITION_TOLERANCE, words, "as repetitive as music", "repetition")


def pulse(difference: Interval) -> str:
    """Whether the beat goes on; `difference` of agreements, from the truth's."""
    words = "the beat is less steady than the music's by", "the beat is steadier than the music's by"
    return _apart(difference, PULSE_GOAL, words, "the beat goes on", "beat")


def critic(auc: Interval) -> str:
    """Whether a critic tells it from real music; `auc` from 0.5, it cannot, to 1."""
    figures = f"(AUC {quantity(auc, '')})"
    if auc.low is None or auc.high is None:
        return ""
    if auc.low > 0.5 and auc.high > FOOLED:
        return f"a critic tells it from real music {figures}"
    if auc.high <= FOOLED:
        return f"a critic hardly tells it from real music {figures}"
    return f"no sign that a critic can tell it from real music {figures}"


def _clause(values: Values, name: str, say: Callable[[Interval], str]) -> list[str]:
    """What is said about a metric; nothing if it was not computed."""
    clause = say(values[name]) if name in values and math.isfinite(values[name].value) else ""
    return [clause] if clause else []


def _apart(
    difference: Interval, tolerance: float, words: tuple[str, str], equal: str, subject: str, unit: str = ""
) -> str:
    """Which side of 0 a difference is on, or that it is within the tolerance of it, as far as its interval tells."""
    if difference.low is None or difference.high is None:
        return f"{subject}: {quantity(difference, unit)} from the truth's, without an interval"
    if -tolerance <= difference.low and difference.high <= tolerance:
        return equal
    if difference.high < 0:
        return f"{words[0]} {quantity(negative(difference), unit)}"
    if difference.low > 0:
        return f"{words[1]} {quantity(difference, unit)}"
    return f"{subject}: no difference found from the truth's, {quantity(difference, unit)}"
