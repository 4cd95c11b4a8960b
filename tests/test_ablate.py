"""Ablations through the entry point: real trainings and evaluations, nested, resumed, stopped and failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

import losses
from encore.ablation import runner
from encore.ablation.plan import computable_losses, runs_of_each_loss
from encore.ablation.runner import EVALUATE, TRAIN, ChildProcesses
from encore.config.components import WEIGHT
from encore.config.schema import TrainConfig
from tests.conftest import ONE_RANK, ROOT, Command, Forks
from tests.test_page import Page

COMMON = {"codec": "starter", "batch_size": 4, "num_workers": 0, "warmup_steps": 1, "lr": 1e-2, "decode_seconds": 0.5}
COMMON |= {"d_model": 32, "nhead": 2, "num_layers": 1, "max_steps": 2, "metrics": "rms_target"}
RUNS: dict[str, Any] = {
    "mean": {"objective": "regression", "loss_weight_target": 1},
    "energy": {"loss_weight_log_spectrogram": 0.5},
}
EVALUATION = ("--items", 2, "--candidates", 2, "--critic", "false")


def grid(folder: Path, common: dict[str, Any], runs: dict[str, Any]) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"common": common, "runs": runs}, sort_keys=False))
    return path


def experiment(store: str, name: str) -> dict[str, Any]:
    """The runs of an experiment, by name."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


