"""The tables, the JSON and the page of an evaluation."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
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
            f"is_{goal}": Interval(value, *((None, None) if name == "b" else (value - 0.5, value + 0.5)))
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


def test_equally_good_continuers_are_all_best(results: Results) -> None:
    results.values["c"]["is_low"] = Interval(1.0 + 1e-9, None, None)
    assert results.best(results.specs[0]) == {"a", "c"}


def test_an_auc_below_a_half_is_as_good_as_a_half() -> None:
    spec = MetricSpec("critic", "critic", "group", "note", "half")
    values = {name: {"critic": Interval(auc, None, None)} for name, auc in (("a", 0.4), ("b", 0.5), ("c", 0.6))}
    assert best_of(spec, values, None) == {"a", "b"}


def test_the_headline_comes_first_with_its_own_titles(results: Results, tmp_path: Path) -> None:
    results.headline, results.caption = {"skill_x": "skill of x", "absent": "absent"}, f"How to read {NASTY}"
    text = io.StringIO()
    print_tables(results, Console(file=text, width=100, highlight=False))
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    assert lines[0] == "Headline" and lines[1] == "skill of x ↑"
    assert [line.split() for line in lines[3:5]] == [["a", "−9.00", "±1.00"], ["b", "★", "0.250", "±0.188"]]
    assert f"How to read {NASTY}" in lines[5]
    write_report(results, [], RATE, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    assert page.rows[0][:1] == ["System"] and page.rows[0][1].startswith("skill of x")
    assert f"How to read {NASTY}" in page.text
    write_json(results, tmp_path / "evaluation.json")
    headline = json.loads((tmp_path / "evaluation.json").read_text())["headline"]
    assert headline["systems"]["b"] == {"skill_x": {"value": 0.25, "low": 0.125, "high": 0.5}}


def test_json_holds_every_value_and_no_nan(results: Results, tmp_path: Path) -> None:
    write_json(results, tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["checkpoint"] == "some.pt" and content["items"] == 2 and content["warnings"] == results.warnings
    assert content["systems"]["a"]["is_high"] == {"value": 1.0, "low": 0.5, "high": 1.5}
    assert content["systems"]["b"]["is_low"] == {"value": 2.0, "low": None, "high": None}
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


def test_tables_have_continuers_as_rows_and_fit(results: Results) -> None:
    text = io.StringIO()
    print_tables(results, Console(file=text, width=100, highlight=False))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.strip() == "group" or "group, continued" in line for line in lines) == 2  # six columns
    rows = [line.split() for line in lines if line.split()[:1] == ["a"]]
    assert rows[0] == ["a", "★", "1.00", "±0.500", "1.00", "±0.500", "0.500", "±0.500"]
    assert ["b", "★", "0.250", "±0.188"] in [line.split() for line in lines]
    assert any(line.startswith("warning: few") for line in lines)


def test_the_page_shows_it_all_and_needs_no_network(results: Results, tmp_path: Path) -> None:
    samples = [AudioSample(name, "", 0.1 * torch.randn(1, RATE)) for name in ("truth", NASTY)]
    write_report(results, [SampleGroup(f"pair {NASTY}", samples)], RATE, tmp_path / "index.html")
    page = Page(tmp_path / "index.html")
    assert page.elsewhere == [] and "://" not in (tmp_path / "index.html").read_text()
    assert len(page.audio) == 2 and len(page.images) == 5  # skill, score and drift; two spectrograms
    for content in page.images:
        assert imread(io.BytesIO(content)).std() > 0.02
    assert page.text.count(NASTY) == 6  # title, heading, metadata, warning, group and sample
    assert page.rows[0][:2] == ["System", "title low"] and page.rows[2][:2] == ["b", "2.00"]
    assert "★ 1.00" in page.text and "0.500 … 1.50" in page.text and "lower is better" in page.text
    assert "note of low" in page.text and "the first" in page.text


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
