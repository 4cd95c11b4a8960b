"""Models as folders: `encore export`, the Hugging Face Hub's class, its cards, the model that Encore comes with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from safetensors.torch import load_file, save_file

import encore
from encore.codecs.starter.weights import STARTER_WEIGHTS
from encore.commands import demo, export
from encore.config import cli
from encore.errors import EncoreError
from encore.inference.model_card import model_card
from encore.models.loading import load_generator
from encore.models.model_folder import PRETRAINED
from tests.conftest import SAMPLE_RATE, melody

CPU = torch.device("cpu")
SONG = melody(1.5, 3)


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "last.pt"


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `encore export` makes of a run's last checkpoint."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    flags = ["--license", "cc-by-4.0", "--data", "twelve songs of mine"]
    run(export.app, "--checkpoint", checkpoint, "--output", folder, *flags)
    return folder


def run(app: cli.App, *arguments: object) -> None:
    try:
        cli.run(app, list(map(str, arguments)))
    except SystemExit as end:
        assert not end.code


def continued(model: Any, song: object = SONG, **settings: Any) -> torch.Tensor:
    audio: torch.Tensor = model.continue_(song, SAMPLE_RATE, **{"seconds": 0.5, "seed": 4, **settings})
    return audio


def test_a_folder_plays_as_its_checkpoint(exported: Path, checkpoint: Path) -> None:
    assert {file.name for file in exported.iterdir()} >= {"model.safetensors", "config.json", "README.md"}
    assert torch.equal(*(continued(encore.load(path, "cpu", precision="fp32")) for path in (exported, checkpoint)))
    # Nothing of the machine that it was trained on.
    text = (exported / "config.json").read_text() + (exported / "README.md").read_text()
    assert str(checkpoint.parents[2]) not in text and "mlflow" not in text
    assert load_generator(exported, CPU).progress["step"] > 0


def test_half_precision_is_half_the_size(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    run(export.app, "--checkpoint", checkpoint, "--output", tmp_path / "half", "--half", "true")
    stored, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "half", exported))
    assert stored.keys() == whole.keys()
    assert all(
        value.dtype == torch.float16 and torch.equal(value, whole[name].half()) for name, value in stored.items()
    )
    loaded = load_generator(tmp_path / "half", CPU).model.state_dict()
    assert all(
        value.dtype == torch.float32 and torch.equal(value, stored[name].float()) for name, value in loaded.items()
    )


def test_a_codec_of_ones_own_travels_with_the_model(tmp_path: Path) -> None:
    generator = load_generator(PRETRAINED, CPU)
    shutil.copyfile(STARTER_WEIGHTS, tmp_path / "mine.safetensors")
    codec = replace(generator.config.codec, name=str(tmp_path / "mine.safetensors"))
    replace(generator, config=replace(generator.config, codec=codec)).save(tmp_path / "made")
    folder = (tmp_path / "made").rename(tmp_path / "moved")
    (tmp_path / "mine.safetensors").unlink()
    loaded = load_generator(folder, CPU)
    assert loaded.codec.identity == generator.codec.identity
    loaded.save(folder)  # over itself
    assert load_generator(folder, CPU).codec.identity == generator.codec.identity
    (folder / "codec.safetensors").unlink()
    with pytest.raises(EncoreError, match="codec.safetensors: no such file"):
        load_generator(folder, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "not a model that `encore export` wrote"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04" * 40), "not a model that"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json has no settings"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a model that"),
        (lambda folder: changed(folder, format=7), "format 7, and this version of Encore reads"),
        (lambda folder: changed(folder, margin="3"), "margin is missing or of another kind"),
        (lambda folder: changed(folder, codec={"identity": "x"}), "trained with other weights of --codec"),
        (lambda folder: filled(folder, torch.nan), "is not finite"),
    ],
)
def test_a_damaged_folder_is_refused(exported: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    change(folder)
    with pytest.raises(EncoreError, match=message):
        load_generator(folder, CPU)


def changed(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def filled(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["out_proj.weight"].fill_(value)
    save_file(weights, folder / "model.safetensors")


def test_the_hubs_class_loads_and_saves_folders(exported: Path, tmp_path: Path) -> None:
    model = encore.ContinuationModel.from_pretrained(str(exported), device="cpu", precision="fp32")
    assert isinstance(model, PyTorchModelHubMixin)
    model.save_pretrained(tmp_path / "again")
    again = encore.ContinuationModel.from_pretrained(tmp_path / "again", device="cpu", precision="fp32")
    assert torch.equal(continued(again), continued(model))
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name
    model.save_pretrained(tmp_path / "other", model_card_kwargs={"license": "mit"})
    assert ModelCard.load(tmp_path / "other" / "README.md").data.license == "mit"


def test_a_model_of_the_hub_is_loaded_from_what_is_downloaded(exported: Path, tmp_path: Path) -> None:
    """The hub's cache, as a download leaves it; nothing is fetched."""
    commit, cached = "0" * 40, tmp_path / "models--someone--model"
    shutil.copytree(exported, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    places: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    model = encore.ContinuationModel.from_pretrained("someone/model", device="cpu", precision="fp32", **places)
    assert torch.equal(continued(model), continued(encore.load(exported, "cpu", precision="fp32")))


def test_what_is_pushed_is_what_is_saved(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The two calls that need the network are caught; what they are given can be loaded."""

    def create(self: HfApi, repo_id: str, **settings: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def upload(self: HfApi, repo_id: str, folder_path: Path, **settings: Any) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = encore.ContinuationModel.load(checkpoint, device="cpu", precision="fp32")
    assert model.push_to_hub("someone/model", model_card_kwargs={"license": "mit", "data": "songs"}) == "commit"
    pushed = tmp_path / "someone" / "model"
    assert ModelCard.load(pushed / "README.md").data.license == "mit"
    loaded = encore.ContinuationModel.from_pretrained(pushed, device="cpu", precision="fp32")
    assert torch.equal(continued(loaded), continued(model))


def test_a_card_says_what_the_model_is_and_what_is_not_known(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "cc-by-4.0",
        "encore",
        "audio-to-audio",
    )
    weights = load_generator(exported, CPU).config.objective.weights
    used = {name: weight for name, weight in weights.items() if weight}
    assert used and all(f"| `{name}` | {weight:g} |" in card.text for name, weight in used.items())
    assert "Data: twelve songs of mine." in card.text and "Not evaluated." in card.text
    bare = model_card(load_generator(exported, CPU))
    assert "license: unknown" in bare and "Data: not stated." in bare


def test_what_is_no_evaluation_is_refused(exported: Path, tmp_path: Path) -> None:
    generator, path = load_generator(exported, CPU), tmp_path / "evaluation.json"
    with pytest.raises(EncoreError, match="no such file"):
        model_card(generator, evaluation=path)
    path.write_text('{"headline": 3}')
    with pytest.raises(EncoreError, match="not what evaluate.py writes"):
        model_card(generator, evaluation=path)


def test_the_model_that_encore_comes_with_continues_a_song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "song.wav", np.stack([SONG, SONG], 1), SAMPLE_RATE)
    monkeypatch.chdir(tmp_path)
    run(demo.app, "song.wav", "--seconds", 1.5)
    audio, rate = soundfile.read(tmp_path / "out" / "continuation.wav", dtype="float32")
    assert (len(audio), rate) == (36000, 24000)
    assert (tmp_path / "out" / "index.html").is_file() and (tmp_path / "out" / "full.wav").is_file()
    again = encore.load(device="cpu").continue_("song.wav", seconds=1.5, temperature=0.5)
    np.testing.assert_allclose(again[0].clamp(-1, 1), audio, atol=1 / 32768)
    assert 0.2 < np.sqrt(np.mean(audio**2) / np.mean(SONG**2)) < 5  # as loud as the song, more or less


def test_the_model_that_encore_comes_with_is_small_and_says_what_it_was_trained_on() -> None:
    size = sum(file.stat().st_size for file in PRETRAINED.iterdir())
    assert size < 20e6  # with the starter codec 25 MB at most
    card = ModelCard.load(PRETRAINED / "README.md")
    assert card.data.license == "mit" and "docs/pretrained_model.md" in card.text and "Not evaluated" not in card.text
    assert load_generator(PRETRAINED, CPU).progress["step"] > 100
