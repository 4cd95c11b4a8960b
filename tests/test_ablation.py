"""The grid of an ablation, the state its runs are resumed from, and their comparison."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import losses
from encore.ablation.comparison import compare, print_comparison
from encore.ablation.grid import Grid, configurations, differences, read_grid
from encore.ablation.report import write_page
from encore.ablation.runner import duration, last_error, open_runs
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.evaluation.metrics.registry import MetricSpec
from encore.evaluation.results import Results, format_value
from encore.reporting.html import AudioSample, SampleGroup
from encore.statistics import Interval
from encore.tracking import NestedRuns
from tests.conftest import ENVIRONMENT, ROOT, SAMPLE_RATE
from tests.test_page import NASTY, Page


def write(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def problems_of(action: Any, *arguments: Any) -> list[str]:
    with pytest.raises(EncoreError) as caught:
        action(*arguments)
    return str(caught.value).splitlines()


def test_a_grid_gives_every_run_the_common_flags_and_its_own(tmp_path: Path, tiny_pairs: Path) -> None:
    grid = read_grid(
        write(
            tmp_path,
            "common: {lr: 1e-3, compile: false, nnodes: 1, epochs: 3, patience: null}\n"
            "runs:\n  plain:\n  own: {epochs: 7, loss_weight_mel: 1, objective: regression}\n",
        )
    )
    given = {"dataset_folder": tiny_pairs, "experiment": "there"}
    configs = configurations(grid, tmp_path / "out", given)
    assert list(configs) == ["plain", "own"]
    plain, own = configs.values()
    common = {"lr": 1e-3, "compile": False, "nnodes": "1", "epochs": 3, "patience": None}
    assert common.items() <= plain.to_dict().items()
    changed = {"epochs": 7, "loss_weight_mel": 1.0, "objective": "regression", "lr": 1e-3}
    assert changed.items() <= own.to_dict().items()
    for name, config in configs.items():
        assert config.run.checkpoint_dir == tmp_path / "out" / name / "checkpoints"
        assert (config.run.resume, config.tracking.run_name, config.tracking.experiment) == ("auto", name, "there")
        assert config.data.dataset_folder == tiny_pairs
    assert plain.objective.kind == "energy"  # defaults are resolved
    assert plain.objective.loss_weights == {"loss_weight_spectral_energy": 1}


def test_all_problems_of_a_grid_are_reported_together(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "common: {loss_weight_mell: 1, resume: auto, epochs: 1.5}\n"
        "runs:\n"
        "  a/b: {lr: fast}\n"
        "  one: {codec: starter, compile: 1, mlflow_uri: x, batch_size: true}\n"
        "  two: 3\n"
        "  Two:\n",
    )
    assert problems_of(read_grid, path) == [
        f"{path}: common: loss_weight_mell: there is no such flag; did you mean loss_weight_mel?",
        f"{path}: common: resume: is set by ablate.py for every run; leave it out",
        f"{path}: common: epochs: 1.5 is not a whole number",
        f"{path}: runs: a/b: names a folder, so use letters, digits, - and _ only",
        f"{path}: runs: a/b: lr: 'fast' is not a number",
        f"{path}: runs: one: codec: must be the same for all runs; put it under common:",
        f"{path}: runs: one: compile: 1 is not true or false",
        f"{path}: runs: one: mlflow_uri: is set by ablate.py for every run; leave it out",
        f"{path}: runs: one: batch_size: True is not a whole number",
        f"{path}: runs: two: must hold flags, not 3",
        f"{path}: runs: two names differ in upper and lower case at most; give each run its own",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs:\n  a: {lr: 1}\n  a: {lr: 2}\n", "a is there twice"),
        ("runs: {a: {lr: 1, lr: 2}}", "lr is there twice"),
        ("runs: {[1, 2]: {}}", "a key that is not a name"),
        ("runs: [a, b]", "must hold flags"),
        ("runs: {a: }\nextra: 1", "nothing else"),
        ("", "must have common: and runs:"),
        ("runs: {a: *nowhere}", "nowhere"),
    ],
)
def test_a_file_that_is_not_a_grid_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = problems_of(read_grid, write(tmp_path, text))
    assert line.startswith(f"--grid {tmp_path / 'grid.yaml'}: ") and expected in line


def test_a_grid_may_use_the_anchors_of_yaml(tmp_path: Path) -> None:
    text = "runs:\n  a: &a {lr: 1, epochs: 2}\n  b: {<<: *a, lr: 2}\n"
    assert read_grid(write(tmp_path, text)).runs == {"a": {"lr": 1.0, "epochs": 2}, "b": {"lr": 2.0, "epochs": 2}}


def test_a_problem_of_every_run_is_reported_once(tmp_path: Path) -> None:
    grid = Grid("g.yaml", {"epochs": 0}, {"a": {"lr": 0.0}, "b": {}})
    lines = problems_of(configurations, grid, tmp_path, {})
    assert [line.partition(";")[0] for line in lines] == [
        "g.yaml: --epochs 0: must be a whole number from 1 to 1000000000",
        "g.yaml: --dataset_folder: missing",
        "g.yaml: runs: a: --lr 0.0: must be a number from 1e-12 to 1e+30",
    ]
    assert "runs: is empty" in problems_of(configurations, Grid("g.yaml", {}, {}), tmp_path, {})[0]


def test_the_shipped_grid_is_valid_and_compares_objectives_with_the_same_weights(
    tmp_path: Path, tiny_pairs: Path
) -> None:
    configs = configurations(read_grid(ROOT / "ablation.yaml"), tmp_path, {"dataset_folder": tiny_pairs})
    assert {"balanced", "time", "spectral", "perceptual"} <= configs.keys()
    one, other = configs["distances"], configs["distances_energy"]
    assert one.objective.weights == other.objective.weights
    assert (one.objective.kind, other.objective.kind) == ("regression", "energy")
    for config in configs.values():  # what attracts but cannot repel is not in an energy distance
        if config.objective.kind == "energy":
            assert all(losses.REGISTRY[name].distance for name, weight in config.objective.weights.items() if weight)


def test_runs_started_with_other_settings_are_refused_with_the_differences(tmp_path: Path, tiny_pairs: Path) -> None:
    grid = Grid("g", {"codec": "starter"}, {"a": {"lr": 1e-3}, "b": {"lr": 1e-3}, "new": {}})
    before = configurations(grid, tmp_path, {"dataset_folder": tiny_pairs, "experiment": "x"})
    for name in ("a", "b"):
        before[name].run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        (before[name].run.checkpoint_dir / "config.json").write_text(json.dumps(before[name].to_dict()))
    # Neither another experiment nor another spelling of the same folder is a different setting.
    moved = tiny_pairs / ".." / tiny_pairs.name
    same = configurations(grid, tmp_path, {"dataset_folder": moved, "experiment": "y"})
    assert [run.name for run in open_runs(same)] == ["a", "b", "new"]

    other = Grid("g", {"codec": "starter"}, {"a": {"lr": 1e-2, "patience": 3}, "b": {"lr": 1e-3}, "new": {}})
    (line,) = problems_of(open_runs, configurations(other, tmp_path, {"dataset_folder": tiny_pairs}))
    assert line.startswith("a: was started with other settings: --lr 0.001 is now 0.01, --patience not given is now 3;")
    assert str(tmp_path / "a") in line


def test_a_broken_state_is_reported_with_its_folder(tmp_path: Path, tiny_pairs: Path) -> None:
    configs = configurations(Grid("g", {}, {"a": {}}), tmp_path, {"dataset_folder": tiny_pairs})
    (tmp_path / "a" / "run.json").write_text("{")
    (line,) = problems_of(open_runs, configs)
    assert str(tmp_path / "a") in line and "move it away" in line


def test_differences_leave_out_the_flags_that_the_ablation_sets() -> None:
    before = TrainConfig.from_flags(run_name="a", mlflow_uri="x", resume="auto", unity_test=True)
    after = TrainConfig.from_flags(run_name="b", mlflow_uri="y", checkpoint_dir=Path("elsewhere"))
    assert differences(before, after) == ["--unity_test true is now false"]


@pytest.mark.slow
def test_a_signal_stops_all_children_and_no_further_one_starts(tmp_path: Path) -> None:
    program = f"""
