"""Experiment tracking: the `Tracker` that a training run logs to, and the MLflow runs of evaluations and ablations."""

from __future__ import annotations

from encore.registry import TRACKERS
from encore.tracking.mlflow_tracker import SPOOL, MlflowTracker
from encore.tracking.none import NoTracker
from encore.tracking.runs import EvaluationRun, NestedRuns, download_artifact, log_evaluation, open_run
from encore.tracking.tensorboard_tracker import TensorBoardTracker
from encore.tracking.tracker import Tracker, build_tracker, preparing, register_tracker
from encore.tracking.wandb_tracker import WandbTracker

__all__ = [
    "SPOOL",
    "TRACKERS",
    "EvaluationRun",
    "MlflowTracker",
    "NestedRuns",
    "NoTracker",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "build_tracker",
    "download_artifact",
    "log_evaluation",
    "open_run",
    "preparing",
    "register_tracker",
]
