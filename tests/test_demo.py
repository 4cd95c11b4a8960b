"""The synthesised music of the demonstration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from encore.config import cli
from encore.data.demo import app, pluck


def make(folder: Path, *flags: str) -> list[np.ndarray]:
    result = CliRunner().invoke(app, [str(folder), *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [soundfile.read(path)[0] for path in sorted(folder.iterdir())]


@pytest.mark.slow
def test_files_are_music_at_a_fixed_level(tmp_path: Path) -> None:
    pieces = make(tmp_path, "--files", "4", "--seconds", "9")
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"demo_{k:02d}.wav" for k in range(4)]
    for path, piece in zip(sorted(tmp_path.iterdir()), pieces, strict=True):
        header = soundfile.info(path)
        assert (header.samplerate, header.channels, header.frames) == (24_000, 1, 9 * 24_000)
        assert 20 * np.log10(np.sqrt(np.mean(piece**2))) == pytest.approx(-18, abs=0.5)
        assert np.abs(piece).max() < 0.95
        # No second is silent.
        assert np.sqrt(np.mean(piece.reshape(9, -1) ** 2, 1)).min() > 0.05


@pytest.mark.slow
def test_a_seed_gives_the_same_files_and_each_file_differs(tmp_path: Path) -> None:
    first = make(tmp_path / "a", "--files", "2", "--seconds", "3")
    again = make(tmp_path / "b", "--files", "3", "--seconds", "3")
    other = make(tmp_path / "c", "--files", "2", "--seconds", "3", "--seed", "1")
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=False))
    for x, y in ((first[0], first[1]), (first[0], other[0])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.5


@pytest.mark.slow
def test_the_music_repeats_so_that_a_continuation_can_be_right(tmp_path: Path) -> None:
    """The progression returns after eight beats, at 100 to 140 beats a minute: 3.4 to 4.8 s."""
    for piece in make(tmp_path, "--files", "3", "--seconds", "12"):
        transform = np.abs(np.fft.rfft(piece, 2 * len(piece))) ** 2
        likeness = np.fft.irfft(transform)[: len(piece)] / (len(piece) - np.arange(len(piece)))
        likeness /= likeness[0]
        assert likeness[int(3.4 * 24_000) : int(4.85 * 24_000)].max() > 0.5


def test_a_pluck_sounds_at_its_pitch_and_fades() -> None:
    note = pluck(220, 1.0, 0.3, 0.7)
    assert np.argmax(np.abs(np.fft.rfft(note))) == 220
    assert np.abs(note[-2400:]).max() < 0.1 * np.abs(note[:2400]).max()


@pytest.mark.slow
def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.run(app, [str(tmp_path / "file/music")])
    assert ended.value.code == 2 and "cannot be written" in capsys.readouterr().err
