"""Command lines: files of flags, help, plugins, and the command `encore`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import encore.models.priors  # noqa: F401 (registers the choices of --prior)
from encore.commands import main
from encore.commands.prepare import PrepareConfig
from encore.config import cli
from encore.config.files import read_flags
from encore.config.knobs import knobs_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.evaluation.config import EvalConfig
from encore.registry import Registry
from tests.conftest import ENVIRONMENT, Command
from tests.test_config import parse


def test_a_file_sets_flags_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "lr: 1e-3\nunity_test: true\nprecision: fp32\nloss_weight_mel: 2\nresume: null\ndataset_folder: a b\n"
    )
    expected: dict[str, Any] = {"lr": 1e-3, "precision": "fp32", "loss_weight_mel": 2.0, "dataset_folder": Path("a b")}
    assert parse("--config", str(path)) == TrainConfig.from_flags(**expected, unity_test=True)
    flags = ("--unity_test", "false", "--lr", "0.5")
    overridden = TrainConfig.from_flags(**{**expected, "lr": 0.5})
    assert parse(*flags, "--config", str(path)) == parse("--config", str(path), *flags) == overridden


def test_the_configuration_that_a_run_has_saved_is_a_file_of_flags(tmp_path: Path) -> None:
    config = TrainConfig.from_flags(epochs=3, prior="none", loss_weight_stft=0.5, metrics="mel", max_steps=7)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert parse("--config", str(tmp_path / "config.json")) == config


def test_a_file_may_name_the_plugins_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.config.files.LOADED", {"mine.py"})
    (tmp_path / "flags.yaml").write_text("plugins: mine.py\nitems: 3\n")
    assert read_flags(tmp_path / "flags.yaml", EvalConfig) == {"items": 3}  # a configuration without plugins


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("lrr: 1\nepochs: many\ncompile: 1\n", ["lrr: there is no such flag; did you mean lr?",
                                                 "epochs: 'many' is not a whole number",
                                                 "compile: 1 is not true or false"]),
        ("- lr\n", ["must hold flags and their values"]),
        ("lr: 1\nlr: 2\n", ["lr is there twice"]),
        ("lr: [", ["expected"]),
    ],
)  # fmt: skip
def test_all_that_is_wrong_with_a_file_is_reported_with_its_name(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(EncoreError) as caught:
        parse("--config", str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(f"--config {path}") and problem in line
    with pytest.raises(EncoreError, match="cannot be read"):
        parse("--config", str(tmp_path / "none.yaml"))


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"--(\w+)", text))


def test_help_shows_the_usual_flags_and_help_all_every_one() -> None:
    app = cli.new_app()
    cli.add_command(app, TrainConfig, lambda config: None)
    usual, every = (
        CliRunner().invoke(app, [flag], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
        for flag in ("--help", "--help_all")
    )
    settings = knobs_of(TrainConfig)
    common, own = {one.name for one in settings if one.common}, {"config", "help", "help_all"}
    assert 20 <= len(common) <= 28
    assert flags_in(usual) == common | own
    assert f"{len(settings) - len(common)} more flags: --help_all" in usual
    assert {one.name for one in settings} <= flags_in(every)
    assert CliRunner().invoke(app, ["-h"]).exit_code == 0
    narrow = CliRunner().invoke(app, ["--help_all"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    assert {one.name for one in settings} <= flags_in(narrow)  # no name is cut
    for panel in {one.panel for one in settings}:
        assert f"{panel}:\n" in narrow


def test_help_does_not_count_arguments_among_hidden_flags() -> None:
    app = cli.new_app()
    cli.add_command(app, PrepareConfig, lambda config: None)
    usual, every = (CliRunner().invoke(app, [flag]).output for flag in ("--help", "--help_all"))
    assert "MUSIC_FOLDER" in usual and "more flags" not in usual
    assert "Arguments:\n  MUSIC_FOLDER <path>" in every


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in Python 3.11")
def test_files_in_the_current_folder_hide_no_modules(tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text("1 / 0\n")
    command = [sys.executable, "-m", "encore.commands.train_worker", "--help"]
    environment = {**ENVIRONMENT, **cli.importable()}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_registry_names_its_choices_and_refuses_a_name_twice() -> None:
    registry: Registry[int] = Registry("prior", "--prior")
    registry.register("one")(1)
    registry.register("two")(2)
    assert list(registry) == ["one", "two"] and registry.find("two") == 2
    with pytest.raises(ValueError, match="prior 'one' is registered twice: 1 and 3"):
        registry.register("one")(3)
    with pytest.raises(EncoreError, match=r"--prior tow: no such prior; did you mean two\?; there are one, two"):
        registry.find("tow")


def test_a_plugin_that_fails_is_named_with_its_error(call_command: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for plugin, reason in (("broken.py", "ZeroDivisionError"), ("none.py", "No such file"), ("no_module", "no_module")):
        result = call_command("train_ddp.py", "--plugins", plugin, cwd=tmp_path)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: --plugins {plugin}: ") and reason in line


def test_the_command_encore_has_the_entry_points_as_subcommands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["encore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    status, listing, _ = run("--help")
    assert status == 0
    for name in ("prepare", "train", "sample", "evaluate", "ablate", "losses", "train_codec"):
        assert re.search(rf"\b{name}\b", listing)
    status, text, _ = run("train", "--help")
    assert status == 0 and "encore train" in text and "--dataset_folder" in text
    status, _, errors = run("train", "--lr", "-1", "--dataset_folder", "nowhere")
    assert status == 2
    assert [line.split(":")[1] for line in errors.splitlines()] == [" --lr -1.0", " --dataset_folder nowhere"]


def test_a_file_does_not_decide_what_code_is_run(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    (tmp_path / "run.yaml").write_text("plugins: planted.py\n")
    with pytest.raises(
        EncoreError, match=r"run.yaml: plugins: name them on the command line too: --plugins planted\.py"
    ):
        parse("--config", str(tmp_path / "run.yaml"))
    assert not (tmp_path / "planted.ran").exists()


def test_a_plugin_loss_cannot_take_the_flag_of_another(call_command: Command, tmp_path: Path) -> None:
    code = 'from losses import register\n\n@register("input")\ndef mine(prediction, target):\n    """Mine."""\n'
    (tmp_path / "mine.py").write_text(code)
    result = call_command("train_ddp.py", "--plugins", "mine.py", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the loss 'input' (losses_plugin_mine.mine) has the name of a component")
