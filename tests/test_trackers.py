"""What trackers say about a run, and those besides MLflow: TensorBoard and wandb, each when a run is resumed too."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from mlflow.tracking import MlflowClient
from PIL import Image

from encore.config.checks import validate
from encore.config.schema import TrackingConfig, TrainConfig
from encore.errors import EncoreError
from encore.registry import TRACKERS
from encore.tracking import Tracker, build_tracker
from encore.tracking.description import named, source, tags
from encore.tracking.groups import first_screen, grouped


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "energy"),
        ({"unity_test": True}, "unity test"),
        ({"shuffle_targets": True, "num_workers": 9}, "shuffled targets, energy"),
        ({"objective": "regression", "loss_weight_mel": 0.5, "lr": 1e-3}, "regression, mel 0.5, lr 0.001"),
        ({"checkpoint_dir": "runs/wide", "d_model": 1024, "prior": "none"}, "wide: energy, d_model 1024, prior none"),
        (
            {"loss_weight_mel": 1, "clip_norm": 0.5, "weight_decay": 0.5, "dropout": 0.0, "nhead": 4, "ema_decay": 0.9},
            "energy, mel 1, nhead 4, dropout 0, weight_decay 0.5 +2",
        ),
        ({"run_name": "mine", "lr": 1e-3}, "mine"),
    ],
)
def test_a_run_is_named_by_what_it_does_differently(flags: dict[str, Any], name: str) -> None:
    assert named(TrainConfig.from_flags(flags).resolved()).run_name == name


def test_grouped_names() -> None:
    names = {
        "train_loss": "loss/train",
        "val_loss": "loss/val",
        "train_mel": "loss/train_mel",
        "val_snr_db": "loss/val_snr_db",
        "grad_share_mel": "share/mel",
        "grad_norm": "run/grad_norm",
        "prior_mel": "baseline/prior_mel",
        "floor_loss": "baseline/floor_loss",
        "learning_rate": "run/learning_rate",
    }
    assert {name: grouped(name) for name in names} == names
    first = first_screen(dict.fromkeys([*names, "val_mel_repulsion"], 1.0))
    assert set(first) == {"loss/train", "loss/val", "loss/val_snr_db", "share/mel"}


def test_mlflow_gets_names_to_filter_by_and_says_where_the_charts_are(tmp_path: Path, store: str) -> None:
    lines: list[str] = []
    config = TrainConfig.from_flags(mlflow_uri=store, experiment="described", codec="starter", dataset_folder="a/songs")
    config = config.resolved()
    tracker = build_tracker(named(config), None, tmp_path, lines.append)
    tracker.tags(tags(config) | source())
    tracker.metrics({"prior_loss": 2.0}, step=0)
    tracker.metrics({"val_loss": 1.0, "learning_rate": 0.1}, step=1)
    tracker.close("FINISHED")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("described").experiment_id
    (run,) = client.search_runs([experiment], "tags.codec = 'starter' and tags.kind = 'training'")
    assert run.info.run_name == "energy, codec starter"
    assert run.data.tags["losses"] == "1 spectral_energy" and run.data.tags["dataset"] == "songs"
    assert run.data.tags["mlflow.source.name"] and run.data.tags["mlflow.user"] == source()["user"]
    assert run.data.tags.get("mlflow.source.git.commit") == source().get("commit")
    assert run.data.metrics == {"prior_loss": 2.0, "val_loss": 1.0, "loss/val": 1.0, "learning_rate": 0.1}
    assert lines[0].endswith(f"mlflow ui --host 127.0.0.1 --backend-store-uri {store}")
    assert f"/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART" in lines[1]
    assert f"/runs/{run.info.run_id}/model-metrics" in lines[2]


def example(folder: Path) -> Path:
    """A folder as training makes it for a validation example."""
    folder.mkdir()
    soundfile.write(folder / "prediction.wav", np.full((240, 2), 0.5), 24000)
    Image.new("RGB", (8, 6), (255, 0, 0)).save(folder / "spectrograms.png")
    return folder


def track_twice(name: str, folder: Path, examples: Path) -> tuple[list[str], str]:
    """Logs epochs 1 and 2, and 2 and 3 in a resumed run; returns what was printed, and the run's id."""
    lines: list[str] = []
    settings, run_id = TrackingConfig(tracker=name, run_name="a name"), None
    for epochs in ((1, 2), (2, 3)):
        tracker = build_tracker(settings, run_id, folder, lines.append)
        assert run_id in (None, tracker.run_id)
        run_id = tracker.run_id
        tracker.params({"lr": 0.1, "run_name": None})
        tracker.tags({"codec": "starter"})
        tracker.metrics({"prior_loss": 4.0}, step=0)
        for epoch in epochs:
            tracker.metrics({"val_loss": 3.0 - epoch, "learning_rate": 0.1}, step=epoch)
            if epoch == 2:
                tracker.artifact(examples, "examples/epoch_0002")
            tracker.flush()
        tracker.close("FINISHED")
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()  # as at the end of a process
            ended = int(
                time.time()
            )  # wandb names a run's folder by the second of its start, so the next one needs another
            while int(time.time()) == ended:
                time.sleep(0.02)
    assert run_id is not None
    return lines, run_id