class ForkedProcesses(ChildProcesses):
    """Runs trainings, without a launcher, and evaluations in forks."""

    forks: Forks

    def run(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> int:
        script = {TRAIN: "train_worker.py", EVALUATE: "evaluate.py"}[str(command[2])]
        done = self.forks(script, *command[3:], cwd=Path.cwd(), env={**ONE_RANK, **env})
        log.write_text(done.stdout + done.stderr)
        return done.returncode


@pytest.fixture(scope="module")
def ablated(
    tmp_path_factory: pytest.TempPathFactory, call_command: Command, forks: Forks, tiny_pairs: Path, store: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the output of an ablation of two runs that succeed, at the same time, and one that fails."""
    folder = tmp_path_factory.mktemp("ablated")
    broken = {"objective": "regression", "loss_weight_sum_and_difference_stft": 1}  # of stereo, and the codec is mono
    path = grid(folder, COMMON, {**RUNS, "broken": broken})
    flags = ("--dataset_folder", tiny_pairs, "--mlflow_uri", store, "--experiment", "ablated", "--parallel", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForkedProcesses, "forks", forks, raising=False)
        patch.setattr(runner, "ChildProcesses", ForkedProcesses)
        return folder, call_command("ablate.py", "--grid", path, *flags, *EVALUATION, cwd=folder)


@pytest.mark.slow
def test_runs_are_trained_evaluated_and_compared(ablated: Any) -> None:
    folder, result = ablated
    assert result.returncode == 1, result.stderr  # because one of the runs failed
    output = folder / "ablation"
    found = json.loads((output / "ablation.json").read_text())
    assert list(found["runs"]) == ["mean", "energy", "broken"]
    for name in RUNS:
        run = found["runs"][name]
        assert run["failure"] is None and run["settings"]["max_steps"] == 2
        # Every run is evaluated on the losses of all runs.
        assert {"mean_rms", "mean_log_spectrogram"} <= run["measures"].keys()
    assert found["runs"]["mean"]["settings"]["objective"] == "regression"
    lowest = min(RUNS, key=lambda name: found["runs"][name]["measures"]["mean_rms"]["value"])
    assert set(found["best"]["mean_rms"]) <= {lowest}  # none if intervals overlap
    assert "replay" in found["baselines"]
    page = Page(output / "index.html")
    assert len(page.audio) == 3 * (1 + len(RUNS)) and not page.elsewhere
    assert ["System", "Plot", "mean_rms"] in page.rows
    assert page.text.index("Gain over replaying the input") < page.text.index("Listen")
    assert "mean_rms" in result.stdout and "Gain over replaying the input" in " ".join(result.stdout.split())


@pytest.mark.slow
def test_a_failed_run_is_in_the_table_with_its_reason_and_log(ablated: Any) -> None:
    folder, result = ablated
    found = json.loads((folder / "ablation" / "ablation.json").read_text())["runs"]["broken"]
    assert "sum_and_difference_stft" in found["failure"] and found["measures"] == {}
    assert found["failure"] in result.stdout and "✗ failed" in result.stdout
    assert found["failure"] in Page(folder / "ablation" / "index.html").text
    assert "sum_and_difference_stft" in (folder / "ablation" / "broken" / "training.log").read_text()


@pytest.mark.slow
def test_runs_are_nested_in_mlflow(ablated: Any, store: str) -> None:
    runs = experiment(store, "ablated")
    assert runs.keys() == {"ablation", "mean", "energy", "broken"}
    parent = runs["ablation"]
    assert parent.info.status == runs["broken"].info.status == "FAILED"
    stored = {artifact.path for artifact in MlflowClient(store).list_artifacts(parent.info.run_id)}
    assert stored == {"index.html", "ablation.json"}
    for name in RUNS:
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.params["max_steps"] == "2"
        assert any(metric.startswith("val_") for metric in runs[name].data.metrics)
        assert any(metric.startswith("eval_model_") for metric in runs[name].data.metrics)


@pytest.mark.slow
def test_a_stopped_ablation_saves_its_state(
    tmp_path: Path, tiny_pairs: Path, store: str, call_command: Command
) -> None:
    """The command runs within this process; the training and its launcher are real processes."""
    common = {**COMMON, "max_steps": 100000, "epochs": 100000}
    path = grid(tmp_path, common, {"long": {"objective": "regression"}, "never": {}})
    flags = ("--dataset_folder", tiny_pairs, "--mlflow_uri", store, "--experiment", "stopped", *EVALUATION)
    checkpoint, ended = tmp_path / "ablation" / "long" / "checkpoints" / "last.pt", threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.05):
            if checkpoint.is_file():
                os.kill(os.getpid(), signal.SIGINT)
                return

    (thread := threading.Thread(target=interrupt)).start()
    result = call_command("ablate.py", "--grid", path, *flags, cwd=tmp_path)
    ended.set()
    thread.join()
    assert result.returncode == 130, result.stderr
    assert "stopped by SIGINT; the same command resumes the ablation" in result.stderr
    assert "long: training stopped" in result.stdout and "never" not in result.stdout
    log = (tmp_path / "ablation" / "long" / "training.log").read_text()
    assert "--resume auto" in log
    runs = experiment(store, "stopped")
    assert runs["ablation"].info.status == runs["long"].info.status == "KILLED"
    assert runs["never"].info.status == "SCHEDULED"


@pytest.mark.slow
def test_finished_runs_are_not_repeated(ablated: Any, tiny_pairs: Path, store: str, call_command: Command) -> None:
    folder, _ = ablated
    before = {path: path.stat().st_mtime_ns for path in folder.glob("ablation/*/checkpoints/*.pt")}
    assert len(before) == 4
    flags = ("--dataset_folder", tiny_pairs, "--mlflow_uri", store, "--experiment", "ablated", *EVALUATION)
    result = call_command("ablate.py", "--grid", grid(folder, COMMON, RUNS), *flags, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "starts" not in result.stdout and "mean_rms" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    runs = experiment(store, "ablated")
    assert len(runs) == 4 and runs["ablation"].info.status == "FINISHED"

    changed = call_command("ablate.py", "--grid", grid(folder, {**COMMON, "lr": 0.5}, RUNS), *flags, cwd=folder)
    assert changed.returncode == 2 and changed.stderr.count("--lr 0.01 is now 0.5") == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--grid: missing"),
        (("--each_loss", "false"), "--grid: missing"),
        (("--each_loss", "--output", "each_loss"), "--each_loss: --dataset_folder: missing"),
        (("--grid", "nowhere.yaml"), "--grid nowhere.yaml: cannot be read"),
        (("--grid", ROOT / "ablation.yaml"), "--dataset_folder pairs: no such folder"),
        (("--grid", ROOT / "ablation.yaml", "--parallel", 0), "--parallel 0: must be"),
    ],
)
def test_bad_flags_are_refused(flags: tuple[object, ...], expected: str, call_command: Command, tmp_path: Path) -> None:
    result = call_command("ablate.py", *flags, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count(expected) == 1


def test_each_loss_is_a_run_of_that_loss_alone(tiny_pairs: Path) -> None:
    common: dict[str, Any] = {
        "codec": "starter",
        "dataset_folder": tiny_pairs,
        "loss_weight_mel": 1.0,
        "decode_seconds": 0.25,
    }
    lines: list[str] = []
    here = computable_losses(TrainConfig.from_flags(**common), losses.REGISTRY, lines.append)
    left_out = {line.split()[1].rstrip(":") for line in lines}
    assert left_out == {"sum_and_difference_stft", "pesq"}  # which need two channels, and a longer crop
    assert {*here, *left_out} == losses.REGISTRY.keys()
    for name, flags in runs_of_each_loss(here).items():
        config = TrainConfig.from_flags(**{**common, **flags})
        on = {loss: weight for loss, weight in config.objective.weights.items() if weight}
        assert on == {"rms_target" if name == "rms" else name: 1.0}
        assert set(flags) == {flag for flag in config.to_dict() if flag.startswith(WEIGHT)}
