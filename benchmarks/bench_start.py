"""The processor time from starting a training run to its first optimiser step, by stage.

python -m benchmarks.bench_start [--repeats 5] [--profile FILE]

Runs `train_ddp.py` and one rank of it on a cached data set of the demonstration's music (4 s segments, starter codec),
with the default model and objective, with and without a tracker; each on one thread. Cases are run in turn; figures are
the least of all repeats, in seconds of user and system time of all of a process's threads. `--profile` writes the
profile (cProfile) of a rank without a tracker up to its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.conftest import ONE_RANK, ROOT

STAGES = ("import torch", "imports beyond torch", "process group", "codec and data", "model", "run", "first step")
TRACKERS = ("none", "mlflow")
RANK = """
import json, os, sys, time
marks = [time.process_time()]
mark = lambda: marks.append(time.process_time())
import torch
mark()
import encore.commands.train_worker as worker
mark()
from encore.training.step import Step
from encore.training.trainer import Trainer
target, profile, trainers = sys.argv[1], None, []
if target:
    import cProfile
    profile = cProfile.Profile()

def marked(kind, name, before=False, last=False):
    function = getattr(kind, name)
    def wrapped(self, *arguments):
        if kind is Trainer:
            trainers.append(self)
        if before:
            mark()
        result = function(self, *arguments)
        if not before:
            mark()
        if last:
            if profile:
                profile.disable()
                profile.dump_stats(target)
            if trainers[0].tracker is not None:
                trainers[0].tracker.close("KILLED")
            mark()
            print(json.dumps(marks), file=sys.stderr, flush=True)
            os._exit(0)
        return result
    setattr(kind, name, wrapped)

from encore.training import build
from_config, build_state = Trainer.from_config, build.build_state
Trainer.from_config = lambda *arguments: (mark(), from_config(*arguments))[1]
build.build_state = lambda *arguments: (mark(), build_state(*arguments))[1]
marked(Trainer, "start_run", before=True)
marked(Trainer, "train_epoch", before=True)
marked(Step, "apply", last=True)
if profile:
    profile.enable()
sys.argv[1:] = sys.argv[2:]
worker.run()
"""
LAUNCHER = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""
ENVIRONMENT = {**os.environ, **ONE_RANK, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *arguments: object) -> str:
    """Runs Python in `folder`; the last line of its errors."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    return (result.stderr.splitlines() or [""])[-1]


def flags(tracker: str) -> list[object]:
    return [
        *("--dataset_folder", "pairs", "--codec", "starter", "--batch_size", 2, "--num_workers", 0),
        *("--max_steps", 1, "--epochs", 1, "--tracker", tracker, "--checkpoint_dir", tracker),
    ]


def stages(folder: Path, tracker: str, profile: Path | None = None) -> list[float]:
    """Seconds of each stage of a rank, and of the tracker's work that is left after the first step."""
    marks = json.loads(run(folder, "-c", RANK, profile or "", *flags(tracker)))
    return [later - earlier for earlier, later in zip(marks, marks[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="file to write")
    options = parser.parse_args()
    measured: dict[str, list[list[float]]] = {tracker: [] for tracker in TRACKERS}
    launcher: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(folder, "-m", "encore.data.demo", "music", "--files", 6)
        lengths = ("--context_seconds", 4, "--segment_seconds", 4, "--test_fraction", 0)
        run(folder, ROOT / "prepare_data.py", "music", "--output", "pairs", *lengths, "--num_workers", 0)
        for tracker in TRACKERS:  # fill the caches, and create the tracker's store
            run(folder, ROOT / "train_ddp.py", *flags(tracker))
        for _ in range(options.repeats):
            for tracker in TRACKERS:
                measured[tracker].append(stages(folder, tracker))
            launcher.append(float(run(folder, "-c", LAUNCHER, ROOT / "train_ddp.py", *flags("none"))))
        if options.profile is not None:
            stages(folder, "none", options.profile.resolve())
    report(measured, min(launcher))


def report(measured: dict[str, list[list[float]]], launcher: float) -> None:
    table = Table(title="Start of a training run: processor seconds", title_justify="left")
    table.add_column("stage")
    for tracker in TRACKERS:
        table.add_column(f"--tracker {tracker}", justify="right")
    columns = [[min(values) for values in zip(*measured[tracker], strict=True)] for tracker in TRACKERS]
    for number, stage in enumerate([*STAGES, "left to the tracker"]):
        table.add_row(stage, *(f"{column[number]:.2f}" for column in columns))
    table.add_section()
    beyond = [min(sum(values[1 : len(STAGES)]) for values in measured[tracker]) for tracker in TRACKERS]
    table.add_row("first step, beyond import torch", *(f"{value:.2f}" for value in beyond))
    table.add_row("the launcher, a process of its own", *[f"{launcher:.2f}"] * len(TRACKERS))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
