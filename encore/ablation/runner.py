"""The runs of an ablation: trained and evaluated as processes of their own, with a state on disk to resume from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from encore.ablation.grid import differences
from encore.config import cli
from encore.config.schema import TrainConfig
from encore.errors import EncoreError, disk_space, make_folder
from encore.evaluation.results import Results
from encore.training.pace import duration

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REASON_LENGTH = 200  # characters
TRAIN, EVALUATE = "encore.commands.train", "encore.commands.evaluate"


@dataclass
class RunState:
    """What has been done of a run; `run.json` in its folder."""

    run_id: str | None = None  # of MLflow
    seconds: float = 0.0  # wall-clock time of training, over all attempts
    trained: bool = False
    evaluated_with: list[str] | None = None  # flags of the evaluation that is in the report


@dataclass
class AblationRun:
    """One run of an ablation.

    Attributes:
        name: in tables, and of its folder and MLflow run.
        folder: holds `checkpoints/`, `report/`, `training.log`, `evaluation.log` and `run.json`.
        config: its configuration.
        state: what has been done of it.
        failure: why it could not be trained or evaluated, in a line.
    """

    name: str
    folder: Path
    config: TrainConfig
    state: RunState
    failure: str | None = None

    @property
    def checkpoint(self) -> Path:
        return self.config.run.checkpoint_dir / "best_model.pt"

    @property
    def evaluation_file(self) -> Path:
        return self.folder / "report" / "evaluation.json"

    def save(self) -> None:
        """Writes the state: to a temporary name, then renamed."""
        temporary = self.folder / "run.tmp"
        with disk_space(self.folder / "run.json", "the run's state"):
            temporary.write_text(json.dumps(asdict(self.state), indent=2) + "\n")
            temporary.replace(self.folder / "run.json")

    def results(self) -> Results:
        """The results of the evaluation."""
        return Results.from_json(self.evaluation_file)


def open_runs(configs: Mapping[str, TrainConfig]) -> list[AblationRun]:
    """Loads each run's state; a run that has none is new.

    Raises:
        EncoreError: runs that were started with other settings, a line each with what differs, or a folder that
            cannot be used.
    """
    runs, problems = [], []
    for name, config in configs.items():
        folder = config.run.checkpoint_dir.parent
        make_folder(folder, "--output")
        earlier, saved = config.run.checkpoint_dir / "config.json", folder / "run.json"
        try:
            state = RunState(**json.loads(saved.read_text())) if saved.is_file() else RunState()
            started = TrainConfig.from_dict(json.loads(earlier.read_text())) if earlier.is_file() else config
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{folder}: cannot be resumed ({error}); move it away")
            continue
        changed = differences(started.resolved(), config)
        if changed:
            problems.append(
                f"{name}: was started with other settings: {', '.join(changed)}; give the run another name, or move "
                f"{folder} away"
            )
        run = AblationRun(name, folder, config, state)
        state.trained = state.trained and run.checkpoint.is_file()
        runs.append(run)
    if problems:
        raise EncoreError("\n".join(problems))
    return runs


class ChildProcesses:
    """Processes that SIGINT, SIGTERM and SIGHUP stop together within a `with`; after that no further one is started.

    Each is in a session of its own, so that Ctrl-C reaches it once, as the SIGTERM that is passed on here.

    Attributes:
        stopped_by: the signal that stopped them, or 0.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> ChildProcesses:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> int:
        """Runs a command, its output in `log`; returns its exit status, or 128 + signal if it may not be started."""
        with open(log, "wb") as output:
            with self._lock:
                if self.stopped_by:
                    return 128 + self.stopped_by
                child = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    start_new_session=True,
                )
                self._running.add(child)
            status = child.wait()
            with self._lock:
                self._running.discard(child)
        return status

    def _stop(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            if not self.stopped_by:
                self.stopped_by = number
                for child in self._running:
                    child.send_signal(signal.SIGTERM)


class AblationRunner:
    """Trains and evaluates what is not done yet.

    Args:
        runs: see `open_runs`.
        evaluation_flags: further flags of evaluate.py.
        parallel: number of runs that are worked on at the same time.
        log: gets a line whenever a training or an evaluation starts or ends.
    """

    def __init__(
        self,
        runs: Sequence[AblationRun],
        evaluation_flags: Sequence[str],
        parallel: int,
        log: Callable[[str], None],
    ):
        self.runs = runs
        self.evaluation_flags, self.parallel, self.log = list(evaluation_flags), parallel, log
        self.children = ChildProcesses()
        self.started, self.done, self.tasks = time.monotonic(), 0, 0  # of this call

    def run(self) -> int:
        """Completes every run; if one fails, the others continue. Returns the signal that stopped them, or 0."""
        self.started = time.monotonic()
        self.tasks = sum(2 if not run.state.trained else not self._is_evaluated(run) for run in self.runs)
        with self.children, ThreadPoolExecutor(self.parallel) as pool:
            for done in [pool.submit(self._complete, run) for run in self.runs]:
                done.result()
        return self.children.stopped_by

    def _complete(self, run: AblationRun) -> None:
        if not run.state.trained:
            start = time.monotonic()
            run.state.trained = self._execute(run, "training", TRAIN, run.config.to_argv())
            run.state.seconds += time.monotonic() - start
            run.state.evaluated_with = None
            run.save()
        if run.state.trained and not self._is_evaluated(run):
            run.evaluation_file.unlink(missing_ok=True)
            if self._execute(run, "evaluation", EVALUATE, self._evaluation_argv(run)):
                run.state.evaluated_with = self.evaluation_flags
                run.save()

    def _is_evaluated(self, run: AblationRun) -> bool:
        return run.state.evaluated_with == self.evaluation_flags and run.evaluation_file.is_file()

    def _evaluation_argv(self, run: AblationRun) -> list[str]:
        config = run.config
        flags = {
            "--checkpoint": run.checkpoint,
            "--dataset_folder": config.data.dataset_folder,
            "--cache_dir": config.data.latent_folder,
            "--codec_repository": config.codec.repository,
            "--output": run.evaluation_file.parent,
            "--mlflow_uri": config.tracking.mlflow_uri,
            "--run_id": run.state.run_id,
        }
        if config.run.plugins:
            flags["--plugins"] = config.run.plugins
        return [str(part) for pair in flags.items() if pair[1] is not None for part in pair] + self.evaluation_flags

    def _execute(self, run: AblationRun, task: str, module: str, argv: Sequence[str]) -> bool:
        """Runs an entry point; returns whether it succeeded. If not, and it was not stopped, the run has failed."""
        if self.children.stopped_by:
            return False
        output, start = run.folder / f"{task}.log", time.monotonic()
        self.log(f"{run.name}: {task} starts, output in {output}")
        status = self.children.run([sys.executable, "-m", module, *argv], output, self._environment(run))
        if status == 0:
            self.done += 1
            left = (time.monotonic() - self.started) / self.done * (self.tasks - self.done)
            end = f"; all will be done in about {duration(left)}" if self.done < self.tasks else ""
            self.log(f"{run.name}: {task} done in {duration(time.monotonic() - start)}{end}")
        elif self.children.stopped_by:
            self.log(f"{run.name}: {task} stopped")
        else:
            self.tasks -= 2 if task == "training" else 1
            run.failure = f"{task} ended with status {status}: {last_error(output)}"
            self.log(f"{run.name}: {run.failure}")
        return status == 0

    def _environment(self, run: AblationRun) -> dict[str, str]:
        """Variables by which a process finds Encore and its MLflow run, and shares the cores with the others."""
        env = cli.importable()
        if run.state.run_id is not None:
            env["MLFLOW_RUN_ID"] = run.state.run_id
        if self.parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
            ranks = self.parallel * (run.config.run.world_size or 1)
            env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        return env


def last_error(log: Path) -> str:
    """Why a process ended, in a line: the last line of its output that starts with `error:`, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return ([*lines[-1:], *errors[-1:]] or ["no output"])[-1][:REASON_LENGTH]