import sys, threading
from pathlib import Path
from encore.ablation.runner import ChildProcesses
folder = Path({str(tmp_path)!r})
child = (
    "import signal, sys\\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\\n"
    "print('up', flush=True)\\n"
    "signal.pause()\\n"
)
children, found = ChildProcesses(), []
def work(name):
    found.append(children.run([sys.executable, "-c", child], folder / name, {{}}))
with children:
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(found, children.run(["no", "such"], folder / "c", {{}}), children.stopped_by)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    wait = threading.Event()
    for _ in range(2000):
        if all((tmp_path / name).is_file() and (tmp_path / name).read_text() == "up\n" for name in "ab"):
            break
        wait.wait(0.01)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=60)[0].strip() == "[143, 143] 130 2"
    assert [(tmp_path / name).read_text() for name in "ab"] == ["up\nsaved\n"] * 2


def test_a_server_that_cannot_be_reached_is_reported() -> None:
    (line,) = problems_of(NestedRuns, "http://127.0.0.1:9", "x")
    assert line.startswith("--mlflow_uri http://127.0.0.1:9: ")


def test_a_failure_is_described_by_the_last_error_or_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, reason in [("", "no output"), ("a\nb\n\n", "b"), ("error: x\nerror: y\nafter", "y")]:
        log.write_text(text)
        assert last_error(log) == reason
    assert [duration(seconds) for seconds in (0.4, 61, 3600 + 125)] == ["0:00", "1:01", "1:02:05"]


