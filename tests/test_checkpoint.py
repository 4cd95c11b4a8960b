"""Checkpoints: written whole, read without unpickling, refused when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from encore.checkpoint import load_generator, read, resume_source, set_aside
from encore.codec import STARTER_WEIGHTS, load_codec_file, save_codec
from encore.config import TrainConfig
from encore.errors import EncoreError
from tests.conftest import Door

CPU = torch.device("cpu")


def test_a_trained_model_is_loaded_with_its_averaged_weights(trained: Path) -> None:
    path = trained / "checkpoints" / "best_model.pt"
    content, generator = read(path), load_generator(path, CPU)
    assert generator.segment_frames == content["segment_frames"] == 75
    assert generator.config.d_model == 32 and not generator.model.training
    averaged = content["ema"]["module.enter.weight"]
    assert torch.equal(generator.model.enter.weight, averaged)
    assert not torch.equal(averaged, content["model"]["enter.weight"])


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("/tmp/owned").write_text, ("x",))


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "other", "half"])
def test_what_is_no_checkpoint_is_refused_in_a_line(kind: str, tmp_path: Path, trained: Path) -> None:
    path = tmp_path / "model.pt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "pickle":
        torch.save({"format": 1, "model": Evil()}, path)
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "half":
        path.write_bytes((trained / "checkpoints" / "last.pt").read_bytes()[:10000])
    with pytest.raises(EncoreError, match=str(path)) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("/tmp/owned").exists()


def test_a_checkpoint_of_another_shape_and_codec_is_refused(
    trained: Path, tmp_path: Path, door: Door, train_flags: list[object]
) -> None:
    architecture, encoder, decoder = load_codec_file(STARTER_WEIGHTS)
    with torch.no_grad():
        next(decoder.parameters()).mul_(1.01)
    save_codec(tmp_path / "other.safetensors", architecture, encoder, decoder)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_text("an earlier run")
    checkpoint = trained / "checkpoints" / "last.pt"
    flags = (*train_flags, "--codec", tmp_path / "other.safetensors", "--cache_dir", tmp_path / "cache")
    flags = (*flags, "--resume", checkpoint, "--d_model", 64, "--num_layers", 2)
    result = door("train_ddp.py", *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: --resume {checkpoint}: was trained with --d_model 32, not 64",
        f"error: --resume {checkpoint}: was trained with --num_layers 1, not 2",
        f"error: --resume {checkpoint}: was trained with another codec (--codec starter); name that one",
    ]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]  # nothing was touched


def test_an_earlier_run_is_set_aside_and_not_overwritten(tmp_path: Path) -> None:
    for name in ("last.pt", "best_model.pt", "train.log", "notes.txt"):
        (tmp_path / name).write_text(name)
    set_aside(tmp_path, tmp_path / "last.pt")
    assert (tmp_path / "last.pt").exists()
    set_aside(tmp_path, None)
    set_aside(tmp_path, None)
    moved = {path.name for path in (tmp_path / "earlier_1").iterdir()}
    assert moved == {"last.pt", "best_model.pt", "train.log"}
    assert {path.name for path in tmp_path.iterdir()} == {"earlier_1", "notes.txt"}
    (tmp_path / "last.pt").write_text("again")
    set_aside(tmp_path, tmp_path / "earlier_1" / "last.pt")
    assert (tmp_path / "earlier_2" / "last.pt").read_text() == "again"


def test_where_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "last.pt"
    auto = TrainConfig(checkpoint_dir=tmp_path, resume="auto")
    assert resume_source(auto) is None
    last.touch()
    assert resume_source(auto) == last
    assert resume_source(TrainConfig(checkpoint_dir=tmp_path)) is None
    assert resume_source(TrainConfig(checkpoint_dir=tmp_path, resume="x.pt")) == Path("x.pt")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resume_source(TrainConfig(checkpoint_dir=tmp_path)) == last
