"""Wavs that grow while they are generated, and the part that is kept in memory."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import Tensor

from encore.audio import start_wav
from encore.inference.streaming import WavWriter, WrittenContinuation, wav_name, write_stream
from encore.inference.threads import use_one_thread

RATE, PIECE, PIECES = 8000, 1000, 20
CONTEXT = torch.linspace(-1, 1, 3000)[None]


def pieces(stop_after: int = PIECES) -> Iterator[Tensor]:
    """The context and numbered pieces of two candidates; Ctrl-C after `stop_after` pieces."""
    yield CONTEXT.expand(2, -1, -1)
    for number in range(PIECES):
        if number == stop_after:
            raise KeyboardInterrupt
        yield torch.tensor([number / 100, -number / 100])[:, None, None].expand(2, 1, PIECE)


def run(folder: Path, stop_after: int = PIECES, stream: bool = True, keep: int = 2500) -> WrittenContinuation:
    writer = WavWriter(folder, RATE, CONTEXT.shape[-1], PIECE * PIECES, stream)
    return write_stream(CONTEXT[None], pieces(stop_after), [writer], keep, Console(file=io.StringIO()))[0]


def check_files(folder: Path, count: int) -> None:
    for candidate, sign in ((0, 1), (1, -1)):
        made = soundfile.read(folder / wav_name("continuation", candidate))[0]
        whole, rate = soundfile.read(folder / wav_name("full", candidate))
        assert rate == RATE and len(made) == count * PIECE
        np.testing.assert_allclose(made, sign * np.repeat(np.arange(count) / 100, PIECE), atol=1e-4)
        np.testing.assert_allclose(whole, np.concatenate([CONTEXT[0], made]), atol=1e-4)


@pytest.mark.parametrize("stream", [True, False])
def test_everything_is_written_and_the_beginning_is_kept(tmp_path: Path, stream: bool) -> None:
    (tmp_path / "continuation.wav").write_text("from an earlier run")
    made = run(tmp_path, stream=stream)
    assert made.complete and made.samples == PIECES * PIECE
    check_files(tmp_path, PIECES)
    assert len(list(tmp_path.iterdir())) == 4
    assert made.beginning.audio.shape == (2, 1, 2500)
    torch.testing.assert_close(made.beginning.full[..., :3000], CONTEXT.expand(2, -1, -1))
    assert made.beginning.audio[1, 0, ::500].tolist() == pytest.approx([0, 0, -0.01, -0.01, -0.02])


def test_a_stopped_stream_leaves_complete_files(tmp_path: Path) -> None:
    made = run(tmp_path, stop_after=2)
    assert not made.complete and made.samples == 2 * PIECE
    assert made.beginning.audio.shape == (2, 1, 2 * PIECE)
    check_files(tmp_path, 2)


def test_without_stream_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=2, stream=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_files_are_complete_after_every_piece_and_memory_does_not_grow(tmp_path: Path) -> None:
    lengths, living = [], []

    def watched() -> Iterator[Tensor]:
        for number, piece in enumerate(pieces()):
            if number:
                lengths.append(soundfile.info(tmp_path / "full_2.wav").frames)
                if number in (7, 13, 20):
                    gc.collect()
                    tensors = (item for item in gc.get_objects() if type(item) is Tensor)
                    living.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
            yield piece

    writer = WavWriter(tmp_path, RATE, CONTEXT.shape[-1], PIECE * PIECES, stream=True)
    write_stream(CONTEXT[None], watched(), [writer], 2500, Console(file=io.StringIO()))
    assert lengths == [3000 + number * PIECE for number in range(PIECES)]
    assert living[0] == living[1] == living[2]


def test_beyond_four_gigabytes_a_wav_is_an_rf64(tmp_path: Path) -> None:
    for samples, name in ((2**30, "RIFF"), (2**31, "RF64")):
        start_wav(tmp_path / "a.wav", 1, 48000, samples)
        assert (tmp_path / "a.wav").read_bytes()[:4].decode() == name


def test_playing_uses_one_thread_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        use_one_thread()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        use_one_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
