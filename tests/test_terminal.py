"""What a user sees on a terminal: something at once, and at any width every name and number in full."""

from __future__ import annotations

import importlib
import io
import os
import pty
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from encore.commands import train
from encore.config import cli
from encore.config.knobs import knob
from encore.reporting.terminal import Column, folded, parts, table, that_fit
from encore.startup import NOTE
from encore.training.console import EpochMetrics, TrainConsole
from encore.training.objective import Component
from encore.training.pace import Memory, Pace, duration
from encore.training.validation import Validation
from encore.training.verdict import data_warnings, gain, unity
from tests.conftest import MODULES

ROOT = Path(__file__).parents[1]
PYTORCH = "import os\nos.write(2, b'PyTorch is imported')\nos._exit(0)\n"


@pytest.mark.parametrize(
    "command",
    [
        *([f"{name}.py"] for name in ("train_ddp", "prepare_data", "inference_sample", "evaluate", "ablate")),
        ["-c", "from encore.commands import main; main()", "evaluate"],
    ],
    ids=lambda command: command[0],
)
def test_there_is_a_sign_of_life_before_pytorch_is_imported(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(PYTORCH)
    shown = on_terminal([sys.executable, *command], {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert shown.index(NOTE) < shown.index("PyTorch is imported")


def on_terminal(command: list[str], env: dict[str, str]) -> str:
    """What a command writes to a terminal, until it ends."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        pytest.skip(f"this machine has no terminals to open ({error})")
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written, end = b"", time.monotonic() + 60
        while time.monotonic() < end and select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            written += piece
        process.kill()
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize("width", [60, 79, 80])
def test_help_cuts_no_name_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name in sorted(MODULES):
        app = importlib.import_module(MODULES[name]).app
        for flag in ("-h", "--help"):
            shown = CliRunner().invoke(app, [flag]).output
            assert "…" not in shown, (name, shown)
            assert shown.startswith("Usage:") or width >= 80 or name in ("losses", "encore.tracking"), name
    assert "--loss_weight_spectral_energy" in CliRunner().invoke(train.app, ["-h"]).output


@dataclass(frozen=True)
class Settings:
    """Two switches and an argument."""

    song: str = knob(None, "a song", argument=True)
    stream: bool = knob(False, "a switch", common=True)
    critic: bool = knob(True, "another", common=True)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a", "--stream"], ("a", True, True)),
        (["--stream", "a"], ("a", True, True)),
        (["--stream", "true", "a"], ("a", True, True)),
        (["--stream", "False", "a", "--critic", "false"], ("a", False, False)),
        (["--critic=false", "--stream", "a"], ("a", True, False)),
        (["--stream", "--critic", "a"], ("a", True, True)),
    ],
)
def test_every_switch_has_both_forms(argv: list[str], expected: tuple[str, bool, bool]) -> None:
    found: list[Settings] = []
    app = cli.new_app()
    cli.add_command(app, Settings, found.append)
    with pytest.raises(SystemExit) as ended:
        cli.run(app, argv)
    assert ended.value.code == 0
    assert (found[0].song, found[0].stream, found[0].critic) == expected


COMPONENTS = [Component(name, name, 0.5, False, None, None, True) for name in ("spectral_energy", "audible_energy")]
EPOCH = EpochMetrics(
    3,
    200,
    {"loss": 12345.6789, "spectral_energy": 1.25, "grad_norm": 0.5, "grad_share_spectral_energy": 1.0},
    1e-4,
    20.5,
    2,
    {"loss": 1.5, "spectral_energy": 1.75, "spectral_energy_attraction": 2.5, "spectral_energy_repulsion": 1.5},
    seconds_left=3723.0,
    memory=Memory(3.25, 24.0),
)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_of_an_epoch_has_every_number(width: int, tmp_path: Path) -> None:
    text = io.StringIO()
    with TrainConsole(True) as console:
        console.console = Console(file=text, width=width, highlight=False)
        console.live = True
        console.open_log(tmp_path / "train.log")
        known = {name: {"loss": 9.0 + n} for n, name in enumerate(("floor", "copy", "replay", "prior"))}
        console.baselines(COMPONENTS, known)
        console.epoch(EPOCH)
    _, _, shown = text.getvalue().partition("Epoch 3/200")
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    words = shown.split()
    for word in ("spectral_energy", "audible_energy", "12345.6789", "1.2500", "1.5000", "1.7500", "2.5000"):
        assert word in words, word
    assert ("12.0000" in words) == (width >= 80)  # the prior, if there is space; it is above the first epoch too
    assert ("11.0000" in words) == (width >= 120)
    text_of_caption = " ".join(words)
    assert "20.5 s of audio per s, GPU 3.2 of 24 GB, the run ends in 1:02:03" in text_of_caption
    assert "2 steps that were not finite" in text_of_caption
    log = (tmp_path / "train.log").read_text()
    assert "GPU 3.2 of 24 GB, the run ends in 1:02:03" in log and EPOCH.by_name(COMPONENTS)["gpu_memory_gb"] == 3.25


def test_an_address_is_not_broken() -> None:
    text = io.StringIO()
    with TrainConsole(True) as console:
        console.console, console.live = Console(file=text, width=40), True
        console.print("two words and more words than fit into one line")
        console.print(f"charts: http://127.0.0.1:5000/{'a' * 50}")
    assert f"http://127.0.0.1:5000/{'a' * 50}" in text.getvalue() and len(text.getvalue().splitlines()) == 3


def test_a_log_has_a_line_of_progress_every_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("encore.training.console.time.monotonic", lambda: now)
    with TrainConsole(True) as console:
        console.open_log(tmp_path / "train.log")
        with console.task("encoding", 100) as advance:
            for _ in range(100):
                now += 2.0
                advance("half")
    lines = [f"encoding: {done} of 100, half" for done in (30, 60, 90)]
    assert (tmp_path / "train.log").read_text().split("\n")[1:-1] == lines
    assert capsys.readouterr().out.splitlines() == lines


def test_the_time_that_is_left_counts_validations_and_not_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("encore.training.pace.time.monotonic", lambda: now)
    pace = Pace()
    assert pace.left(10, 1) is None
    for seconds in (60.0, 2.0, 4.0):
        now += seconds
        pace.stepped()
    pace.validated(7.0)
    assert pace.left(10, 2) == 10 * 3.0 + 2 * 7.0
    now += 1000.0  # of a validation
    pace.begin()
    now += 3.0
    pace.stepped()
    assert pace.left(1, 0) == 3.0 and duration(59.6) == "1:00" and duration(3723) == "1:02:03"


def found(*totals: float) -> Validation:
    return Validation({"loss": sum(totals) / len(totals)}, [*totals])


def test_the_end_of_training_says_what_was_gained() -> None:
    prior, better = found(*([1.0, 2.0] * 5)), found(*([0.9, 1.7] * 5))
    recordings = [f"{n}.wav" for n in range(10)]
    assert gain(better, {"copy": prior, "prior": prior}, recordings) == [
        "Better than its prior alone by 13% ± 1 (on 10 validation pairs of 10 recordings, on which it was chosen)."
    ]
    assert gain(better, {"copy": prior}, recordings)[0].startswith("Better than the input's end, played again, by 13")
    assert "untrained" in gain(prior, {"prior": prior}, recordings)[0]
    one = gain(better, {"prior": prior}, ["a.wav"] * 10)
    assert one[0].startswith("No interval, so nothing is known against its prior alone (13%)")
    assert "rough" in gain(better, {"prior": prior}, ["a.wav", "b.wav"] * 5)[1]
    assert gain(Validation({"loss": 1.0}, []), {"prior": prior}, recordings) == []  # resumed from an older checkpoint


def test_few_validation_recordings_are_warned_of() -> None:
    assert "all 3 validation pairs are of one recording (a.wav)" in data_warnings(["a.wav"] * 3)[0]
    assert "4 validation pairs of 2 recordings are few" in data_warnings(["a.wav", "b.wav"] * 2)[0]
    assert data_warnings([f"{n}.wav" for n in range(8)]) == data_warnings([None] * 3) == []


def test_a_unity_test_passes_or_not() -> None:
    assert unity(0.0296, 0.0280) == "Unity test: reached the codec's floor: 0.0296 against 0.0280, passed."
    assert "has not reached the codec's floor: 0.0500 against 0.0280, not passed" in unity(0.05, 0.028)


def test_names_are_folded_between_words_and_columns_stand_in_parts() -> None:
    assert folded("multi_resolution_stft ↑") == "multi_\nresolution_\nstft ↑"
    label = Column("", ["row"], left=True)
    columns = [Column(f"head {n}", ["1.0"]) for n in range(5)]
    assert [len(part) for part in parts(label, columns, 30)] == [3, 2]
    assert [len(part) for part in parts(label, columns, 5)] == [1] * 5
    assert that_fit(label, columns[:1], columns[1:], 22) == columns[:2]
    text = io.StringIO()
    console = Console(file=text, width=29)
    console.print(table(label, columns[:3]))
    assert max(map(len, text.getvalue().splitlines())) == 27 and "head 2" in text.getvalue()