def test_tensorboard_has_one_row_for_each_epoch_and_examples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines, _ = track_twice("tensorboard", tmp_path / "run", example(tmp_path / "example"))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    rows = {tag: [(row.step, row.value) for row in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert rows["loss/val"] == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert rows.keys() == {"loss/val", "run/learning_rate"} and len(rows["run/learning_rate"]) == 3
    (baseline,) = found.Tensors("baseline/prior/text_summary")
    assert b"| baseline/prior_loss | 4.0 |" in baseline.tensor_proto.string_val[0]
    (audio,) = found.Audio("examples/prediction")
    (picture,) = found.Images("examples/spectrograms")
    assert (audio.step, audio.sample_rate, audio.length_frames) == (2, 24000.0, 240)
    assert (picture.step, picture.width, picture.height) == (2, 8, 6)
    assert any("--logdir" in line and "tensorboard" in line for line in lines) and "failed" not in " ".join(lines)


def records(path: Path) -> Iterator[Any]:
    """The records of wandb's file, in LevelDB's format: blocks of 32 KiB, parts with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_wandb_offline_needs_no_network_and_continues_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines, run_id = track_twice("wandb", tmp_path / "run", example(tmp_path / "example"))
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    rows: list[tuple[int, float]] = []
    media = []
    for file in files:
        for record in records(file):
            if record.HasField("run"):
                assert (record.run.run_id, record.run.display_name) == (run_id, "a name")
            if record.HasField("history"):
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                rows.append((row["_step"], row["loss/val"]))
                media += [row["_step"]] * ({"examples/prediction/path", "examples/spectrograms/path"} <= row.keys())
    assert rows == [(1, 2.0), (2, 1.0), (3, 0.0)] and media == [2]
    assert lines == [f"wandb: kept offline; send it with: wandb sync {tmp_path}/run/wandb/offline-run-*{run_id}"] * 2


class Failing(Tracker):
    """Fails whenever it is called."""

    requires = ("no_such_package",)

    def __init__(self, *unused: object) -> None:
        self.run_id = "its id"

    def metrics(self, *unused: object) -> None:
        raise OSError("disk is gone")

    def close(self, *unused: object) -> None:
        raise RuntimeError("never")


@pytest.fixture
def failing() -> Iterator[str]:
    TRACKERS.register("failing")(Failing)
    yield "failing"
    del TRACKERS._entries["failing"]


def test_a_tracker_that_fails_is_named_once_and_does_not_end_training(tmp_path: Path, failing: str) -> None:
    lines: list[str] = []
    tracker = build_tracker(TrackingConfig(tracker=failing), None, tmp_path, lines.append)
    for step in (1, 2):
        tracker.metrics({"loss": 1.0}, step)
    tracker.close("FINISHED")
    assert lines == [
        "--tracker failing: metrics failed (disk is gone); training continues",
        "--tracker failing: close failed (never); training continues",
    ]
    assert tracker.run_id == "its id"


def test_a_missing_package_is_named_before_anything_begins(tmp_path: Path, failing: str) -> None:
    config = TrainConfig.from_flags(tracker=failing, dataset_folder=tmp_path, checkpoint_dir=tmp_path / "run")
    with pytest.raises(EncoreError, match="needs no_such_package, which is not installed: pip install -r requ"):
        validate(config.resolved())
