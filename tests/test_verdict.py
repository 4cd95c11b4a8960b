"""What evaluations and ablations say in words: only what the intervals in their tables support."""

from __future__ import annotations

import pytest

from encore.ablation import verdict as ablation_verdict
from encore.ablation.comparison import compare
from encore.evaluation.metrics.registry import MetricSpec
from encore.evaluation.results import Results
from encore.evaluation.verdict import sentences
from encore.reporting.wording import compared, percent, quantity
from encore.statistics import Interval

RECORDINGS = [f"song {n}" for n in range(10)]
SCORE, SKILL, PRIOR_SKILL = "energy_score_floored_mel", "skill_floored_mel", "skill_prior_floored_mel"


def results(scores: dict[str, list[float]] | None, model: dict[str, Interval]) -> Results:
    """An evaluation of ten recordings with these metrics of the model."""
    specs = [MetricSpec(SKILL, "log-mel", "Skill", "note", "high")]
    values = {"model": model, **{name: {} for name in scores or {} if name != "model"}}
    return Results({}, 10, 4, 4.0, specs, values, {SCORE: scores or {}}, [f"pair {n}" for n in range(10)], RECORDINGS)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.08, 0.05, 0.11), "8% ± 3"),
        (Interval(0.02, 0.0001, 0.04), "2.00% [0.01, 4.00]"),
        (Interval(0.08, 0.06, 0.15), "8% [6, 15]"),
        (Interval(-0.012, -0.031, 0.007), "−1% ± 2"),
        (Interval(0.0, 0.0, 0.0), "0% ± 0"),
        (Interval(0.5, None, None), "50%"),
        (Interval(1e-6, -1e-6, 3e-6), "less than 0.01%"),
        (Interval(0.0213, 0.0211, 0.0215), "2.13% ± 0.02"),
    ],
)
def test_percents_keep_what_they_say_about_zero(interval: Interval, text: str) -> None:
    assert percent(interval) == text


def test_a_value_keeps_its_unit() -> None:
    assert quantity(Interval(-4.24, -4.5, -4.0), " dB") == "−4.2 dB ± 0.2"


@pytest.mark.parametrize(
    ("interval", "start"),
    [
        (Interval(0.08, 0.05, 0.11), "better than the replay by 8% ± 3"),
        (Interval(-0.20, -0.25, -0.15), "worse than the replay by 20% ± 5"),
        (Interval(0.02, -0.01, 0.05), "no difference found from the replay"),
        (Interval(0.0, 0.0, 0.0), "no difference found from the replay"),
        (Interval(0.30, None, None), "no interval, so nothing is known against the replay"),
    ],
)
def test_better_and_worse_are_said_only_of_intervals_without_zero(interval: Interval, start: str) -> None:
    assert compared(interval, "the replay").startswith(start)


def test_an_evaluation_in_words() -> None:
    model = {
        SKILL: Interval(0.08, 0.05, 0.11),
        PRIOR_SKILL: Interval(0.02, 0.01, 0.06),
        "level_db": Interval(0.3, -0.2, 0.8),
        "repetition_difference": Interval(0.05, 0.03, 0.07),
        "pulse_difference": Interval(-0.3, -0.4, -0.2),
        "critic": Interval(0.93, 0.9, 0.96),
    }
    found = results(None, model)
    assert sentences(found) == [
        "Better than replaying the input by 8% ± 3 (log-mel); better than its own prior by 2% [1, 6].",
        "Level right; more repetitive than music by 0.05 ± 0.02; the beat is less steady than the music's by 0.3 ± "
        "0.1; a critic tells it from real music (AUC 0.93 ± 0.03).",
    ]


def test_what_no_interval_supports_is_not_said() -> None:
    model = {
        SKILL: Interval(0.08, -0.02, 0.18),
        "level_db": Interval(-2.0, -5.0, 1.0),
        "repetition_difference": Interval(0.05, -0.01, 0.11),
        "critic": Interval(0.7, 0.45, 0.9),
    }
    found = results(None, model)
    text = " ".join(sentences(found)).lower()
    assert text.count("no difference found") == 3 and "no sign that a critic" in text
    assert not any(word in text for word in ("better", "worse", "too quiet", "more repetitive", "level right"))


def test_a_model_is_compared_with_another_over_the_same_pairs() -> None:
    mine, theirs = [1.0 + n / 10 for n in range(10)], [1.2 * (1.0 + n / 10) for n in range(10)]
    first, *_ = sentences(results({"model": mine, "other": theirs, "other_prior": theirs, "replay": mine}, {}))
    assert first == "Better than other by 17% ± 0."


def test_silence_is_called_silence() -> None:
    found = sentences(results(None, {SKILL: Interval(0.5, 0.4, 0.6), "level_db": Interval(-60.0, -61.0, -59.0)}))
    assert found == ["The model gives silence, −60 dB ± 1 from the level of music."]


@pytest.mark.parametrize(("names", "said"), [(["a"], "one recording"), (["a", "b"], "2 recordings"), (RECORDINGS, "")])
def test_few_recordings_are_said(names: list[str], said: str) -> None:
    found = results(None, {SKILL: Interval(0.08, 0.05, 0.11)})
    found.recordings = names
    last = sentences(found)[-1]
    assert said in last if said else "recordings" not in last


def run(gain: float, spread: float, score: float, level: float = 0.0) -> Results:
    """A run with this gain over the replay, whose scores are all a multiple of the same ones."""
    scores = {"model": [score * (1 + n) for n in range(10)]}
    interval = Interval(gain, gain - spread, gain + spread)
    return results(scores, {SKILL: interval, "level_db": Interval(level, level - 0.1, level + 0.1)})


def test_the_best_run_is_found_on_the_same_pairs_and_starred_where_intervals_lie_apart() -> None:
    found = compare({"a": run(0.05, 0.1, 1.1), "b": run(0.2, 0.1, 1.0)}, {"a": 1.0, "b": 1.0}, {})
    assert ablation_verdict.sentences(found) == [
        "The best run is b, by 9% ± 0 ahead of a on the same pairs.",
        "Gain over replaying the input (log-mel): 1. b 20% ± 10, 2. a 5% ± 10.",
    ]
    skill = found.metrics[0]
    assert found.best(skill) == set()  # the intervals in the table overlap
    apart = compare({"a": run(0.05, 0.02, 1.1), "b": run(0.2, 0.02, 1.0)}, {"a": 1.0, "b": 1.0}, {})
    assert apart.best(skill) == {"b"}


def test_equal_runs_silence_and_failures_have_no_best() -> None:
    evaluations = {"a": run(0.2, 0.1, 1.0), "b": run(0.2, 0.1, 1.0), "quiet": run(0.9, 0.01, 0.1, level=-61.0)}
    found = compare(evaluations, dict.fromkeys([*evaluations, "broken"], 1.0), {"broken": "it broke"})
    assert ablation_verdict.sentences(found) == [
        "No best run: no difference found between any of the runs.",
        "Gain over replaying the input (log-mel): 1. a 20% ± 10, 2. b 20% ± 10.",
        "Not ranked: quiet gives silence, −61.0 dB ± 0.1 from the level of music.",
        "Not ranked: broken failed.",
    ]
    assert found.best(found.metrics[0]) == set()
    assert ablation_verdict.sentences(compare({}, {"a": 0.0}, {"a": "it broke"})) == ["Not ranked: a failed."]
