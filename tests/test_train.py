"""Training through its door: what a user gets from real runs on tiny data."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from encore.config.schema import TrainConfig
from encore.models.generation import GenerationConfig
from encore.models.loading import load_generator, read
from tests.conftest import ENVIRONMENT, VAL_PAIRS, Door, command

COMPONENTS = ("rms_input", "rms_target", "spectral", "mel")


def only_run(store: str, experiment: str) -> Run:
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


def history(store: str, run: Run, name: str) -> list[float]:
    metrics = MlflowClient(store).get_metric_history(run.info.run_id, name)
    return [metric.value for metric in sorted(metrics, key=lambda metric: metric.step)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = read(path)
    return {**content["model"], **{f"ema.{name}": value for name, value in content["ema"].items()}}


def test_loss_falls_and_the_log_has_the_promised_form(trained_regression: Path) -> None:
    log = (trained_regression / "checkpoints" / "train.log").read_text()
    number = r"\d+\.\d{4}"
    epoch = re.compile(
        rf"Epoch (\d)/6:\n  Train Loss: ({number}) \(rms_in: off, rms_tgt: {number}, spec: {number}, mel: {number}\)\n"
        rf"  Val Loss:   ({number}) \(rms_in: {number}, rms_tgt: {number}, spec: {number}, mel: {number}\)\n"
        r"  LR: \d\.\d\de-\d\d\n"
    )
    found = epoch.findall(log)
    assert [number for number, _, _ in found] == list("123456")
    assert float(found[-1][2]) < 0.95 * float(found[0][2])
    assert epoch.findall((trained_regression / "stdout.txt").read_text()) == found


def test_the_log_of_energy_names_the_replay_and_what_only_attracts(trained: Path) -> None:
    log = (trained / "checkpoints" / "train.log").read_text()
    assert re.search(r"^Replay baseline: \d+\.\d{4} \(rms_in: .*, rms_tgt: .*, spec: .*, mel: .*\)$", log, re.MULTILINE)
    assert "Only attracting samples, as no distance between two of them: spectral\n" in log
    assert log.count("  Val Loss:   ") == 6


@pytest.mark.parametrize("experiment", ["trained", "regression"])
def test_mlflow_holds_parameters_components_baselines_and_artifacts(
    experiment: str, request: pytest.FixtureRequest, store: str
) -> None:
    folder = request.getfixturevalue("trained" if experiment == "trained" else "trained_regression")
    energy = experiment == "trained"
    client, run = MlflowClient(store), only_run(store, experiment)
    assert run.info.status == "FINISHED"
    config = TrainConfig.from_dict(json.loads((folder / "checkpoints" / "config.json").read_text()))
    assert config.objective.kind == ("energy" if energy else "regression")
    assert run.data.params == {name: str(value) for name, value in config.to_dict().items()}
    names = ["train_loss", "val_loss", "learning_rate", "throughput", "grad_norm", *(f"val_{c}" for c in COMPONENTS)]
    parts = [f"{c}_{part}" for c in ("rms_target", "mel") for part in ("attraction", "repulsion")]
    for name in names + [f"{kind}_{part}" for kind in ("train", "val") for part in parts if energy]:
        assert len(history(store, run, name)) == 6, name
    assert "train_rms_input" not in run.data.metrics  # its weight is 0: not computed in training
    assert energy == any("repulsion" in name for name in run.data.metrics)
    assert not any("spectral_attraction" in name or "rms_input_attraction" in name for name in run.data.metrics)
    shares = [history(store, run, f"grad_share_{c}") for c in COMPONENTS if c != "rms_input"]
    assert [sum(epoch) for epoch in zip(*shares, strict=True)] == pytest.approx([1.0] * 6, abs=1e-6)
    assert all(0 < share < 1 for epochs in shares for share in epochs)
    val = {c: history(store, run, f"val_{c}")[-1] for c in (*COMPONENTS, *(parts if energy else ()))}
    total = 0.5 * val["rms_target"] + 0.25 * val["spectral"] + 0.25 * val["mel"]
    assert history(store, run, "val_loss")[-1] == pytest.approx(total, rel=1e-5)
    if energy:
        assert val["mel"] == pytest.approx(val["mel_attraction"] - val["mel_repulsion"] / 2, rel=1e-5)
        assert val["mel_repulsion"] > 0 and run.data.metrics["replay_mel_repulsion"] > 0
    assert run.data.metrics["copy_rms_input"] == 0
    assert run.data.metrics["floor_loss"] > 0
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "checkpoints", "examples"} <= artifacts
    assert [item.path for item in client.list_artifacts(run.info.run_id, "checkpoints")] == [
        "checkpoints/best_model.pt"
    ]
    example = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "examples/epoch_0006")}
    assert example == {"input.wav", "target.wav", "prediction.wav", "spectrograms.png"}


def test_validation_figures_are_those_asked_for_and_do_not_depend_on_ranks_or_batches(
    tmp_path: Path, door: Door, train_flags: list[object], store: str
) -> None:
    """5 validation pairs on 1, 2 and 3 ranks, of which 2 and 3 do not divide them; --metrics beside the trained.

    What is drawn for a pair is the same wherever it is validated, and beside whatever.
    """
    assert VAL_PAIRS % 2 and VAL_PAIRS % 3
    figures = {}
    for ranks, size in ((1, 4), (2, 1), (3, 2)):
        (tmp_path / str(ranks)).mkdir()
        # A learning rate that changes nothing: different numbers of ranks take different steps.
        flags = (*train_flags, "--max_steps", 1, "--batch_size", size, "--lr", 1e-12, "--loss_weight_mel", 1)
        flags = (*flags, "--loss_weight_target", 1, "--metrics", "rms_input,snr", "--prior", "none")
        flags = (*flags, "--world_size", ranks, "--experiment", f"{ranks} ranks")
        result = door("train_ddp.py", *flags, cwd=tmp_path / str(ranks))
        assert result.returncode == 0, result.stderr
        metrics = only_run(store, f"{ranks} ranks").data.metrics
        kinds = ("val_", "floor_", "copy_", "replay_")
        figures[ranks] = {name: v for name, v in metrics.items() if name.startswith(kinds)}
    names = ("loss", "rms_target", "mel", "rms_input", "snr", "snr_db")
    parts = {f"{name}_{part}" for name in ("rms_target", "mel") for part in ("attraction", "repulsion")}
    expected = {f"{kind}_{name}" for kind in ("val", "floor", "copy", "replay") for name in names}
    assert figures[1].keys() == expected | {f"{kind}_{part}" for kind in ("val", "replay") for part in parts}
    assert figures[1]["val_snr_db"] == -figures[1]["val_snr"]
    assert figures[2] == pytest.approx(figures[1], rel=1e-4)
    assert figures[3] == pytest.approx(figures[1], rel=1e-4)


@pytest.mark.parametrize("objective", ["energy", "regression"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    objective: str,
    trained_flags: list[object],
    tmp_path: Path,
    door: Door,
    store: str,
    request: pytest.FixtureRequest,
) -> None:
    """SIGTERM after epoch 3 of 6, then --resume auto: the same weights bit for bit, in the same MLflow run."""
    trained = request.getfixturevalue("trained" if objective == "energy" else "trained_regression")
    arguments = [*trained_flags, "--experiment", f"resumed {objective}"]
    if objective == "regression":
        arguments += ["--objective", "regression", "--rollout_blocks", 0]
    process = subprocess.Popen(
        command("train_ddp.py", *arguments), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch 3/6"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    stopped = read(tmp_path / "checkpoints" / "last.pt")["progress"]
    assert 3 <= stopped["epoch"] < 6 and stopped["epoch_step"] > 0  # in the middle of an epoch
    result = door("train_ddp.py", *arguments, "--resume", "auto", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours, uninterrupted = (weights(folder / "checkpoints" / "last.pt") for folder in (tmp_path, trained))
    assert ours.keys() == uninterrupted.keys()
    assert all(torch.equal(ours[name], uninterrupted[name]) for name in ours)
    trained_as = {"energy": "trained", "regression": "regression"}
    resumed, reference = only_run(store, f"resumed {objective}"), only_run(store, trained_as[objective])
    for name in ("train_loss", "val_loss"):
        assert history(store, resumed, name) == pytest.approx(history(store, reference, name), rel=1e-6)


def test_an_adversary_and_the_balancer_train_along_and_go_on_with_the_run(
    tmp_path: Path, door: Door, train_flags: list[object], store: str
) -> None:
    flags = (*train_flags, "--loss_weight_target", 1, "--loss_weight_gan", 1, "--loss_weight_feature_matching", 2)
    flags = (*flags, "--batch_size", 1, "--grad_accumulation", 2, "--world_size", 2, "--scheduler", "constant")
    flags = (*flags, "--loss_balancer", "true", "--disc_start_step", 1, "--experiment", "adversary")
    states = []
    for epochs in (1, 2):
        result = door("train_ddp.py", *flags, "--epochs", epochs, "--resume", "auto", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        states.append(read(tmp_path / "checkpoints" / "last.pt")["objective"])
    before, after = states
    assert [state["adversary"]["_extra_state"]["steps"] for state in states] == [2, 4]
    # Two batches a step; the adversary's terms have no gradient in the first step.
    steps = [
        {name: average["steps"] for name, average in state["combiner"]["_extra_state"].items()} for state in states
    ]
    assert steps[0] == {"rms_target": 4, "gan": 2, "feature_matching": 2}
    assert steps[1] == {"rms_target": 8, "gan": 6, "feature_matching": 6}
    judge = [name for name in before["adversary"] if name.startswith("discriminator.")]
    assert any(not torch.equal(before["adversary"][name], after["adversary"][name]) for name in judge)
    run = only_run(store, "adversary")
    for name in ("train_gan", "train_feature_matching", "train_disc_loss"):
        assert len(history(store, run, name)) == 2
    shares = [history(store, run, f"grad_share_{name}")[-1] for name in ("rms_target", "gan", "feature_matching")]
    assert shares == pytest.approx([0.25, 0.25, 0.5], rel=0.5) and sum(shares) == pytest.approx(1)
    assert history(store, run, "val_loss") == pytest.approx(history(store, run, "val_rms_target"), rel=1e-6)


def test_whole_segments_without_a_prior_and_more_samples(
    tmp_path: Path, door: Door, train_flags: list[object], store: str
) -> None:
    """Crops of the whole, and the loss that energy has by default."""
    flags = (*train_flags, "--generation", "whole", "--prior", "none", "--samples", 3, "--max_steps", 3)
    result = door("train_ddp.py", *flags, "--experiment", "whole", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = only_run(store, "whole").data.metrics
    attraction, repulsion = (metrics[f"train_spectral_energy_{part}"] for part in ("attraction", "repulsion"))
    assert metrics["train_loss"] == pytest.approx(attraction - repulsion / 2, rel=1e-5) and repulsion > 0
    generator = load_generator(tmp_path / "checkpoints" / "last.pt", torch.device("cpu"))
    assert generator.generation == GenerationConfig(75, generative=True, prior="none")


def test_unity_reaches_the_codecs_floor(tmp_path: Path, door: Door, train_flags: list[object], store: str) -> None:
    flags = (*train_flags, "--unity_test", "true", "--epochs", 30, "--batch_size", 1, "--dropout", 0)
    result = door("train_ddp.py", *flags, "--save_every", 30, "--experiment", "unity", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(store, "unity")
    rms, floor = history(store, run, "val_rms_input"), run.data.metrics["floor_rms_input"]
    assert run.data.metrics["floor_rms_target"] == floor
    assert rms[-1] < 1.1 * floor  # below it, even: what a model can do about the codec's errors
    assert rms[0] > 2 * rms[-1]


def test_values_that_are_not_finite_are_skipped_and_end_the_run_with_the_last_checkpoint_intact(
    trained: Path, tmp_path: Path, door: Door, train_flags: list[object]
) -> None:
    flags = (*train_flags, "--epochs", 200, "--world_size", 2, "--clip_norm", 1e30, "--lr", 1e30)
    result = door("train_ddp.py", *flags, "--resume", trained / "checkpoints" / "last.pt", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stdout.count("skipped: its loss or gradient is not finite") == 10
    assert "not finite for 10 steps in a row" in result.stderr and "--lr" in result.stderr
    assert "Traceback" not in result.stderr
    for checkpoint in (tmp_path / "checkpoints").glob("*.pt"):
        assert all(value.isfinite().all() for value in weights(checkpoint).values()), checkpoint
    assert all(value.isfinite().all() for value in weights(trained / "checkpoints" / "last.pt").values())


def test_a_killed_rank_is_restarted_from_the_last_checkpoint(tmp_path: Path, train_flags: list[object]) -> None:
    arguments = [*train_flags, "--epochs", 12, "--world_size", 2, "--max_restarts", 1]
    process = subprocess.Popen(
        command("train_ddp.py", *arguments), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Epoch 4/12") and sum("Epoch 4/12" in seen for seen in lines) == 1:
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            workers[-1].kill()
    assert process.wait(timeout=120) == 0
    assert any(line.startswith("resumed from") for line in lines)
    assert read(tmp_path / "checkpoints" / "last.pt")["progress"]["epoch"] == 12