SPECS = [
    MetricSpec("score", "score", "First", "low", "low"),
    MetricSpec("tempo", "tempo", "Second", NASTY, None),
    MetricSpec("gain", "gain", "First", "high", "high"),
    MetricSpec("level_db", "level_db", "Second", "zero", "zero"),
]


def evaluation(score: float, gain: float | None, level: float) -> Results:
    def value(number: float | None) -> Interval:
        return Interval(math.nan if number is None else number, None, None)

    model = {"score": Interval(score, score - 0.1, score + 0.1), "gain": value(gain)}
    model |= {"level_db": Interval(level, level - 0.1, level + 0.1), "tempo": value(120.0)}
    baseline = {"score": value(0.5), "level_db": value(0.0)}
    return Results({}, 1, 2, 3.0, SPECS, {"model": model, "replay": baseline}, warnings=["few pairs"])


@pytest.fixture
def comparison() -> Any:
    evaluations = {"quiet": evaluation(2.0, 3.0, -8.0), "loud": evaluation(3.0, 4.0, 1.0)}
    evaluations["odd"] = evaluation(4.0, None, -1.0)
    seconds = {"quiet": 10.0, "broken": 1.0, "loud": 20.0, "odd": 30.0}
    return compare(evaluations, seconds, {"broken": f"training ended: [b]{NASTY}[/b]"})


def test_the_best_run_by_each_metric(comparison: Any) -> None:
    assert [(m.name, m.group) for m in comparison.metrics] == [
        *(("score", "First"), ("gain", "First"), ("tempo", "Second"), ("level_db", "Second")),
        ("training_seconds", "Training"),
    ]
    best = {metric.name: comparison.best(metric) for metric in comparison.metrics}
    # The replay scores better, but is no run.
    assert best == {
        "score": {"quiet"},
        "gain": set(),  # has no intervals
        "tempo": set(),
        "level_db": set(),  # loud and odd are equally far from 0
        "training_seconds": set(),
    }
    alone = compare({"only": evaluation(1.0, 1.0, 0.0)}, {"only": 1.0}, {})
    assert not any(alone.best(metric) for metric in alone.metrics)


@pytest.mark.parametrize("width", [44, 120])
def test_the_table_in_the_terminal_has_every_value_at_any_width(comparison: Any, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    table, _, failure = text.rpartition("broken: ")
    assert failure.strip() == f"training ended: [b]{NASTY}[/b]\nwarning: few pairs"
    rows = [line for line in table.splitlines() if line.strip().startswith("score ↓")]
    assert " ".join(" ".join(rows).replace("score ↓", "").split()) == "★ 2.00 – 3.00 4.00 0.500"
    assert format_value(-1.0) in table and table.count("★") == 1 and "✗ failed" in table
    assert "…" not in table


@pytest.mark.slow
def test_the_page_has_the_audio_samples_of_each_pair_and_one_table(comparison: Any, tmp_path: Path) -> None:
    tone = torch.sin(torch.arange(SAMPLE_RATE / 4) * 0.1)[None] * 0.5
    groups = [
        SampleGroup(title, [AudioSample(name, NASTY, tone) for name in ("Input and truth", "quiet", "loud")])
        for title in (NASTY, "pair_0001")
    ]
    path = tmp_path / "index.html"
    write_page(comparison, groups, SAMPLE_RATE, {"quiet": NASTY}, {"Data": NASTY}, path)
    page = Page(path)
    assert len(page.audio) == len(page.images) == 6 and not page.elsewhere
    titles = [row[2] for row in page.rows if row[:1] == ["System"]]
    assert titles == ["score", "gain", "tempo", "level_db", "training_seconds"]
    assert page.rows[1:4] == [["quiet", "", "★ 2.0 "], ["loud", "", "3.0 "], ["odd", "", "4.00 "]]
    assert "★ 2.0 [1.9, 2.1]" in page.text
    assert f"broken: training ended: [b]{NASTY}[/b]" in page.text
    assert page.text.count("few pairs") == 1
    assert "<script>alert" not in path.read_text()


def test_a_comparison_in_which_every_run_failed_still_has_a_page(tmp_path: Path) -> None:
    nothing = compare({}, {"a": 0.0}, {"a": "it broke"})
    write_page(nothing, [], 1, {"a": "x"}, {}, tmp_path / "index.html")
    assert "it broke" in Page(tmp_path / "index.html").text
    print_comparison(nothing, Console(file=io.StringIO()))
