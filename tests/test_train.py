"""Training as a user gets it: real runs on tiny data."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from encore.config.schema import TrainConfig
from encore.models.generation import GenerationConfig
from encore.models.loading import load_generator, read
from encore.tracking import MlflowTracker, register_tracker
from tests.conftest import VAL_PAIRS, Command, Forks, write_pairs
from tests.json_tracker import FLAGS as JSON
from tests.json_tracker import SIGNAL, tracked
from tests.test_tracking import run_of

COMPONENTS = ("rms_input", "rms_target", "spectral", "mel")


def history(store: str, run: Run, name: str) -> list[float]:
    metrics = MlflowClient(store).get_metric_history(run.info.run_id, name)
    return [metric.value for metric in sorted(metrics, key=lambda metric: metric.step)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = read(path)
    return {**content["model"], **{f"ema.{name}": value for name, value in content["ema"].items()}}


@pytest.mark.slow
def test_loss_falls_and_the_log_has_the_promised_form(trained_regression: Path) -> None:
    log = (trained_regression / "checkpoints" / "train.log").read_text()
    number = r"\d+\.\d{4}"
    epoch = re.compile(
        rf"Epoch (\d)/4:\n  Train Loss: ({number}) \(rms_in: off, rms_tgt: {number}, spec: {number}, mel: {number}\)\n"
        rf"  Val Loss:   ({number}) \(rms_in: {number}, rms_tgt: {number}, spec: {number}, mel: {number}\)\n"
        r"  LR: \d\.\d\de-\d\d\n"
    )
    found = epoch.findall(log)
    assert [number for number, _, _ in found] == list("1234")
    assert float(found[-1][2]) < 0.99 * float(found[0][2])
    assert epoch.findall((trained_regression / "stdout.txt").read_text()) == found


def test_the_log_of_energy_has_the_replay_baseline_and_what_has_no_repulsion_term(trained: Path) -> None:
    log = (trained / "checkpoints" / "train.log").read_text()
    assert re.search(r"^Replay baseline: \d+\.\d{4} \(rms_in: .*, rms_tgt: .*, spec: .*, mel: .*\)$", log, re.MULTILINE)
    assert re.search(r"^Prior alone: +\d+\.\d{4} \(rms_in: .*, mel: .*\)$", log, re.MULTILINE)
    assert "Without a repulsion term, as they are no distances: spectral\n" in log
    assert log.count("  Val Loss:   ") == 4
    assert re.search(
        r"^best validation loss .*\n.* (its|the) prior alone.*\n(.*\n)?next: python evaluate.py --ch", log, re.M
    )


@pytest.mark.slow
def test_the_best_model_is_never_worse_than_the_prior(
    train_flags: list[object], tmp_path: Path, call_command: Command
) -> None:
    """A run that makes things worse keeps the untrained model, says so, and runs out of patience."""
    flags = (*train_flags, *JSON, "--lr", 1.0, "--ema_decay", 0, "--epochs", 5, "--patience", 2, "--warmup_steps", 0)
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics, folder = tracked(tmp_path), tmp_path / "checkpoints"
    (prior,) = metrics["prior_loss"]
    assert len(metrics["val_loss"]) == 3 and metrics["val_loss"][0] == prior
    assert prior < min(metrics["val_loss"][1:])
    best, last = read(folder / "best_model.pt"), read(folder / "last.pt")
    assert (best["progress"]["step"], best["progress"]["best"]) == (0, prior)
    assert (last["progress"]["waited"], last["progress"]["best"]) == (2, prior)
    log = (folder / "train.log").read_text()
    assert log.count(f"  Above the prior alone, {prior:.4f}: worse than without training so far\n") == 2
    assert f"best validation loss {prior:.4f}, in checkpoints/best_model.pt; it is the prior's" in log
    again = call_command("train_worker.py", *flags, "--resume", "auto", "--patience", 3, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read(folder / "last.pt")["progress"]["waited"] == 3
    assert read(folder / "best_model.pt")["progress"]["step"] == 0


@pytest.mark.parametrize("experiment", ["trained", pytest.param("regression", marks=pytest.mark.slow)])
def test_mlflow_holds_parameters_components_baselines_and_artifacts(
    experiment: str, request: pytest.FixtureRequest, store: str
) -> None:
    folder = request.getfixturevalue("trained" if experiment == "trained" else "trained_regression")
    energy = experiment == "trained"
    client, run = MlflowClient(store), run_of(store, experiment)
    assert run.info.status == "FINISHED"
    config = TrainConfig.from_dict(json.loads((folder / "checkpoints" / "config.json").read_text()))
    assert config.objective.kind == ("energy" if energy else "regression")
    assert run.data.params == {name: str(value) for name, value in config.to_dict().items()}
    names = ["train_loss", "val_loss", "learning_rate", "throughput", "grad_norm", *(f"val_{c}" for c in COMPONENTS)]
    parts = [f"{c}_{part}" for c in ("rms_target", "mel") for part in ("attraction", "repulsion")]
    for name in names + [f"{kind}_{part}" for kind in ("train", "val") for part in parts if energy]:
        # Before training, an energy run's model gives the prior alone, which is measured.
        assert len(history(store, run, name)) == 4 + (energy and name.startswith("val_")), name
    assert "train_rms_input" not in run.data.metrics  # its weight is 0: not computed in training
    assert energy == any("repulsion" in name for name in run.data.metrics)
    assert not any("spectral_attraction" in name or "rms_input_attraction" in name for name in run.data.metrics)
    shares = [history(store, run, f"grad_share_{c}") for c in COMPONENTS if c != "rms_input"]
    assert [sum(epoch) for epoch in zip(*shares, strict=True)] == pytest.approx([1.0] * 4, abs=1e-6)
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
    example = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "examples/epoch_0004")}
    assert example == {"input.wav", "target.wav", "prediction.wav", "spectrograms.png"}


@pytest.mark.slow
def test_validation_does_not_depend_on_ranks_or_batches(
    tmp_path: Path, call_command: Command, forks: Forks, train_flags: list[object]
) -> None:
    """5 validation pairs, on one rank in batches of 4 and 1, and on 3 ranks in batches of 1.

    What is drawn for a pair is the same wherever it is validated and whatever else is in its batch.
    """
    assert VAL_PAIRS % 3 == 2 and VAL_PAIRS % 4 == 1
    # A learning rate that changes nothing, as other numbers of ranks take other steps.
    flags = (*train_flags, *JSON, "--max_steps", 1, "--lr", 1e-12, "--loss_weight_mel", 1, "--loss_weight_target", 1)
    flags = (*flags, "--metrics", "rms_input,snr", "--prior", "none")
    found = []
    for ranks, size in ((1, 4), (3, 1)):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        mine = (*flags, "--batch_size", size)
        if ranks == 1:
            results = [call_command("train_worker.py", *mine, cwd=folder)]
        else:
            results = forks.ranks(ranks, *mine, cwd=folder)
        assert not any(result.returncode for result in results), [result.stderr for result in results]
        kinds = ("val_", "floor_", "copy_", "replay_", "prior_")
        found.append({name: values[-1] for name, values in tracked(folder).items() if name.startswith(kinds)})
    one, three = found
    names = ("loss", "rms_target", "mel", "rms_input", "snr", "snr_db")
    parts = {f"{name}_{part}" for name in ("rms_target", "mel") for part in ("attraction", "repulsion")}
    expected = {f"{kind}_{name}" for kind in ("val", "floor", "copy", "replay") for name in names}
    assert one.keys() == expected | {f"{kind}_{part}" for kind in ("val", "replay") for part in parts}
    assert one["val_snr_db"] == -one["val_snr"]
    assert three == pytest.approx(one, rel=1e-4)


def equal_weights(left: Path, right: Path) -> bool:
    """Whether two checkpoints have the same weights bit for bit, averaged ones too."""
    ours, others = weights(left), weights(right)
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@register_tracker("stopping")
class StoppingTracker(MlflowTracker):
    """Logs to MLflow; after the second epoch it sends its process SIGTERM, as a scheduler might."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    trained_regression: Path, regression_flags: list[object], tmp_path: Path, call_command: Command, store: str
) -> None:
    """SIGTERM in the third of 4 epochs, then --resume auto: the same weights bit for bit, in the same MLflow run."""
    flags, last = (*regression_flags, "--experiment", "resumed"), tmp_path / "checkpoints" / "last.pt"
    stopped = call_command("train_worker.py", *flags, "--tracker", "stopping", cwd=tmp_path)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "stopped in epoch 3 after step 5; --resume auto continues from there" in stopped.stdout
    progress = read(last)["progress"]
    assert (progress["epoch"], progress["epoch_step"]) == (2, 1)  # in the middle of an epoch
    result = call_command("train_worker.py", *flags, "--resume", "auto", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"resumed from {last.relative_to(tmp_path)} at epoch 3, step 1" in result.stdout
    assert equal_weights(last, trained_regression / "checkpoints" / "last.pt")
    config = json.loads((tmp_path / "checkpoints" / "config.json").read_text())
    assert config["resume"] is None  # as `--config` it begins a new run
    resumed, uninterrupted = run_of(store, "resumed"), run_of(store, "regression")
    for name in ("train_loss", "val_loss"):
        assert history(store, resumed, name) == pytest.approx(history(store, uninterrupted, name), rel=1e-6)


@pytest.mark.slow
def test_a_signal_in_the_last_step_of_a_run_does_not_leave_out_its_validation(
    train_flags: list[object], tmp_path: Path, call_command: Command
) -> None:
    flags = (*train_flags, "--objective", "regression", "--grad_accumulation", 2, "--max_steps", 5)
    result = call_command("train_worker.py", *flags, "--tracker", "stopping", "--experiment", "last_step", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Epoch 3/\d+:\n.*\n  Val Loss: .*\n.*\n.*\nbest validation loss", result.stdout)
    assert read(tmp_path / "checkpoints" / "last.pt")["progress"]["step"] == 5


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_the_launcher_to_the_same_end(
    trained_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    flags, last = (*trained_flags, *JSON, "--batch_size", 1, "--epochs", 2), Path("checkpoints/last.pt")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    launch = (*flags, "--world_size", 1, "--max_restarts", 1)
    results = [*forks.ranks(1, *flags, cwd=undisturbed)]
    results.append(forks("train_ddp.py", *launch, cwd=killed, env={SIGNAL: "SIGKILL"}))
    assert not any(result.returncode for result in results), [result.stderr for result in results]
    assert "resumed from checkpoints/" in results[-1].stdout
    assert equal_weights(killed / last, undisturbed / last)


@pytest.mark.full
def test_two_ranks_that_are_stopped_are_resumed_to_the_same_end(
    trained_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """By SIGTERM, in the middle of an epoch."""
    flags, last = (*trained_flags, *JSON, "--batch_size", 1, "--epochs", 2), Path("checkpoints/last.pt")
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    undisturbed.mkdir()
    stopped.mkdir()
    results = [*forks.ranks(2, *flags, cwd=undisturbed)]
    ended = forks.ranks(2, *flags, cwd=stopped, env={SIGNAL: "SIGTERM"})
    assert [rank.returncode for rank in ended] == [128 + signal.SIGTERM] * 2, [rank.stderr for rank in ended]
    progress = read(stopped / last)["progress"]
    assert (progress["epoch"], progress["epoch_step"]) == (1, 1)
    results += forks.ranks(2, *flags, "--resume", "auto", cwd=stopped)
    assert not any(result.returncode for result in results), [result.stderr for result in results]
    assert equal_weights(stopped / last, undisturbed / last)


@pytest.mark.slow
def test_an_adversary_and_the_balancer_train_along_and_are_resumed_with_the_run(
    tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    flags = (*train_flags, "--loss_weight_target", 1, "--loss_weight_gan", 1, "--loss_weight_feature_matching", 2)
    flags = (*flags, "--batch_size", 2, "--grad_accumulation", 2, "--scheduler", "constant")
    flags = (*flags, *JSON, "--loss_balancer", "true", "--disc_start_step", 1, "--objective", "regression")
    flags = (*flags, "--decode_seconds", 0.2)
    states = []
    for epochs in (1, 2):
        result = call_command("train_worker.py", *flags, "--epochs", epochs, "--resume", "auto", cwd=tmp_path)
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
    trained = [name for name in before["adversary"] if name.startswith("discriminator.")]
    assert any(not torch.equal(before["adversary"][name], after["adversary"][name]) for name in trained)
    metrics = tracked(tmp_path)
    for name in ("train_gan", "train_feature_matching", "train_disc_loss"):
        assert len(metrics[name]) == 2
    shares = [metrics[f"grad_share_{name}"][-1] for name in ("rms_target", "gan", "feature_matching")]
    assert shares == pytest.approx([0.25, 0.25, 0.5], rel=0.5) and sum(shares) == pytest.approx(1)
    assert metrics["val_loss"] == pytest.approx(metrics["val_rms_target"], rel=1e-6)


@pytest.mark.slow
def test_whole_segments_without_a_prior_and_more_samples(
    tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    """Crops of the whole, and the loss that energy has by default."""
    flags = (*train_flags, "--generation", "whole", "--prior", "none", "--samples", 3, "--max_steps", 3)
    result = call_command("train_worker.py", *flags, *JSON, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = {name: values[-1] for name, values in tracked(tmp_path).items()}
    attraction, repulsion = (metrics[f"train_spectral_energy_{part}"] for part in ("attraction", "repulsion"))
    assert metrics["train_loss"] == pytest.approx(attraction - repulsion / 2, rel=1e-5) and repulsion > 0
    generator = load_generator(tmp_path / "checkpoints" / "last.pt", torch.device("cpu"))
    assert generator.generation == GenerationConfig(75, generative=True, prior="none")


@pytest.mark.slow
def test_unity_reaches_the_codecs_floor(tmp_path: Path, call_command: Command, train_flags: list[object]) -> None:
    pairs = write_pairs(tmp_path / "pairs", {"train": 8, "val": 1}, seconds=0.5)
    flags = (*train_flags, *JSON, "--dataset_folder", pairs, "--unity_test", "true", "--dropout", 0, "--batch_size", 1)
    flags = (*flags, "--epochs", 24, "--save_every", 24, "--artifact_every", 24, "--decode_seconds", 0.25, "--lr", 3e-2)
    flags = (*flags, "--metrics", "rms_input,rms_target")
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = tracked(tmp_path)
    rms, (floor,) = metrics["val_rms_input"], metrics["floor_rms_input"]
    assert metrics["floor_rms_target"] == [floor]
    assert rms[-1] < 1.1 * floor, (rms, floor)  # below it, even: what a model can do about the codec's errors
    assert rms[0] > 2 * rms[-1]
    assert re.search(r"Unity test: reached the codec's floor: \S+ against \S+, passed\.$", result.stdout, re.MULTILINE)


@pytest.mark.slow
def test_values_that_are_not_finite_are_skipped_and_end_the_run_with_the_last_checkpoint_intact(
    trained: Path, tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    flags = (*train_flags, "--tracker", "none", "--epochs", 200, "--batch_size", 1, "--clip_norm", 1e30, "--lr", 1e30)
    result = call_command("train_worker.py", *flags, "--resume", trained / "checkpoints" / "last.pt", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stdout.count("skipped: its loss or gradient is not finite") == 10
    assert "not finite for 10 steps in a row" in result.stderr and "--lr" in result.stderr
    assert "Traceback" not in result.stderr
    for checkpoint in (tmp_path / "checkpoints").glob("*.pt"):
        assert all(value.isfinite().all() for value in weights(checkpoint).values()), checkpoint
    assert all(value.isfinite().all() for value in weights(trained / "checkpoints" / "last.pt").values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_keeps_the_precision_that_was_chosen_for_it(
    precision: str, trained: Path, tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    content = read(trained / "checkpoints" / "last.pt")
    checkpoint = tmp_path / f"{precision}.pt"
    torch.save({**content, "config": {**content["config"], "precision": precision}}, checkpoint)
    flags = (*train_flags, "--tracker", "none", "--epochs", content["progress"]["epoch"] + 1, "--resume", checkpoint)
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read(tmp_path / "checkpoints" / "last.pt")["config"]["precision"] == precision
