"""The tables, the JSON and the page of an evaluation."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from encore.errors import EncoreError
from encore.evaluation.catalog import catalogue
from encore.evaluation.metrics import METRICS, MetricSpec, metric
from encore.evaluation.report import write_report
from encore.evaluation.results import Results, best_of, format_value, print_tables, write_json
from encore.reporting.html import AudioSample, SampleGroup
from encore.statistics import Interval
from tests.test_page import NASTY, RATE, Page

GOALS = ("low", "high", "zero", "one", "truth", None)


@pytest.fixture
def results() -> Results:
    """A metric per goal, whose best continuer among a, b and c is known."""
    rows = {
        "a": (1.0, 1.0, 0.5, 0.25, 3.0, 1.0),
        "b": (2.0, 3.0, -0.25, 2.0, 4.1, 2.0),
        "c": (math.nan, 2.0, 0.75, 9.0, 9.0, 3.0),
        "truth": (0.0, 9.0, 0.0, 1.0, 4.0, 4.0),
    }
    values = {}
    for name, row in rows.items():
        values[name] = {
            f"is_{goal}": Interval(value, *((None, None) if goal is None else (value - 0.05, value + 0.05)))
            for goal, value in zip(GOALS, row, strict=True)
        }
    values["a"]["skill_x"] = Interval(-9.0, -10.0, -8.0)
    values["b"]["skill_x"] = Interval(0.25, 0.125, 0.5)
    specs = [MetricSpec(f"is_{goal}", f"title {goal}", "group", f"note of {goal}", goal) for goal in GOALS]
    specs.append(MetricSpec("skill_x", "x", "Skill", "skill", "high"))
    return Results(
        metadata={"Name": NASTY, "Checkpoint": "some.pt"},
        items=2,
        candidates=4,
        seconds=1.0,
        specs=specs,
        values=values,
        per_item={"is_low": {"a": [1.0, math.nan]}},
        pairs=["pair_0000", "pair_0001"],
        recordings=["one", "two"],
        contours={"Level": {"a": [0.0, 1.0], "b": [1.0, 0.0]}},
        warnings=[f"few {NASTY}"],
        notes={"a": "the first"},
    )


def test_the_best_is_what_the_goal_says_and_never_the_truth(results: Results) -> None:
    best = {spec.goal: results.best(spec) for spec in results.specs[: len(GOALS)]}
    assert best == {"low": {"a"}, "high": {"b"}, "zero": {"b"}, "one": {"b"}, "truth": {"b"}, None: set()}


@pytest.mark.parametrize("other", [Interval(1.2, 1.04, 1.36), Interval(1.2, None, None), Interval(1.0, 0.95, 1.05)])
def test_none_is_best_where_intervals_overlap_or_are_missing(results: Results, other: Interval) -> None:
    results.values["c"]["is_low"] = other
    assert results.best(results.specs[0]) == set()


def test_intervals_on_both_sides_of_the_goal_overlap() -> None:
    spec = MetricSpec("level", "level", "group", "note", "zero")
    values = {"a": {"level": Interval(0.5, 0.4, 0.6)}, "b": {"level": Interval(-0.55, -0.65, -0.45)}}
    assert best_of(spec, values, None) == set()
    values["b"] = {"level": Interval(-0.9, -1.0, -0.8)}
    assert best_of(spec, values, None) == {"a"}


def test_silence_is_the_best_at_nothing(results: Results) -> None:
    results.values["a"]["level_db"] = Interval(-60.0, -61.0, -59.0)
    results.values["c"]["is_low"] = Interval(3.0, 2.9, 3.1)
    assert results.best(results.specs[0]) == {"b"}


def test_an_auc_below_a_half_is_as_good_as_a_half() -> None:
    spec = MetricSpec("critic", "critic", "group", "note", "half")
    aucs = (("a", 0.4), ("b", 0.5), ("c", 0.6))
    values = {name: {"critic": Interval(auc, auc - 0.01, auc + 0.01)} for name, auc in aucs}
    assert best_of(spec, values, None) == set()
    del values["b"]
    assert best_of(spec, values, None) == {"a"}


def test_the_headline_comes_first_with_its_own_titles(results: Results, tmp_path: Path) -> None:
    results.headline, results.caption = {"skill_x": "skill of x", "absent": "absent"}, f"How to read {NASTY}"
    text = io.StringIO()
    print_tables(results, Console(file=text, width=100, highlight=False))
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    assert lines[0] == "Headline" and lines[1] == "skill of x ↑"
    assert [line.split() for line in lines[3:5]] == [["a", "−9.00", "±1.00"], ["b", "★", "0.250", "[0.125,", "0.500]"]]
    assert f"How to read {NASTY}" in lines[5]
    write_report(results, [], RATE, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    assert page.rows[0] == ["System", "Plot", "skill of x"]
    assert f"How to read {NASTY}" in page.text
    write_json(results, tmp_path / "evaluation.json")
    headline = json.loads((tmp_path / "evaluation.json").read_text())["headline"]
    assert headline["systems"]["b"] == {"skill_x": {"value": 0.25, "low": 0.125, "high": 0.5}}


def test_json_holds_every_value_and_no_nan(results: Results, tmp_path: Path) -> None:
    write_json(results, tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["checkpoint"] == "some.pt" and content["items"] == 2 and content["warnings"] == results.warnings
    assert content["systems"]["a"]["is_high"] == {"value": 1.0, "low": 0.95, "high": 1.05}
    assert content["systems"]["b"]["is_None"] == {"value": 2.0, "low": None, "high": None}
    assert content["systems"]["c"]["is_low"]["value"] is None
    assert content["per_item"]["is_low"]["a"] == [1.0, None]
    assert content["courses"]["Level"]["b"] == [1.0, 0.0]


def test_json_can_be_read_again(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_json(results, path)
    again = Results.from_json(path)
    assert again.values["a"] == results.values["a"] and again.values["b"] == results.values["b"]
    assert math.isnan(again.values["c"]["is_low"].value)
    assert [(spec.name, spec.goal) for spec in again.specs] == [(spec.name, spec.goal) for spec in results.specs]
    assert [again.best(spec) for spec in again.specs] == [results.best(spec) for spec in results.specs]
    assert (again.metadata, again.contours, again.pairs) == (results.metadata, results.contours, results.pairs)
    path.write_text('{"facts": 1}')
    with pytest.raises(EncoreError, match="not an evaluation"):
        Results.from_json(path)


def test_finite_values_of_the_model_are_tracked(results: Results) -> None:
    results.values["model"] = {**results.values["b"], "is_high": Interval(math.nan, None, None)}
    results.headline = {"skill_x": "skill of x"}
    metrics = results.tracked()
    assert metrics["eval_model_is_low"] == 2.0 and "eval_model_is_high" not in metrics
    assert {name: value for name, value in metrics.items() if not name.startswith("eval_model_")} == {
        "eval/skill_x": 0.25,
        "headline_skill_x": 0.25,
        "headline_skill_x_low": 0.125,
        "headline_skill_x_high": 0.5,
    }


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_number_and_no_name_is_cut(results: Results, width: int) -> None:
    results.values["a_system_with_a_long_name"] = dict(results.values["a"])
    text = io.StringIO()
    print_tables(results, Console(file=text, width=width, highlight=False, force_terminal=True, color_system=None))
    shown = text.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert ("a_system_with_" if width == 40 else "a_system_with_a_long_name") in shown
    every = [cell for values in results.values.values() for cell in values.values() if math.isfinite(cell.value)]
    assert all(format_value(interval.value) in shown for interval in every)


def test_tables_have_continuers_as_rows_and_fit(results: Results) -> None:
    text = io.StringIO()
    print_tables(results, Console(file=text, width=60, highlight=False))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.strip() == "group" or "group, continued" in line for line in lines) == 2  # six columns
    rows = [line.split() for line in lines if line.split()[:1] == ["a"]]
    assert rows[0] == ["a", "★", "1.00", "±0.0500", "1.00", "±0.0500", "0.500", "±0.0500"]
    assert ["b", "★", "0.250", "[0.125,", "0.500]"] in [line.split() for line in lines]
    assert any(line.startswith("warning: few") for line in lines)


def test_the_page_shows_it_all_and_needs_no_network(results: Results, tmp_path: Path) -> None:
    samples = [AudioSample(name, "", 0.1 * torch.randn(1, RATE)) for name in ("truth", NASTY)]
    write_report(results, [SampleGroup(f"pair {NASTY}", samples)], RATE, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    assert page.elsewhere == [] and "://" not in (tmp_path / "index.html").read_text()
    assert len(page.audio) == 2 and len(page.images) == 3  # two spectrograms, and the drift
    for content in page.images:
        assert np.asarray(Image.open(io.BytesIO(content))).std() > 5
    assert page.text.count(NASTY) == 6  # title, heading, metadata, warning, group and sample
    assert page.rows[:3] == [["System", "Plot", "title low"], ["a", "", "★ 1.00 "], ["b", "", "2.00 "]]
    assert "★ 1.00 [0.95, 1.05]" in page.text and "2.00 [1.95, 2.05]" in page.text
    assert "lower is better" in page.text and "note of low" in page.text and "the first" in page.text
    assert "A reason to be careful" in page.text


def test_the_answer_and_its_chart_come_first_and_players_before_all_other_charts(
    results: Results, tmp_path: Path
) -> None:
    gains = {
        "model": Interval(0.08, 0.05, 0.11),
        "replay": Interval(0.0, 0.0, 0.0),
        "noise": Interval(-9.0, -9.5, -8.5),
    }
    for name, gain in gains.items():
        results.values[name] = {"skill_floored_mel": gain}
    sample = AudioSample("truth", "", 0.1 * torch.randn(1, RATE), 0.5)
    write_report(results, [SampleGroup("a song", [sample], "pair_0001")], RATE, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    text = page.text
    places = [text.index(part) for part in ("replaying the input by 8% ± 3", "8% [5, 11]", "a song", "few a <script>")]
    assert places == sorted(places)
    # Noise is so far below all others that the first chart is without it.
    assert [row[0] for row in page.rows[:4]] == ["System", "model", "replay", ""]


def test_the_catalogue_names_every_metric_once() -> None:
    names = [spec.name for spec in catalogue(["mel", "codec"], {"rms": "an error"}, ["codec", "log_mel"], 60)]
    assert len(set(names)) == len(names)
    assert {"skill_mel", "energy_score_codec", "kernel_distance_log_mel", "best_rms", "drift_level"} <= set(names)


def test_a_metric_under_the_name_of_another_column_or_with_an_unknown_goal_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS))

    def register(name: str, goal: str | None = None) -> None:
        metric(name, title="level", group="Sound", note="Level.", goal=goal)(lambda item: 0.0)

    with pytest.raises(ValueError, match="registered twice"):
        register("onset_rate")
    with pytest.raises(ValueError, match="goal must be None or one of low, high"):
        register("other", "lowest")
    register("level_db")
    with pytest.raises(EncoreError, match="--plugins: the metric level_db is built in"):
        catalogue(["mel"], {}, ["codec"], 60)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-1.234, "−1.23"),
        (0.01234, "0.0123"),
        (123.4, "123"),
        (1e-9, "0"),
        (math.inf, "–"),
        (0.99999, "1.000"),
    ],
)
def test_values_are_formatted_with_three_digits(value: float, text: str) -> None:
    assert format_value(value) == text
