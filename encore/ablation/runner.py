"""The runs of an ablation: trained and evaluated as processes of their own, kept in folders, gone on with."""

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
from encore.errors import EncoreError, make_folder

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REASON_LENGTH = 200
TRAIN, EVALUATE = "encore.commands.train", "encore.commands.evaluate"


@dataclass
class State:
    """How far a run is; `run.json` in its folder."""

    run_id: str | None = None  # of MLflow
    seconds: float = 0.0  # of training, by the clock, over all attempts
    trained: bool = False
    evaluated_with: list[str] | None = None  # flags of the evaluation that is in the report


@dataclass
class Run:
    """One run of an ablation.

    Attributes:
        name: in tables, and of its folder and MLflow run.
        folder: holds `checkpoints/`, `report/`, `training.log`, `evaluation.log` and `run.json`.
        config: its settings.
        state: how far it is.
        failure: why it could not be trained or evaluated, in a line.
    """

    name: str
    folder: Path
    config: TrainConfig
    state: State
    failure: str | None = None

    @property
    def checkpoint(self) -> Path:
        return self.config.run.checkpoint_dir / "best_model.pt"

    @property
    def evaluation_file(self) -> Path:
        return self.folder / "report" / "evaluation.json"

    def keep(self) -> None:
        """Writes the state: to a temporary name, then renamed."""
        temporary = self.folder / "run.tmp"
        temporary.write_text(json.dumps(asdict(self.state), indent=2) + "\n")
        temporary.replace(self.folder / "run.json")

    def evaluation(self) -> dict[str, Any]:
        """What the evaluation wrote."""
        return json.loads(self.evaluation_file.read_text(encoding="utf-8"))


def open_runs(configs: Mapping[str, TrainConfig]) -> list[Run]:
    """The runs, each as far as it is.

    Raises:
        EncoreError: runs that were begun with other settings, a line each with what differs; a folder can't be used.
    """
    runs, problems = [], []
    for name, config in configs.items():
        folder = config.run.checkpoint_dir.parent
        make_folder(folder, "--output")
        before, kept = config.run.checkpoint_dir / "config.json", folder / "run.json"
        try:
            state = State(**json.loads(kept.read_text())) if kept.is_file() else State()
            begun = TrainConfig.from_dict(json.loads(before.read_text())).resolved() if before.is_file() else config
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{folder}: can't be gone on with ({error}); move it away")
            continue
        changed = differences(begun, config)
        if changed:
            problems.append(
                f"{name}: was begun with other settings: {', '.join(changed)}; give the run another name, or move "
                f"{folder} away"
            )
        state.trained = state.trained and (config.run.checkpoint_dir / "best_model.pt").is_file()
        runs.append(Run(name, folder, config, state))
    if problems:
        raise EncoreError("\n".join(problems))
    return runs


class Children:
    """Processes of ours. Within a `with`, SIGINT, SIGTERM and SIGHUP stop all of them, and no further one is started.

    Each has a session of its own, so that a Ctrl-C reaches it once, as the SIGTERM that is passed on here.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Children:
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the hang-up
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> int:
        """Runs a command to its end, its output in `log`; its exit status, or 128 + signal if all are to stop."""
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


class Ablation:
    """Trains and evaluates runs, each as far as it isn't yet.

    Args:
        runs: see `open_runs`.
        evaluation_flags: further flags of evaluate.py.
        parallel: how many runs are worked on at the same time.
        say: gets a line whenever a run begins or ends something.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        evaluation_flags: Sequence[str],
        parallel: int,
        say: Callable[[str], None],
    ):
        self.runs = runs
        self.evaluation_flags, self.parallel, self.say = list(evaluation_flags), parallel, say
        self.children = Children()

    def work(self) -> int:
        """Brings every run to its end; a failure of one does not stop the others. The signal that stopped it, or 0."""
        with self.children, ThreadPoolExecutor(self.parallel) as pool:
            for done in [pool.submit(self._bring_to_end, run) for run in self.runs]:
                done.result()
        return self.children.stopped_by

    def _bring_to_end(self, run: Run) -> None:
        if not run.state.trained:
            begun = time.monotonic()
            command = [sys.executable, "-m", TRAIN, *run.config.to_argv()]
            good = self._step(run, "training", command)
            run.state.seconds += time.monotonic() - begun
            run.state.trained, run.state.evaluated_with = good, None
            run.keep()
        evaluated = run.state.evaluated_with == self.evaluation_flags and run.evaluation_file.is_file()
        if run.state.trained and not evaluated:
            run.evaluation_file.unlink(missing_ok=True)
            if self._step(run, "evaluation", [sys.executable, "-m", EVALUATE, *self._evaluated(run)]):
                run.state.evaluated_with = self.evaluation_flags
                run.keep()

    def _evaluated(self, run: Run) -> list[str]:
        """The flags of a run's evaluation."""
        own = {
            "--checkpoint": run.checkpoint,
            "--dataset_folder": run.config.data.dataset_folder,
            "--cache_dir": run.config.data.latent_folder,
            "--codec_repository": run.config.codec.repository,
            "--output": run.evaluation_file.parent,
            "--mlflow_uri": run.config.tracking.mlflow_uri,
            "--run_id": run.state.run_id,
        }
        flags = [str(part) for flag, value in own.items() if value is not None for part in (flag, value)]
        return flags + self.evaluation_flags

    def _step(self, run: Run, what: str, command: Sequence[Any]) -> bool:
        """Runs a door for a run; whether it did its work. Otherwise the run has failed, unless all were stopped."""
        if self.children.stopped_by:
            return False
        log, begun = run.folder / f"{what}.log", time.monotonic()
        self.say(f"{run.name}: {what} begins, its output is in {log}")
        status = self.children.run(command, log, self._environment(run))
        if status == 0:
            self.say(f"{run.name}: {what} done in {duration(time.monotonic() - begun)}")
        elif self.children.stopped_by:
            self.say(f"{run.name}: {what} stopped")
        else:
            run.failure = f"{what} ended with status {status}: {last_words(log)}"
            self.say(f"{run.name}: {run.failure}")
        return status == 0

    def _environment(self, run: Run) -> dict[str, str]:
        env = cli.importable() if run.state.run_id is None else {**cli.importable(), "MLFLOW_RUN_ID": run.state.run_id}
        if self.parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
            ranks = self.parallel * (run.config.run.world_size or 1)
            env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        return env


def last_words(log: Path) -> str:
    """Why a process ended, in a line: its last `error:` line, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return ([*lines[-1:], *errors[-1:]] or ["it said nothing"])[-1][:REASON_LENGTH]


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
