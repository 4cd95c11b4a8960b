"""Experiment tracking: the `Tracker` that a training run logs to, and the MLflow runs of evaluations and ablations."""

from __future__ import annotations

from encore.tracking.mlflow import MlflowTracker
from encore.tracking.runs import EvaluationRun, NestedRuns, download_artifact, log_evaluation, open_run
from encore.tracking.tracker import TRACKERS, Tracker, TrackingSettings, build_tracker, register_tracker

__all__ = [
    "TRACKERS",
    "EvaluationRun",
    "MlflowTracker",
    "NestedRuns",
    "Tracker",
    "TrackingSettings",
    "build_tracker",
    "download_artifact",
    "log_evaluation",
    "open_run",
    "register_tracker",
]
