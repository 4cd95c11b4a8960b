"""Evaluating a model of a real training run through the entry point."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

import losses
from encore.audio import read_audio
from encore.commands import evaluate
from encore.config import cli
from encore.errors import EncoreError
from encore.evaluation.baselines import BASELINES
from encore.evaluation.config import EvalConfig
from encore.evaluation.metrics import critic
from encore.evaluation.warnings import warnings_of
from encore.inference.model_card import model_card
from encore.models.loading import load_generator
from tests.conftest import SAMPLE_RATE, VAL_PAIRS, Command, write_pairs
from tests.test_extending import example
from tests.test_page import Page

DISTANCES = ("spectral_energy", "audible_energy", "mel", "floored_mel", "variogram", "codec")
CPU = torch.device("cpu")
FAST = ("--candidates", 2, "--long_seconds", 3, "--long_items", 2, "--memorisation", 4)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: Path) -> Path:
    """The tiny pairs as if from two recordings: two validation pairs from one and three from the other."""
    folder = shutil.copytree(tiny_pairs, tmp_path_factory.mktemp("evaluated") / "pairs")
    rows = [f"pair_{n:04d},{'a' if n < 2 else 'b'}.wav,{n},val" for n in range(VAL_PAIRS)]
    (folder / "metadata.csv").write_text("\n".join(["pair,source_file,start_second,split", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "last.pt"  # best_model.pt may be the untrained one


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, call_command: Command, checkpoint: Path, pairs: Path, store: str
) -> tuple[Path, str]:
    """The report of a run of evaluate.py, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "my_metric.py").write_text(example("A metric"))
    flags = ("--checkpoint", checkpoint, "--against", f"twin={checkpoint}", "--dataset_folder", pairs, *FAST)
    places = ("--plugins", "my_metric.py", "--mlflow_uri", store, "--output", folder / "new" / "report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(critic, "STEPS", 2)
        result = call_command("evaluate.py", *flags, *places, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "new" / "report", result.stdout


@pytest.fixture(scope="module")
def found(evaluated: tuple[Path, str]) -> dict[str, Any]:
    return dict(json.loads((evaluated[0] / "evaluation.json").read_text()))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The error lines of evaluate.py, run within this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.run(evaluate.app)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


def run_of(store: str) -> Any:
    """The MLflow run of the training."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("trained")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


@pytest.mark.slow
def test_a_model_card_shows_the_headline(evaluated: tuple[Path, str], found: dict[str, Any], checkpoint: Path) -> None:
    card = model_card(load_generator(checkpoint, CPU), evaluation=evaluated[0] / "evaluation.json")
    assert f"on {VAL_PAIRS} pairs from 2 recordings" in card
    for system in ("model", "prior", "replay"):
        values = found["headline"]["systems"][system]
        (row,) = (line for line in card.splitlines() if line.startswith(f"| {system} |"))
        skill = values["skill_floored_mel"]
        assert f"| {skill['value']:.3f} [{skill['low']:.3f}, {skill['high']:.3f}] |" in row


@pytest.mark.slow
def test_every_continuer_has_its_values(found: dict[str, Any]) -> None:
    assert list(found["systems"]) == ["model", "prior", "twin", "twin_prior", *BASELINES]
    assert (found["items"], found["candidates"], found["seconds"]) == (VAL_PAIRS, 2, 1.0)
    scores = {f"{kind}_{name}" for kind in ("energy_score", "skill") for name in DISTANCES}
    for name in ("model", "replay", "loop", "copy", "silence", "codec"):
        assert scores <= found["systems"][name].keys(), name
        assert {"kernel_distance_codec", "frechet_log_mel", "patch_distance", "best_mel"} <= found["systems"][
            name
        ].keys()
        assert {"level_db", "texture_ratio", "seam_flux", "repetition", "memorisation"} <= found["systems"][name].keys()
    assert scores.isdisjoint(found["systems"]["truth"]) and "onset_rate" in found["systems"]["truth"]
    assert "kernel_distance_codec" not in found["systems"]["other_music"]
    assert {name for name, values in found["systems"].items() if "drift_level" in values} == {
        *("model", "prior", "twin", "twin_prior", "loop", "replay")
    }
    for values in found["systems"].values():
        for name, value in values.items():
            if value["low"] is not None:
                assert value["low"] <= value["high"], name


@pytest.mark.slow
def test_values_with_a_known_answer(found: dict[str, Any], pairs: Path) -> None:
    systems = found["systems"]
    truths = [read_audio(pairs / "val" / f"pair_{n:04d}_output.wav", SAMPLE_RATE, 1)[None] for n in range(VAL_PAIRS)]
    inputs = [read_audio(pairs / "val" / f"pair_{n:04d}_input.wav", SAMPLE_RATE, 1)[None] for n in range(VAL_PAIRS)]
    distance = losses.create("spectral_energy", SAMPLE_RATE)
    expected = [float(distance(a, b)) for a, b in zip(inputs, truths, strict=True)]
    assert found["per_item"]["energy_score_spectral_energy"]["copy"] == pytest.approx(expected, rel=1e-4)
    assert systems["copy"]["energy_score_spectral_energy"]["value"] == pytest.approx(
        sum(expected) / VAL_PAIRS, rel=1e-4
    )
    rms = sum(float(audio.square().mean().sqrt()) for audio in truths) / VAL_PAIRS
    assert systems["silence"]["mean_rms"]["value"] == pytest.approx(rms, rel=1e-3)
    for name in DISTANCES:
        replay = systems["replay"]
        assert replay[f"skill_{name}"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        ratio = systems["loop"][f"energy_score_{name}"]["value"] / replay[f"energy_score_{name}"]["value"]
        assert systems["loop"][f"skill_{name}"]["value"] == pytest.approx(1 - ratio, abs=1e-6)
        if name != "spectral_energy":  # which has the codec's texture further from the truth than a recorded replay
            assert systems["codec"][f"skill_{name}"]["value"] > 0
    assert systems["copy"]["repetition"]["value"] == pytest.approx(1, abs=1e-3)
    assert systems["silence"]["level_db"]["value"] < -40
    assert systems["truth"]["memorisation"]["value"] == 1.0


@pytest.mark.slow
def test_the_headline_has_four_figures_of_every_system(evaluated: tuple[Path, str], found: dict[str, Any]) -> None:
    headline, systems = found["headline"], found["systems"]
    assert list(headline["measures"]) == ["skill_floored_mel", "pulse_difference", "critic", "patch_distance"]
    assert list(headline["systems"]) == list(systems)
    for name, figures in headline["systems"].items():
        assert figures == {measure: systems[name][measure] for measure in figures}
        missing = {"truth": {"skill_floored_mel", "critic", "patch_distance"}, "other_music": {"patch_distance"}}.get(
            name, set()
        )
        assert figures.keys() == headline["measures"].keys() - missing
        assert "critic" not in figures or 0 <= figures["critic"]["value"] <= 1
    difference = systems["copy"]["pulse_context"]["value"] - systems["truth"]["pulse_context"]["value"]
    assert systems["copy"]["pulse_difference"]["value"] == pytest.approx(difference, abs=1e-6)
    assert "the codec starter is the truth through it (row codec): log-mel skill" in headline["caption"]
    lines = evaluated[1].splitlines()
    assert next(line.strip() for line in lines if line.strip()) == "Headline"
    page = Page(evaluated[0] / "index.html")
    assert headline["caption"] in page.text and ["System", "Plot", "log-mel skill"] in page.rows


@pytest.mark.slow
def test_skill_against_the_own_prior_compares_with_its_row(found: dict[str, Any]) -> None:
    systems = found["systems"]
    for distance in DISTANCES:
        ratio = (
            systems["model"][f"energy_score_{distance}"]["value"]
            / systems["prior"][f"energy_score_{distance}"]["value"]
        )
        assert systems["model"][f"skill_prior_{distance}"]["value"] == pytest.approx(1 - ratio, abs=1e-6)
        assert f"skill_prior_{distance}" in systems["twin"] and f"skill_prior_{distance}" not in systems["replay"]
    assert systems["prior"] == systems["twin_prior"]


@pytest.mark.slow
def test_a_metric_of_the_users_own_is_in_the_json_the_tables_the_page_and_mlflow(
    evaluated: tuple[Path, str], found: dict[str, Any], pairs: Path, store: str
) -> None:
    truths = [read_audio(pairs / "val" / f"pair_{n:04d}_output.wav", SAMPLE_RATE, 1) for n in range(VAL_PAIRS)]
    expected = sum(float(audio.abs().amax() / audio.square().mean().sqrt()) for audio in truths) / VAL_PAIRS
    assert {"model", "silence", "truth"} <= {name for name, v in found["systems"].items() if "crest_factor" in v}
    assert found["systems"]["truth"]["crest_factor"]["value"] == pytest.approx(expected, rel=1e-4)
    assert found["systems"]["silence"]["crest_factor"]["value"] == 0
    assert found["measures"]["crest_factor"] == {
        "group": "Sound",
        "note": "Peak level over RMS level.",
        "goal": "truth",
    }
    assert any("crest →t" in line for line in evaluated[1].splitlines())
    page = Page(evaluated[0] / "index.html")
    assert ["System", "Plot", "crest"] in page.rows
    value = found["systems"]["model"]["crest_factor"]["value"]
    assert run_of(store).data.metrics["eval_model_crest_factor"] == pytest.approx(value)


@pytest.mark.slow
def test_a_twin_has_the_same_values(found: dict[str, Any]) -> None:
    assert found["systems"]["model"] == found["systems"]["twin"]


@pytest.mark.slow
def test_values_not_to_be_trusted_are_warned_of(evaluated: tuple[Path, str], found: dict[str, Any]) -> None:
    warnings = " ".join(found["warnings"])
    assert "judged on validation pairs" in warnings
    assert "5 pairs are few" in warnings and "2 recordings are few" in warnings and "Fréchet" in warnings
    page = Page(evaluated[0] / "index.html")
    printed = " ".join(evaluated[1].split())  # its lines are wrapped
    assert all(warning in page.text and warning in printed for warning in found["warnings"])


@pytest.mark.slow
def test_the_page_and_the_tables_show_the_continuers(evaluated: tuple[Path, str]) -> None:
    page = Page(evaluated[0] / "index.html")
    # Model, twin, their priors, loop, replay and truth after each of three pairs; all but the truth for long.
    assert len(page.audio) == 3 * 7 + 6
    assert len(page.images) == 1 + len(page.audio)  # the drift
    assert page.elsewhere == []
    assert any(row[:1] == ["replay"] for row in page.rows)
    assert max(map(len, evaluated[1].splitlines()[:60])) <= 100


@pytest.mark.slow
def test_the_training_run_has_the_values(found: dict[str, Any], store: str) -> None:
    run = run_of(store)
    value = found["systems"]["model"]["energy_score_mel"]["value"]
    assert run.data.metrics["eval_model_energy_score_mel"] == pytest.approx(value)
    for measure, figure in found["headline"]["systems"]["model"].items():
        assert run.data.metrics[f"headline_{measure}"] == pytest.approx(figure["value"])
        assert run.data.metrics[f"headline_{measure}_high"] == pytest.approx(figure["high"])
    files = {file.path for file in MlflowClient(store).list_artifacts(run.info.run_id, "evaluation")}
    assert files == {"evaluation/evaluation.json", "evaluation/index.html"}


def test_all_wrong_flags_are_named_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--candidates", 1, "--items", 1, "--long_seconds", "nan", "--metrics", "mel,nothing", "--embedding", "ear")
    places = ("--checkpoint", tmp_path / "a.pt", "--against", tmp_path / "b.pt", "--dataset_folder", tmp_path / "none")
    lines = refused(monkeypatch, capsys, *places, *flags)
    for part in (
        *("--checkpoint", "--against b: ", "--dataset_folder", "--candidates 1: ", "--items 1: ", "--long_seconds nan"),
        *("--metrics nothing: no such loss", "--embedding ear: must be one of none, panns, clap"),
    ):
        assert sum(part in line for line in lines) == 1, part
    assert all(line.startswith("error:") for line in lines)


def test_a_name_that_is_taken_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, pairs: Path
) -> None:
    for against in ("replay=x.pt", "a/x.pt,b/x.pt"):
        (line,) = refused(
            monkeypatch, capsys, "--checkpoint", checkpoint, "--dataset_folder", pairs, "--against", against
        )
        assert "is taken; give it another: other=" in line


def test_test_pairs_are_judged_on_if_there_are_any(checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    model = load_generator(checkpoint, CPU)
    config = EvalConfig(checkpoint, pairs, cache_dir=tmp_path, memorisation=0)
    with pytest.raises(EncoreError, match="--split test: .* has no pairs for test; use --split val"):
        evaluate.open_data(replace(config, split="test"), model, CPU)
    assert any("judged on validation pairs" in text for text in warnings_of(evaluate.open_data(config, model, CPU), {}))
    more = shutil.copytree(pairs, tmp_path / "pairs", ignore=shutil.ignore_patterns("metadata.csv"))
    shutil.copytree(write_pairs(tmp_path / "other", {"test": 2}) / "test", more / "test")
    config = replace(config, dataset_folder=more)
    data = evaluate.open_data(config, model, CPU)
    assert (data.split, len(data)) == ("test", 2)
    assert not any("judged on validation pairs" in text for text in warnings_of(data, {}))
    assert len(evaluate.open_data(replace(config, split="val"), model, CPU)) == VAL_PAIRS


def test_a_missing_run_is_reported_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    pairs: Path,
    store: str,
    tmp_path: Path,
) -> None:
    flags = ("--checkpoint", checkpoint, "--dataset_folder", pairs, "--output", tmp_path / "out")
    lines = refused(monkeypatch, capsys, *flags, "--mlflow_uri", store, "--run_id", "0" * 32)
    assert len(lines) == 1 and "--run_id" in lines[0]
    assert not list((tmp_path / "out").iterdir())
