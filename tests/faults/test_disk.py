"""Disks and memory that are full: a sentence says so, with what to do, and nothing half done is left."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from encore.codecs.starter.weights import STARTER_WEIGHTS, load_codec_file, save_codec
from encore.config import cli
from encore.errors import EncoreError
from encore.reporting.html import AudioSample, Heading, write_page
from tests.conftest import Command, largest_file, melody
from tests.faults.small import checkpoint_content


@pytest.fixture
def music(tmp_path: Path) -> Path:
    (tmp_path / "music").mkdir()
    for number, name in enumerate((b"0.wav", b"1.wav", b"caf\xe9.wav")):  # names need not be UTF-8
        soundfile.write(os.fsencode(tmp_path / "music") + b"/" + name, melody(3, number), 24000)
    return tmp_path / "music"


@pytest.mark.parametrize("shards", ["false", "true"])
def test_prepare_data_goes_on_when_there_is_space_again(
    shards: str, music: Path, tmp_path: Path, call_command: Command
) -> None:
    output = tmp_path / "pairs"
    flags: tuple[object, ...] = ("--output", output, "--shards", shards, "--val_group", "file", "--num_workers", 0)
    flags = (*flags, "--context_seconds", 1, "--segment_seconds", 0.5)
    with largest_file(20_000):
        result = call_command("prepare_data.py", music, *flags, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line and "space" in line
    assert not output.exists()
    result = call_command("prepare_data.py", music, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {row.split(b",")[1] for row in (output / "metadata.csv").read_bytes().splitlines()[1:]} == {
        *(b"0.wav", b"1.wav", b"caf\xe9.wav")
    }


def test_a_continuation_that_finds_no_space(music: Path, tmp_path: Path, call_command: Command) -> None:
    torch.save(checkpoint_content(), tmp_path / "model.pt")
    flags = ("--checkpoint", tmp_path / "model.pt", "--input", music / "0.wav", "--seconds", 1)
    with largest_file(20_000):
        result = call_command("inference_sample.py", *flags, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: out/") and "cannot be written; make space there, or name another folder" in line
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: bytearray(2**60)])
def test_memory_that_runs_out_is_told_in_a_sentence(allocate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    app = cli.new_app()
    app.command()(lambda: allocate())
    with pytest.raises(SystemExit) as ended:
        cli.run(app, [])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: there is not enough memory \(.+\); lower .+\n", capsys.readouterr().err)


@pytest.mark.full
def test_a_continuation_that_finds_no_memory(music: Path, tmp_path: Path, call_command: Command) -> None:
    torch.save(checkpoint_content(), tmp_path / "model.pt")
    flags = ("--checkpoint", tmp_path / "model.pt", "--input", music / "0.wav", "--candidates", 1024)
    least, most = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, most))
    try:
        result = call_command("inference_sample.py", *flags, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (least, most))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: there is not enough memory (") and line.endswith("lower what is computed at once")


def test_pages_and_codecs_that_find_no_space(tmp_path: Path) -> None:
    sample = AudioSample("a", "b", torch.randn(1, 24000))
    weights = load_codec_file(STARTER_WEIGHTS)
    with largest_file(20_000):
        with pytest.raises(EncoreError, match=f"^{tmp_path}/index.html: no space for the page .File too large.; make"):
            write_page(tmp_path / "index.html", Heading("title"), {}, [sample], 24000)
        with pytest.raises(EncoreError, match=f"^{tmp_path}/codec.safetensors: cannot be written .*File too large"):
            save_codec(tmp_path / "codec.safetensors", *weights)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
