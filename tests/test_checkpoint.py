"""Checkpoints: written whole, read without unpickling, refused when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from encore.audio import write_wav
from encore.codecs import Codec
from encore.codecs.starter.weights import STARTER_WEIGHTS, load_codec_file, save_codec
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.models.generation import GenerationConfig
from encore.models.loading import FORMAT, build_model, generation_config, load_generator, read
from encore.training.stored import MARGIN_FILE, stored
from tests.conftest import Command, random_seanet, write_pairs

CPU = torch.device("cpu")


def test_a_trained_model_is_loaded_with_its_averaged_weights(trained: Path) -> None:
    path = trained / "checkpoints" / "last.pt"
    content, generator = read(path), load_generator(path, CPU)
    assert generator.context_frames == generator.segment_frames == content["segment_frames"] == 75
    assert generator.config.model.d_model == 32 and not generator.model.training
    assert generator.generation == GenerationConfig(30, generative=True, prior=generator.config.model.prior)
    assert generator.model.window == 45
    averaged = content["ema"]["module.in_proj.weight"]
    assert torch.equal(generator.model.in_proj.weight, averaged)
    assert not torch.equal(averaged, content["model"]["in_proj.weight"])


def test_the_margin_is_kept_with_the_latents_and_in_checkpoints(trained: Path, tmp_path: Path) -> None:
    generator = load_generator(trained / "checkpoints" / "last.pt", CPU)
    kept = generator.config.data.latent_folder / generator.codec.identity / MARGIN_FILE
    assert json.loads(kept.read_text()) == generator.margin == generator.codec.margin
    assert stored(kept, lambda: pytest.fail("measured again")) == generator.margin
    (tmp_path / MARGIN_FILE).write_text("8 frames")
    with pytest.raises(EncoreError, match=f"^--cache_dir: {tmp_path}/{MARGIN_FILE} cannot be used"):
        stored(tmp_path / MARGIN_FILE, lambda: 8)


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("/tmp/owned").write_text, ("x",))


@pytest.mark.parametrize("kind", ["missing", "text", "wav", "pickle", "other", "half", "earlier"])
def test_other_files_are_refused_in_one_line(kind: str, tmp_path: Path, trained: Path) -> None:
    path = tmp_path / "model.pt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "wav":
        write_wav(tmp_path / "song.wav", torch.zeros(1, 100), 24000)
        (tmp_path / "song.wav").rename(path)
    elif kind == "pickle":
        torch.save({"format": FORMAT, "model": Evil()}, path)
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "half":
        path.write_bytes((trained / "checkpoints" / "last.pt").read_bytes()[:10000])
    elif kind == "earlier":
        torch.save({"format": FORMAT - 1}, path)
    earlier = f"a checkpoint of format {FORMAT - 1}, .* reads format {FORMAT}; train again"
    reason = {"missing": "no such checkpoint", "earlier": earlier}.get(kind, "not a checkpoint of Encore")
    with pytest.raises(EncoreError, match=f"^{path}: {reason}") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("/tmp/owned").exists()


def test_a_checkpoint_of_another_shape_and_codec_is_refused(
    trained: Path, tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    architecture, encoder, decoder = load_codec_file(STARTER_WEIGHTS)
    with torch.no_grad():
        decoder.rest.bias.add_(0.01)
    save_codec(tmp_path / "other.safetensors", architecture, encoder, decoder)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_text("an earlier run")
    checkpoint = trained / "checkpoints" / "last.pt"
    pairs = write_pairs(tmp_path / "pairs", {"train": 2, "val": 1})
    flags = (*train_flags, "--dataset_folder", pairs, "--codec", tmp_path / "other.safetensors")
    flags = (*flags, "--resume", checkpoint, "--d_model", 64, "--num_layers", 2)
    flags = (*flags, "--objective", "regression", "--block_seconds", 0.2, "--prior", "none")
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: --resume {checkpoint}: was trained with --d_model 32, not 64",
        f"error: --resume {checkpoint}: was trained with --num_layers 1, not 2",
        f"error: --resume {checkpoint}: was trained with --objective energy, not regression",
        f"error: --resume {checkpoint}: was trained with --generation blocks, not whole",
        f"error: --resume {checkpoint}: was trained with --block_seconds 0.4, not 0.2",
        f"error: --resume {checkpoint}: was trained with --prior {TrainConfig().model.prior}, not none",
        f"error: --resume {checkpoint}: was trained with another codec (--codec starter); name that one",
    ]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.pt", ".lock"}  # nothing was touched


@pytest.fixture
def codec() -> Codec:
    return random_seanet()


def test_block_size_and_window_follow_from_seconds(codec: Codec) -> None:
    def built(**settings: object) -> tuple[GenerationConfig, int, bool]:
        settings = {"prior": "replay", "block_seconds": 0.4, **settings}
        config = TrainConfig.from_flags(d_model=16, nhead=2, num_layers=1, **settings).resolved()  # type: ignore[arg-type]
        model = build_model(config, codec, 75)
        return generation_config(config, codec, 75), model.window, not model.scale.any()

    assert built() == (GenerationConfig(30, True, "replay"), 75, True)
    assert built(block_seconds=0.01, context_seconds=0.5, prior="none") == (
        GenerationConfig(1, True, "none"),
        38,
        False,
    )
    assert built(generation="whole", context_seconds=2.0) == (GenerationConfig(75, True, "replay"), 150, True)
    assert built(objective="regression", block_seconds=9.0) == (GenerationConfig(75, False, "replay"), 75, False)
    assert built(objective="regression", generation="blocks") == (GenerationConfig(30, False, "replay"), 75, False)


def test_blocks_that_do_not_fit_are_refused(codec: Codec) -> None:
    with pytest.raises(EncoreError, match=r"^--block_seconds 1\.1: longer than the segments \(1 s\)"):
        generation_config(TrainConfig.from_flags(block_seconds=1.1).resolved(), codec, 75)
    torch.manual_seed(0)
    segmented = random_seanet(segment_seconds=0.2)  # 15 frames
    assert generation_config(TrainConfig.from_flags(block_seconds=0.4).resolved(), segmented, 75).block_frames == 30
    for settings, frames in (({"block_seconds": 0.5}, 75), ({"generation": "whole"}, 70)):
        with pytest.raises(EncoreError, match=r"^--generation .* works on segments of 0\.2 s"):
            generation_config(TrainConfig.from_flags(**settings).resolved(), segmented, frames)
