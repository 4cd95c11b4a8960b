"""Reading and writing audio files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.audio import (
    audio_length,
    check_complete,
    find_audio_files,
    read_audio,
    read_excerpt,
    to_channels,
    write_wav,
)
from encore.errors import EncoreError


def sine(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_every_format_is_read_at_the_requested_rate(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([sine(440, 1, rate)] * 2, 1), rate)
    audio = read_audio(path, 24_000, 1)
    assert (audio.dtype, audio.shape) == (torch.float32, (1, 24_000))
    # Away from the edges, where resampler and mp3 encoder lack neighbouring samples.
    error = audio[0, 2400:-2400].numpy() - sine(440, 1, 24_000)[2400:-2400]
    assert np.sqrt(np.mean(error**2)) < (0.02 if suffix in ("ogg", "mp3") else 2e-3)


def test_a_rate_without_a_common_factor_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, 1, 44_101), 44_101)
    audio = read_audio(tmp_path / "a.wav", 24_000, 1)[0, 2400:-2400].numpy()
    assert np.sqrt(np.mean((audio - sine(440, 1, 24_000)[2400:-2400]) ** 2)) < 2e-3


def test_sixteen_bits_come_back_as_written(tmp_path: Path) -> None:
    audio = torch.from_numpy(sine(440, 0.5, 24_000)).float()[None].repeat(2, 1) * torch.tensor([[1.0], [-0.5]])
    write_wav(tmp_path / "a.wav", audio, 24_000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    assert (read_audio(tmp_path / "a.wav", 24_000, 2) - audio).abs().max() < 2 / 32768


def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.tensor([[1.5, -1.5, 0.5, 0.0]]), 24_000)
    assert torch.allclose(read_audio(tmp_path / "a.wav", 24_000, 1), torch.tensor([[1.0, -1.0, 0.5, 0.0]]), atol=1e-4)


def test_channel_rules() -> None:
    mono, stereo = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    surround = torch.arange(12.0).reshape(6, 2)
    assert to_channels(mono, 1).tolist() == [[1, 2]]
    assert to_channels(stereo, 2).tolist() == [[1, 2], [3, 6]]
    assert to_channels(stereo, 1).tolist() == [[2, 4]]
    assert to_channels(mono, 2).tolist() == [[1, 2], [1, 2]]
    assert to_channels(surround, 2).tolist() == [[0, 1], [2, 3]]
    assert to_channels(surround, 1).tolist() == [[5, 6]]


def test_a_truncated_wav_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 1, 24_000), 24_000)
    check_complete(path)
    os.truncate(path, os.path.getsize(path) - 1000)
    with pytest.raises(EncoreError, match=r"a.wav: truncated, its header declares 48000 bytes of audio, but 47000 are"):
        read_audio(path, 24_000, 1)


def test_a_wav_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    """Its header has no length, as a pipe cannot be rewound."""
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 0.1, 24_000), 24_000)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert read_audio(path, 24_000, 1).shape == (1, 2400)


def test_a_chunk_before_the_data_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 0.1, 24_000), 24_000)
    data = path.read_bytes()
    # A chunk of odd length is followed by a byte of padding.
    data = data[:12] + b"note" + struct.pack("<I", 5) + b"hello\0" + data[12:]
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert read_audio(path, 24_000, 1).shape == (1, 2400)
    os.truncate(path, len(data) - 100)
    with pytest.raises(EncoreError, match="truncated"):
        read_audio(path, 24_000, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    samples = np.zeros(1000, dtype=np.float32)
    samples[500] = value
    soundfile.write(tmp_path / "a.wav", samples, 24_000, subtype="FLOAT")
    with pytest.raises(EncoreError, match=r"a.wav: holds NaN or infinite samples"):
        read_audio(tmp_path / "a.wav", 24_000, 1)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 24_000)
    with pytest.raises(EncoreError, match=r"a.wav: holds no samples"):
        read_audio(tmp_path / "a.wav", 24_000, 1)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVEfmt \x10", b"hello" * 100])
def test_other_files_than_audio_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(EncoreError, match=r"a.wav: cannot be read as audio"):
        read_audio(tmp_path / "a.wav", 24_000, 1)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match=r"a.wav: cannot be read as audio .*No such file"):
        read_audio(tmp_path / "a.wav", 24_000, 1)


def test_files_are_found_at_any_depth_sorted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    for name in ("b.wav", "a/z.FLAC", "a/deep/y.mp3", "c.ogg", ".hidden.wav", ".trash/d.wav", "e.txt", "f.wav/g.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in find_audio_files(tmp_path)]
    assert names == ["a/deep/y.mp3", "a/z.FLAC", "b.wav", "c.ogg", "f.wav/g.wav"]


def test_a_hidden_folder_above_the_music_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".cache/music").mkdir(parents=True)
    (tmp_path / ".cache/music/a.wav").write_bytes(b"")
    assert len(find_audio_files(tmp_path / ".cache/music")) == 1


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    write_wav(path, torch.full((1, 24_000), 0.5), 24_000)
    assert audio_length(path, 48_000) == 48_000
    assert read_audio(path, 24_000, 1).shape == read_excerpt(path, 24_000, 1, 0, 24_000).shape == (1, 24_000)
    path.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(EncoreError, match="cannot be read as audio .Format not recognised"):
        read_audio(path, 24_000, 1)


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    for path in (tmp_path / "a.wav", Path("/dev/zero")):
        with pytest.raises(EncoreError, match=f"^{path}: cannot be read as audio .not a file"):
            read_audio(path, 24_000, 1)


def test_an_rf64_that_is_truncated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 1, 24_000), 24_000, format="RF64")
    assert read_audio(path, 24_000, 1).shape == (1, 24_000)
    os.truncate(path, os.path.getsize(path) - 1000)
    with pytest.raises(EncoreError, match="truncated"):
        read_audio(path, 24_000, 1)


def test_a_wav_of_more_parts_than_any_has(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\xff\xff\x7fWAVE" + b"note\0\0\0\0" * 20_000)
    with pytest.raises(EncoreError, match="has more than 10000 parts"):
        check_complete(tmp_path / "a.wav")
