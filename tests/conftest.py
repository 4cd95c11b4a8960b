"""The commands, a tiny data set and real training runs, shared by the tests."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import soundfile
import torch
import typer
from encodec.modules import SEANetDecoder, SEANetEncoder

import losses
from encore.codecs.encodec import SEANetCodec
from encore.config import cli
from encore.registry import CODECS, DATASETS, METRICS, PRIORS, TRACKERS
from encore.training.distributed import Ranks, end_process

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_RATE = 24000
TRAIN_PAIRS, VAL_PAIRS = 8, 5
# A shell starts background jobs with Ctrl-C ignored, and what they start inherits that; here it is to be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A server that is up may be slow on a busy machine; one that is down is noticed at once all the same.
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "120"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

# What torchrun tells a run's only rank; port 0: any free one.
ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
MODULES = {
    "train_ddp.py": "encore.commands.train",
    "train_worker.py": "encore.commands.train_worker",
    "prepare_data.py": "encore.commands.prepare",
    "train_codec.py": "encore.commands.train_codec",
    "inference_sample.py": "encore.commands.sample",
    "evaluate.py": "encore.commands.evaluate",
    "ablate.py": "encore.commands.ablate",
    "encore.tracking": "encore.tracking.__main__",
    "losses": "losses.__main__",
}
# What commands import only when they need it.
LATE_IMPORTS = (
    *("torch._dynamo", "encore.reporting.spectrograms", "librosa.feature", "librosa.onset"),
    *("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "mlflow.system_metrics.system_metrics_monitor"),
    *("alembic.command", "sqlalchemy.dialects.sqlite"),
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
Finished = subprocess.CompletedProcess[str]
Command = Callable[..., Finished]


def command(script: str, *arguments: object) -> list[str]:
    """The command line of a script of the repository, or of `-m` and a module."""
    return [sys.executable, script if script == "-m" else str(ROOT / script), *map(str, arguments)]


@pytest.fixture(scope="session")
def run_command() -> Command:
    """Runs a script in a process of its own, as a user would: `run_command("train_ddp.py", "--flag", 1, cwd=folder)`.

    For what only a process can show; `call_command` is faster by the seconds that a process takes to start.
    """

    def run(script: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Finished:
        return subprocess.run(
            command(script, *arguments),
            cwd=cwd,
            env={**ENVIRONMENT, **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def call_command() -> Command:
    """Runs a script's command within this process: `call_command("evaluate.py", "--flag", 1, cwd=folder)`.

    Folder, environment, signal handlers and registries are put back afterwards. `train_worker.py` is a run's only rank.
    """

    def call(script: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Finished:
        name, *argv = map(str, arguments if script == "-m" else (script, *arguments))
        app = importlib.import_module(MODULES[name]).app
        output, errors, status = io.StringIO(), io.StringIO(), 0
        with (
            unchanged_process(cwd, {"OMP_NUM_THREADS": "1", **ONE_RANK, **(env or {})}),
            own_plugins(app) if "--plugins" in argv else contextlib.nullcontext(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            try:
                cli.run(app, argv)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if name == "train_worker.py":
            gc.collect()  # ends the threads of its process group
            gc.freeze()  # what is left stays; the next collection would go through it again, in 0.2 s
        return subprocess.CompletedProcess(argv, status, output.getvalue(), errors.getvalue())

    return call


@contextlib.contextmanager
def unchanged_process(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """This process in another folder, with more in its environment; all that commands change is put back."""
    before, variables, path = Path.cwd(), dict(os.environ), list(sys.path)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    os.chdir(folder)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def own_plugins(app: typer.Typer) -> Iterator[None]:
    """What plugins in files register is forgotten afterwards."""
    for module in MODULES.values():  # so that the registries hold all of Encore's own
        importlib.import_module(module)
    tables: list[dict[str, Any]] = [table._entries for table in (CODECS, DATASETS, METRICS, PRIORS, TRACKERS)]
    tables.append(losses.REGISTRY)
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        for name in [name for name in sys.modules if name.startswith("losses_plugin_")]:
            del sys.modules[name]
        if isinstance(app, cli.App):
            app.build()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process can grow to `size` bytes: a write beyond fails like one on a full disk."""
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


