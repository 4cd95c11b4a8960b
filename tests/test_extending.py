"""Losses, codecs, priors and dataset formats of one's own, as the documentation writes them, through the commands."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.codecs import load_codec
from encore.commands.evaluate import open_data
from encore.data import find_pairs
from encore.errors import EncoreError
from encore.evaluation.config import EvalConfig
from encore.models.loading import load_generator
from encore.registry import CODECS, DATASETS, PRIORS, load_plugins
from tests.conftest import ROOT, SAMPLE_RATE, Command, melody

SECTIONS = {
    "my_loss.py": "A loss",
    "my_codec.py": "A codec",
    "my_prior.py": "A prior",
    "my_format.py": "A dataset format",
}
MOST_LINES = 15
CPU = torch.device("cpu")


def example(section: str) -> str:
    """The code of a section of docs/extending.md."""
    text = (ROOT / "docs" / "extending.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return text.partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The examples, each in a file outside the package."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, section in SECTIONS.items():
        (folder / name).write_text(example(section))
    return {name: folder / name for name in SECTIONS}


@pytest.fixture
def registered(plugins: dict[str, Path]) -> Iterator[None]:
    """The examples in this process's registries, and afterwards only what was there before."""
    before = [(registry, dict(registry)) for registry in (CODECS, DATASETS, PRIORS)]
    load_plugins([str(path) for name, path in plugins.items() if name != "my_loss.py"])
    yield
    for registry, entries in before:
        registry._entries.clear()
        registry._entries.update(entries)
    for name in [name for name in sys.modules if name.startswith("losses_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of arbitrary file names, in the format of the example."""
    folder = tmp_path_factory.mktemp("music")
    rows = [("split", "name", "before", "after", "song")]
    for number, split in enumerate(("train", "train", "val", "val")):
        audio = melody(2, number)
        for name, part in ((f"{number} a.flac", audio[:SAMPLE_RATE]), (f"deep/{number}.wav", audio[SAMPLE_RATE:])):
            (folder / name).parent.mkdir(exist_ok=True)
            soundfile.write(folder / name, part, SAMPLE_RATE)
        rows.append((split, f"the pair {number}", f"{number} a.flac", f"deep/{number}.wav", f"song {number % 2}"))
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, call_command: Command, plugins: dict[str, Path], music: Path) -> Path:
    """A training run with all four at once, of a step that changes almost nothing."""
    folder = tmp_path_factory.mktemp("run")
    own = ("--plugins", ",".join(map(str, plugins.values())), "--codec", "samples", "--prior", "hold")
    loss = ("--loss_weight_median_error", 0.5, "--loss_weight_target", 1)
    data = ("--dataset_folder", music, "--dataset_format", "table", "--batch_size", 2, "--num_workers", 0)
    size = ("--d_model", 16, "--nhead", 2, "--num_layers", 1, "--block_seconds", 0.4, "--decode_seconds", 0.4)
    steps = ("--max_steps", 1, "--lr", 1e-9, "--tracker", "none")
    result = call_command("train_worker.py", *own, *loss, *data, *size, *steps, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "2 training and 2 validation pairs of 1.00 s" in result.stdout
    assert re.search(r"Val Loss: .*median_error: 0\.\d+", result.stdout)
    return folder


@pytest.mark.parametrize("section", [*SECTIONS.values(), "A metric"])
def test_an_example_is_short(section: str) -> None:
    code = [line for line in example(section).splitlines() if line.strip()]
    assert 0 < len(code) <= MOST_LINES


def test_a_model_trained_with_them_continues_music(
    run: Path, call_command: Command, plugins: dict[str, Path], tmp_path: Path
) -> None:
    """The codec's latents are the samples and the model is still the prior, so its last frame is held: 320 samples."""
    song = melody(1.2, 9)
    soundfile.write(tmp_path / "song.wav", song, SAMPLE_RATE)
    flags = ("--checkpoint", run / "checkpoints" / "best_model.pt", "--input", "song.wav", "--seconds", 1)
    names = ",".join(str(plugins[name]) for name in ("my_codec.py", "my_prior.py"))
    result = call_command("inference_sample.py", *flags, "--plugins", names, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = soundfile.read(tmp_path / "out" / "continuation.wav")[0]
    np.testing.assert_allclose(made, np.tile(song[-320:], 75), atol=1e-3)


def test_an_evaluation_finds_the_pairs_in_the_format_of_the_training(run: Path, music: Path, registered: None) -> None:
    config = EvalConfig(checkpoint=run / "checkpoints" / "best_model.pt", dataset_folder=music, memorisation=1)
    data = open_data(config, load_generator(config.checkpoint, CPU), CPU)
    assert (data.names, data.recordings) == (["the pair 2", "the pair 3"], ["song 0", "song 1"])
    assert data.load([1]).target_audio.shape == (1, 1, SAMPLE_RATE)


def test_a_checkpoint_without_its_plugins_says_what_is_missing(run: Path, registered: None) -> None:
    path = run / "checkpoints" / "best_model.pt"
    assert load_generator(path, CPU).generation.prior == "hold"
    del PRIORS._entries["hold"]
    with pytest.raises(EncoreError, match=r"--prior hold: no such prior.*--plugins"):
        load_generator(path, CPU)
    del CODECS._entries["samples"]
    with pytest.raises(EncoreError, match=r"--codec samples: no such codec.*--plugins"):
        load_generator(path, CPU)


def test_a_codec_of_ones_own_has_what_training_asks_of_a_codec(registered: None) -> None:
    codec = load_codec("samples")
    assert (codec.frame_rate, codec.segment_frames) == (75, None) and len(codec.identity) == 16
    audio = torch.from_numpy(melody(1, 0))[None, None]
    latents = codec.encode(audio[..., :-100])
    assert latents.shape == (1, 320, 75) and torch.equal(codec.decode(latents)[..., :-100], audio[..., :-100])
    assert torch.equal(codec.decode_crop(latents, 10, 5, 3), codec.decode(latents)[..., 3200:4800])
    assert torch.equal(
        codec.decode_continuation(latents[..., :30], latents[..., 30:], 8), codec.decode(latents[..., 30:])
    )
    assert codec.measure_margin(latents) == 8  # the least that is tried
    with pytest.raises(ValueError, match="Samples has no encoder for --embedding_model codec"):
        codec.feature_encoder()


def test_pairs_of_a_format_of_ones_own(registered: None, music: Path, tmp_path: Path) -> None:
    pairs = find_pairs(music, SAMPLE_RATE, "table")
    assert [pair.name for pair in pairs["val"]] == ["the pair 2", "the pair 3"]
    assert [pair.recording for pair in pairs["train"]] == ["song 0", "song 1"]
    assert pairs["train"][0].input == music / "0 a.flac" and pairs["train"][0].samples == SAMPLE_RATE
    copy = shutil.copytree(music, tmp_path / "music")
    (copy / "deep" / "1.wav").unlink()
    (copy / "2 a.flac").write_text("no audio")
    with pytest.raises(EncoreError) as caught:
        find_pairs(copy, SAMPLE_RATE, "table")
    missing, unreadable = str(caught.value).splitlines()
    assert "1 a.flac: its output 1.wav is missing" in missing and "2 a.flac: cannot be read as audio" in unreadable
    lines = (music / "pairs.csv").read_text().splitlines()
    (copy / "pairs.csv").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(EncoreError, match="no pairs for val"):
        find_pairs(copy, SAMPLE_RATE, "table")
    with pytest.raises(EncoreError, match=r"--dataset_format tables: .*did you mean table\?"):
        find_pairs(music, SAMPLE_RATE, "tables")
