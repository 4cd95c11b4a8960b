"""The start of a training run: nothing is imported or measured that the first step does not need."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

import losses
from encore.codecs import Codec, load_codec
from encore.config.schema import ObjectiveConfig, TrainConfig
from encore.data import find_pairs
from encore.data.dataset import PairDataset
from encore.data.latent_cache import LatentCache
from encore.data.pairs import PairFrames
from encore.models.generation import GenerationConfig
from encore.tracking import mlflow
from encore.training.baseline_cache import key
from encore.training.build import build_components
from encore.training.objective import Objective
from encore.training.step import Step
from encore.training.synthesis import Synthesizer
from tests.conftest import SAMPLE_RATE, Command, melody, write_pairs

CPU = torch.device("cpu")
LATER = {"mlflow", "pandas", "matplotlib", "librosa", "scipy", "jinja2", "sqlalchemy"}


def test_launcher_and_worker_import_nothing_that_only_some_runs_need(run_program: Command) -> None:
    result = run_program("import sys, encore.commands.train, encore.commands.train_worker; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    imported = {name.partition(".")[0] for name in result.stdout.split()}
    assert "torch" in imported and not LATER & imported
    assert "torch.distributed.fsdp" not in result.stdout.split()  # half a second


@pytest.mark.slow
def test_baselines_are_measured_once(
    train_flags: list[object], tmp_path: Path, call_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run prints what the first one has stored, unless something is compared that the first did not."""
    monkeypatch.setattr("encore.training.baseline_cache.LOADED", set())  # other tests of this process load plugins
    data = write_pairs(tmp_path / "pairs", {"train": 2, "val": 1}, seconds=0.5)
    flags = (*train_flags, "--dataset_folder", data, "--max_steps", 1, "--objective", "regression", "--tracker", "none")

    def floor(*more: object) -> str:
        result = call_command("train_worker.py", *flags, *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        found = re.search(r"^Codec floor: +(\S+)", result.stdout, re.MULTILINE)
        assert found
        return found[1]

    first = floor()
    (stored,) = data.glob(".latents/*/baselines/*.json")
    values = json.loads(stored.read_text())
    assert values.keys() == {"floor", "copy"} and f"{values['floor']['values']['loss']:.4f}" == first
    values["floor"]["values"]["loss"] = 42.0
    stored.write_text(json.dumps(values))
    assert floor("--lr", 1) == "42.0000"  # nothing that they depend on
    assert floor("--metrics", "mel") == first
    assert len([*data.glob(".latents/*/baselines/*.json")]) == 2


@pytest.mark.slow
def test_the_trackers_store_is_opened_after_the_first_step(
    train_flags: list[object], tmp_path: Path, call_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def note(place: object, name: str, event: str) -> None:
        function = getattr(place, name)

        def noted(*arguments: object) -> object:
            events.append(event)
            return function(*arguments)

        monkeypatch.setattr(place, name, noted)

    note(Step, "apply", "step")
    note(mlflow, "connect", "opened")
    result = call_command("train_worker.py", *train_flags, "--max_steps", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert events[0] == "step" and sorted(events) == ["opened", "step", "step"]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), {"train": 1, "val": 2}, seconds=0.5)


def opened(codec: Codec, folder: Path, **settings: Any) -> Any:
    pairs = find_pairs(folder, SAMPLE_RATE)["val"]
    cache = LatentCache.open(folder / ".latents", codec, pairs.segments)
    new = pairs.segments.unhashed(pairs.numbers)
    cache.know(new, pairs.segments.hash(new))
    return SimpleNamespace(
        cache=cache, val=PairDataset(pairs, cache, codec, **{"frames": PairFrames(30, 30), **settings})
    )


def objective(codec: Codec, samples: int = 2, margin: int = 8, block: int = 15, **weights: Any) -> Objective:
    config = TrainConfig.from_flags(loss_weight_mel=1.0, **weights).resolved()
    synthesizer = Synthesizer(
        codec, GenerationConfig(block, True, "replay"), samples=samples, margin=margin, crop_frames=30
    )
    combiner = losses.WeightedGradient({"mel": 1.0})
    return Objective(build_components(config, codec, torch.zeros(1, 1, 9600)), synthesizer, combiner)


def test_stored_baselines_are_found_by_all_that_they_depend_on(codec: Codec, folder: Path, tmp_path: Path) -> None:
    settings, data, terms = ObjectiveConfig(), opened(codec, folder), objective(codec)
    assert key(objective(codec), settings, opened(codec, folder), CPU) == key(terms, settings, data, CPU)
    advanced = objective(codec, loss_weight_random_resolution_stft=1.0)
    keys = [
        key(terms, settings, data, CPU),
        key(terms, settings, opened(codec, folder, frames=PairFrames(29, 29)), CPU),
        key(terms, settings, opened(codec, folder, unity=True), CPU),
        key(terms, settings, opened(codec, folder, shuffle_seed=0), CPU),
        key(terms, replace(settings, embedding_layers="last"), data, CPU),
        key(terms, settings, data, torch.device("cuda")),
        key(objective(codec, samples=3), settings, data, CPU),
        key(objective(codec, margin=16), settings, data, CPU),
        key(objective(codec, block=10), settings, data, CPU),
        key(objective(codec, loss_weight_spectral=0.5), settings, data, CPU),
        key(advanced, settings, data, CPU),
    ]
    advanced.losses["random_resolution_stft"].set_extra_state({"calls": 1})
    keys.append(key(advanced, settings, data, CPU))
    soundfile.write(folder / "val" / "pair_0001_output.wav", melody(0.5, 77), SAMPLE_RATE)
    keys.append(key(terms, settings, opened(codec, folder), CPU))
    with torch.no_grad():
        for parameter in (other := load_codec("starter")).parameters():
            parameter.mul_(1.01)
    keys.append(key(objective(other), settings, data, CPU))
    assert len(set(keys)) == len(keys)