class Forks:
    """Runs commands in forks of the tests' process, at a tenth of what a process of its own costs.

    For commands that are killed or are ranks of one run. Start, launcher and pipes are not those of a user.

    The forks are made by a process that is itself forked when all tests are imported and none has run: PyTorch can no
    more be used in a fork once it has threads.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        jobs, answers = os.pipe(), os.pipe()
        self.process = os.fork()
        if not self.process:
            for end in (jobs[1], answers[0]):
                os.close(end)
            os.setsid()
            serve(jobs[0], answers[1])
        for end in (jobs[0], answers[1]):
            os.close(end)
        self.jobs, self.answers = os.fdopen(jobs[1], "w"), os.fdopen(answers[0])
        self.lock = threading.Lock()

    def __call__(self, script: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Finished:
        return self.run([env or {}], script, *arguments, cwd=cwd)[0]

    def ranks(self, count: int, *flags: object, cwd: Path, env: dict[str, str] | None = None) -> list[Finished]:
        """The ranks of a training run, without a launcher."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        run = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port, **(env or {})}
        environments = [{**run, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return self.run(environments, "train_worker.py", *flags, cwd=cwd)

    def results_of_two_ranks(self, function: Callable[[Ranks, Path], Any], folder: Path) -> list[Any]:
        """What `function(ranks, folder)`, which its module holds by this name, returns on each of two ranks."""
        name = f"{function.__module__}:{function.__qualname__}"
        environments = [{"RANK": str(rank)} for rank in range(2)]
        done = self.run(environments, "rank", name, cwd=folder)
        assert not any(rank.returncode for rank in done), "".join(rank.stderr for rank in done)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    def run(self, environments: list[dict[str, str]], script: str, *arguments: object, cwd: Path) -> list[Finished]:
        """The same command at the same time in each of the environments."""
        argv = [script, *map(str, arguments)]
        with self.lock:
            files = [[str(self.folder / f"{n}.{kind}") for kind in ("out", "err")] for n in range(len(environments))]
            jobs = [
                {"argv": argv, "folder": str(cwd), "environment": environment, "output": output, "errors": errors}
                for environment, (output, errors) in zip(environments, files, strict=True)
            ]
            self.jobs.write(json.dumps(jobs) + "\n")
            self.jobs.flush()
            if not select.select([self.answers], [], [], 240)[0]:
                os.killpg(self.process, signal.SIGKILL)
                raise TimeoutError(f"{' '.join(argv)} has not ended within 240 s")
            statuses = json.loads(self.answers.readline())
            return [
                subprocess.CompletedProcess(argv, status, *(Path(file).read_text() for file in texts))
                for status, texts in zip(statuses, files, strict=True)
            ]

    def close(self) -> None:
        """Ends the process, and commands that run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.jobs.close()
        self.answers.close()
        shutil.rmtree(self.folder)


def serve(jobs: int, answers: int) -> NoReturn:
    """Reads jobs, runs those of a line at the same time in forks of this process, and answers with their statuses."""
    status = 1
    try:
        os.environ.update(ENVIRONMENT)
        torch.set_num_threads(1)
        with os.fdopen(jobs) as lines, os.fdopen(answers, "w") as out:
            for line in lines:
                children, jobs_of_line = [], json.loads(line)
                for job in jobs_of_line:
                    children.append(os.fork())
                    if not children[-1]:
                        end_process(lambda: run_job(job))  # noqa: B023
                statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
                print(json.dumps(statuses), file=out, flush=True)
        status = 0
    finally:
        os._exit(status)


def run_job(job: dict[str, Any]) -> None:
    """Runs a command, or a function as one of two ranks, within this process."""
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.argv = job["argv"]
    script, *arguments = job["argv"]
    if script.endswith(".py") and script not in MODULES:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
        return
    if script != "rank":
        cli.run(importlib.import_module(MODULES[script]).app, arguments)
        return
    module, _, function = arguments[0].partition(":")
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(
        "gloo", init_method="file://" + os.path.abspath("meeting"), rank=rank, world_size=2
    )
    result = getattr(importlib.import_module(module), function)(Ranks(rank, 2, torch.device("cpu")), Path.cwd())
    torch.save(result, f"{rank}.pt")
    torch.distributed.destroy_process_group()


FORKS: list[Forks] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--codec_repository", help="folder with the weights of a pretrained codec, to test it as well")
    parser.addoption("--tries", type=int, help="try every fault this often, and those that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.tries is None:
        items[:] = [item for item in items if "full" not in item.keywords]


@pytest.fixture(scope="session")
def tries(pytestconfig: pytest.Config) -> int:
    """How often to try a fault at random moments."""
    return pytestconfig.option.tries or 1


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        if any("forks" in getattr(item, "fixturenames", ()) for item in session.items):
            for name in (*MODULES.values(), *LATE_IMPORTS):
                importlib.import_module(name)  # once, for this process and all forks
        gc.collect()
        gc.freeze()  # what is imported stays: going through it again and again would take a tenth of all time
        gc.set_threshold(10_000, 10, 50)
        FORKS.append(Forks())


def pytest_sessionfinish() -> None:
    while FORKS:
        FORKS.pop().close()


@pytest.fixture(scope="session")
def forks() -> Forks:
    """Runs commands in forks: `forks("prepare_data.py", "--flag", 1, cwd=folder)`, `forks.ranks(2, ...)`."""
    return FORKS[0]


# Reads programs and runs each in a fork of this process, which has imported PyTorch and nothing else that is slow.
BARE = """
import json, os, sys
import torch
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv[1:] = job["arguments"]
        exec(job["program"])
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def run_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Finished]]:
    """Runs a program in an interpreter that has imported nothing of the repository: `run_program("import losses")`."""
    folder = tmp_path_factory.mktemp("programs")
    out, err = folder / "out", folder / "err"
    interpreter = [sys.executable, "-c", BARE]
    with subprocess.Popen(
        interpreter, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(program: str, *arguments: object) -> Finished:
            assert process.stdin is not None and process.stdout is not None
            job = {"program": program, "arguments": [*map(str, arguments)], "out": str(out), "err": str(err)}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            return subprocess.CompletedProcess(program, status, out.read_text(), err.read_text())

        yield run


def melody(seconds: float, seed: int) -> np.ndarray:
    """A few decaying tones, float32, peak about 0.5."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    audio = np.zeros_like(time)
    for onset in np.arange(0, seconds, 0.25):
        since = time - onset
        note = np.sin(2 * np.pi * random.uniform(100, 2000) * since) * np.exp(-6 * since)
        audio += np.where(since >= 0, note, 0)
    return (0.4 * audio / np.abs(audio).max()).astype(np.float32)


def random_seanet(filters: int = 2, segment_seconds: float | None = None) -> SEANetCodec:
    """A small codec of EnCodec's architecture (24 kHz, mono, 75 frames of 128 latents a second) with random weights."""
    sizes = {"dimension": 128, "n_filters": filters, "ratios": [8, 5, 4, 2], "norm": "none", "causal": True}
    return SEANetCodec(SEANetEncoder(**sizes), SEANetDecoder(**sizes), SAMPLE_RATE, 1, segment_seconds=segment_seconds)


def write_pairs(folder: Path, counts: dict[str, int], seconds: float = 1.0, sample_rate: int = SAMPLE_RATE) -> Path:
    seed = 0
    for split, count in counts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            audio, seed = melody(2 * seconds, seed), seed + 1
            half = len(audio) // 2
            for part, samples in (("input", audio[:half]), ("output", audio[half:])):
                soundfile.write(folder / split / f"pair_{number:04d}_{part}.wav", samples, sample_rate)
    return folder


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 5 validation pairs of one second."""
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", {"train": TRAIN_PAIRS, "val": VAL_PAIRS})


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store for all runs: making one takes seconds. Tests take an experiment each."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    from mlflow.tracking import MlflowClient  # takes seconds to import, which most test files do not need

    MlflowClient(uri).create_experiment("Default artifacts", artifact_location=str(folder / "artifacts"))
    return uri


@pytest.fixture(scope="session")
def train_flags(tiny_pairs: Path, store: str) -> list[object]:
    """Flags of a small, fast run; later flags win over them."""
    return [
        *("--dataset_folder", tiny_pairs, "--codec", "starter", "--batch_size", 2, "--num_workers", 0),
        *("--d_model", 32, "--nhead", 2, "--num_layers", 1, "--warmup_steps", 2, "--lr", 1e-2, "--decode_seconds", 0.5),
        *("--block_seconds", 0.4, "--mlflow_uri", store, "--artifact_every", 4),
    ]


@pytest.fixture(scope="session")
def trained_flags(train_flags: list[object]) -> list[object]:
    """Flags of the run `trained`: 4 epochs of 2 steps of 2 batches, with all that energy can draw."""
    weights = ("--loss_weight_target", 0.5, "--loss_weight_spectral", 0.25, "--loss_weight_mel", 0.25)
    steps = ("--batch_size", 2, "--grad_accumulation", 2, "--epochs", 4, "--seed", 2**32 - 1)
    energy = ("--objective", "energy", "--context_seconds", 0.6, "--context_noise", 0.2, "--rollout_blocks", 1)
    return [*train_flags, *weights, *steps, *energy]


@pytest.fixture(scope="session")
def regression_flags(trained_flags: list[object]) -> list[object]:
    """Flags of the run `trained_regression`."""
    return [*trained_flags, "--objective", "regression", "--rollout_blocks", 0, "--lr", 1e-2, "--precision", "fp32"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, call_command: Command, trained_flags: list[object]) -> Path:
    """The folder of a finished run of energy, in experiment "trained"; its output is in stdout.txt."""
    return finished(call_command, trained_flags, tmp_path_factory.mktemp("trained"), "trained")


@pytest.fixture(scope="session")
def trained_regression(
    tmp_path_factory: pytest.TempPathFactory, call_command: Command, regression_flags: list[object]
) -> Path:
    """The same of regression, in experiment "regression"."""
    return finished(call_command, regression_flags, tmp_path_factory.mktemp("regression"), "regression")


def finished(call_command: Command, flags: list[object], folder: Path, experiment: str) -> Path:
    result = call_command("train_worker.py", *flags, "--experiment", experiment, cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    return folder
