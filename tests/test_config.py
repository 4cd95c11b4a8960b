"""The configuration and the flags that are made from it."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import losses
from encore.config import cli
from encore.config.checks import validate
from encore.config.components import ADVERSARIAL, registered_name
from encore.config.knobs import knobs_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.training.launcher import ranks_here
from tests.conftest import MODULES, ROOT, Command


def parse(*flags: str) -> TrainConfig:
    app = cli.new_app()
    seen: list[TrainConfig] = []
    cli.add_command(app, TrainConfig, seen.append)
    result = CliRunner().invoke(app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (config,) = seen
    return config


def test_defaults_come_from_the_fields() -> None:
    assert parse() == TrainConfig()


def test_flags_set_fields_with_underscores_dashes_and_booleans() -> None:
    config = parse(
        *("--dataset_folder", "a b", "--loss-weight-mel", "0.25", "--unity_test", "true", "--compile", "False"),
        *("--max_steps", "7", "--resume", "auto"),
    )
    expected = TrainConfig.from_flags(
        dataset_folder=Path("a b"), loss_weight_mel=0.25, unity_test=True, compile=False, max_steps=7, resume="auto"
    )
    assert config == expected


def test_a_configuration_survives_flags_and_json() -> None:
    changed: dict[str, Any] = {
        "dataset_folder": Path("x"), "codec_repository": Path("y z"), "decode_seconds": 1.5, "precision": "fp32",
        "world_size": 3, "run_name": "a run", "lr": 3e-5,
    }  # fmt: skip
    config = TrainConfig.from_flags(**changed)
    assert parse(*config.to_argv()) == config
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_every_field_has_help_group_and_default() -> None:
    for one in knobs_of(TrainConfig):
        assert one.help and one.panel, one.name
        assert one.default is not dataclasses.MISSING, one.name


def test_every_registered_loss_has_its_weight() -> None:
    weights = {
        one.name.removeprefix("loss_weight_") for one in knobs_of(TrainConfig) if one.name.startswith("loss_weight_")
    }
    assert weights == {"input", "target", *ADVERSARIAL} | set(losses.REGISTRY) - {"rms"}
    assert {registered_name(name) for name in TrainConfig().objective.weights} - {*ADVERSARIAL} == set(losses.REGISTRY)


def test_components_have_the_weights_of_their_flags_and_name_them() -> None:
    config = TrainConfig.from_flags(loss_weight_input=0.5, loss_weight_mel=2.0, metrics=" mel, si_sdr,")
    trained = {name: weight for name, weight in config.objective.weights.items() if weight}
    assert trained == {"rms_input": 0.5, "mel": 2.0}
    assert (
        config.objective.metric_names == ("mel", "si_sdr")
        and TrainConfig.from_flags(metrics="").objective.metric_names == ()
    )
    flags = [config.objective.flag_of(name) for name in ("rms_input", "mel", "si_sdr")]
    assert flags == ["--loss_weight_input 0.5", "--loss_weight_mel 2", "--metrics si_sdr"]


def test_what_is_left_open_follows_from_the_objective() -> None:
    def settled(**settings: Any) -> tuple[str | None, str | None, dict[str, float]]:
        config = TrainConfig.from_flags(**settings).resolved()
        assert config.resolved() == config
        return (
            config.objective.kind,
            config.model.generation,
            {name: w for name, w in config.objective.weights.items() if w},
        )

    assert settled() == ("energy", "blocks", {"spectral_energy": 1.0})
    assert settled(unity_test=True) == ("regression", "whole", {"rms_target": 1.0})
    assert settled(objective="regression") == ("regression", "whole", {"rms_target": 1.0})
    assert settled(objective="regression", generation="blocks")[1] == "blocks"
    assert settled(generation="whole", loss_weight_mel=2.0) == ("energy", "whole", {"mel": 2.0})


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"loss_weight_mel": -0.5}, "--loss_weight_mel -0.5"),
        ({"loss_weight_gan": 0.5}, "--loss_weight_gan 0.5: needs another loss"),
        ({"loss_weight_target": float("nan")}, "--loss_weight_target nan"),
        ({"objective": "likelihood"}, "--objective likelihood: must be one of regression, energy"),
        ({"generation": "frames"}, "--generation frames: must be one of blocks, whole"),
        ({"prior": "loop"}, "--prior loop: must be one of "),
        ({"samples": 1}, "--samples 1: must be a whole number from 2 to 1024"),
        ({"block_seconds": 0.0}, "--block_seconds 0.0: must be a number from 0.001 to 3600"),
        ({"block_seconds": float("inf")}, "--block_seconds inf"),
        ({"context_seconds": 0.0}, "--context_seconds 0.0: must be a number from 0.001 to "),
        ({"context_noise": -0.1}, "--context_noise -0.1"),
        ({"context_noise": float("nan")}, "--context_noise nan"),
        ({"rollout_blocks": -1}, "--rollout_blocks -1"),
        ({"rollout_blocks": 2, "generation": "whole"}, "--rollout_blocks 2 --generation whole"),
        ({"rollout_blocks": 2, "objective": "regression"}, "--rollout_blocks 2 --generation whole"),
        ({"unity_test": True, "objective": "energy"}, "--unity_test true --objective energy"),
        ({"metrics": "mel, lpips,rms,gan"}, "--metrics lpips,rms,gan: no such loss; there are rms_input, rms_target, "),
        ({"balancer_shrink": True}, "--balancer_shrink true"),
        ({"embedding_weights": Path("/no/such.pth")}, "--embedding_weights /no/such.pth"),
        ({"embedding_model": "vggish"}, "--embedding_model vggish: must be one of codec, crepe, panns, openl3"),
        ({"gan_type": "wasserstein"}, "--gan_type wasserstein"),
        ({"disc_lr": 0.0}, "--disc_lr 0"),
        ({"disc_update_freq": 0}, "--disc_update_freq 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": 0.0}, "--lr 0"),
        ({"scheduler": "step"}, "--scheduler step"),
        ({"nhead": 7}, "--d_model 512 --nhead 7"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"dataset_folder": None}, "--dataset_folder"),
        ({"dataset_folder": Path("/no/such")}, "--dataset_folder /no/such"),
        ({"resume": "/no/such.pt"}, "--resume /no/such.pt"),
        ({"checkpoint_dir": Path("/proc/no")}, "--checkpoint_dir /proc/no"),
        ({"codec_repository": Path("/no/such")}, "--codec_repository /no/such"),
        ({"unity_test": True, "shuffle_targets": True}, "--unity_test true --shuffle_targets true"),
        ({"nnodes": "two"}, "--nnodes two"),
        ({"nnodes": "2"}, "--rdzv_endpoint"),
    ],
)
def test_a_bad_value_is_named_with_its_flag(changes: dict, flag: str, tmp_path: Path) -> None:
    good = TrainConfig.from_flags(dataset_folder=tmp_path, checkpoint_dir=tmp_path / "checkpoints")
    validate(good.resolved())
    with pytest.raises(EncoreError, match="(?s).*" + flag.replace("(", r"\(")) as caught:
        validate(TrainConfig.from_flags(good.to_dict(), **changes).resolved())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_all_problems_are_reported_together(call_command: Command, tmp_path: Path) -> None:
    flags = ("--dataset_folder", "nowhere", "--lr", "-1", "--scheduler", "x", "--objective", "x")
    result = call_command("train_ddp.py", *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: --") for line in lines)
    for flag in ("--dataset_folder nowhere", "--lr -1.0", "--scheduler x", "--objective x"):
        assert flag in result.stderr


def test_an_unknown_flag_is_refused_with_a_suggestion(call_command: Command, tmp_path: Path) -> None:
    result = call_command("train_ddp.py", "--loss_weight_targt", "1", cwd=tmp_path)
    assert result.returncode == 2
    assert "--loss_weight_targt" in result.stderr and "--loss_weight_target" in result.stderr
    assert "Traceback" not in result.stderr


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # there is no such machine at hand
    assert ranks_here(TrainConfig()) == 2
    with pytest.raises(EncoreError, match="--world_size 3: this machine has 2 GPUs"):
        ranks_here(TrainConfig.from_flags(world_size=3))


@pytest.mark.parametrize("script", [name for name in MODULES if name.endswith(".py") and name != "train_worker.py"])
def test_a_script_is_its_command(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    assert f"Usage: {script}" in capsys.readouterr().out
