"""What a training step costs: processor time by part, peak memory, page faults, and growth with the segments' length.

python -m benchmarks.bench_step [--cases 16x8,16x1,4x2] [--lengths 4,8,16,32,64] [--against DIR] [-- FLAGS]

Every case is a real run of `train_worker.py` in a process of its own, with the default model (d_model 512, 4 layers),
on synthesised music; see `benchmarks/step_case.py` for how a step is measured. Figures are of the fastest step.
`--against` names another checkout of Encore, such as an older commit, whose steps are measured in turn with this one's.
FLAGS are more flags for this checkout's train_worker.py, for example `-- --lr 1e-3 --compile true`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from encore.audio import write_wav
from encore.data.demo import SAMPLE_RATE, compose

ROOT = Path(__file__).resolve().parent.parent
ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
WARMUP = 1
PARTS = (
    "transformer forward",
    "transformer backward",
    "decoder forward",
    "decoder backward",
    "losses",
    "targets' spectra",
    "optimiser",
    "rest",
)


@dataclass(frozen=True)
class Case:
    """Segments of `seconds` seconds, `batch` of them per step."""

    seconds: float
    batch: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """SECONDSxBATCH."""
        seconds, batch = text.split("x")
        return cls(float(seconds), int(batch))

    def __str__(self) -> str:
        return f"{self.seconds:g} s × {self.batch}"


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step.

    Attributes:
        parts: of the fastest step, what each part took: "user", "kernel" and "wall" seconds, page "faults".
        peak: bytes, over all steps.
        counted: per part "flops" and "fft_bytes", if they were counted.
        decoded: shapes `[R, D, T]` of the decoder's inputs, likewise.
    """

    parts: dict[str, dict[str, float]]
    peak: float
    counted: dict[str, dict[str, float]]
    decoded: list[list[int]]

    def total(self, name: str) -> float:
        """The sum over the parts."""
        return sum(part.get(name, 0.0) for part in self.parts.values())

    @property
    def seconds(self) -> float:
        """Processor seconds; on a GPU, seconds."""
        return sum(seconds_of(part) for part in self.parts.values())


def seconds_of(part: dict[str, float]) -> float:
    """Processor seconds; on a GPU, seconds."""
    return part["wall"] if torch.cuda.is_available() else part["user"] + part["kernel"]


def write_pairs(folder: Path, case: Case, steps: int) -> Path:
    """A data set for `steps` steps and one validation pair; all pairs hold the same music, as links to one file."""
    audio = torch.from_numpy(compose(2 * case.seconds, np.random.default_rng(0)))[None]
    length = round(case.seconds * SAMPLE_RATE)
    for split, count in (("train", steps * case.batch), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for part, start in (("input", 0), ("output", length)):
            first = folder / split / f"pair_0000_{part}.wav"
            write_wav(first, audio[:, start : start + length], SAMPLE_RATE)
            for number in range(1, count):
                os.link(first, folder / split / f"pair_{number:04d}_{part}.wav")
    return folder


class StepBench:
    """Runs cases in this checkout or another.

    Args:
        folder: for data and runs.
        options: of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options

    def measure(
        self, case: Case, checkout: Path = ROOT, more: tuple[str, ...] = (), count_flops: bool = False
    ) -> StepCost:
        """The cost of a step.

        Raises:
            RuntimeError: training failed.
        """
        steps = WARMUP + self.options.steps + count_flops + 1  # one more, so that no validation follows the last
        data = self.folder / f"{case.seconds:g}x{case.batch}x{steps}"
        if not data.exists():
            write_pairs(data, case, steps)
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        measured = (result, WARMUP, self.options.steps, int(count_flops))
        program = [sys.executable, str(ROOT / "benchmarks" / "step_case.py"), *map(str, measured), "train_worker.py"]
        process = subprocess.run(
            [*program, *self._flags(case, data, checkout), *more],
            cwd=checkout,
            env={**os.environ, **ONE_RANK, **self._environment()},
            capture_output=True,
            text=True,
        )
        if not result.is_file():
            raise RuntimeError(f"train_worker.py of {checkout} failed:\n{process.stdout}{process.stderr}")
        content = json.loads(result.read_text())
        fastest = min(content["steps"], key=lambda parts: sum(seconds_of(part) for part in parts.values()))
        return StepCost(fastest, content["peak"], content["counted"], content["decoded"])

    def best(self, case: Case, checkouts: list[Path], more: tuple[str, ...] = ()) -> list[StepCost]:
        """The best of `--repeats` runs in each checkout, in turn."""
        runs: list[list[StepCost]] = [[] for _ in checkouts]
        for _ in range(self.options.repeats):
            for checkout, costs in zip(checkouts, runs, strict=True):
                costs.append(self.measure(case, checkout, more if checkout == ROOT else ()))
        return [min(costs, key=lambda cost: cost.seconds) for costs in runs]

    def _flags(self, case: Case, data: Path, checkout: Path) -> list[str]:
        name = "here" if checkout == ROOT else "there"
        flags: dict[str, Any] = {
            "dataset_folder": data,
            "cache_dir": self.folder / f"latents_{name}",  # versions may differ in how they keep latents
            "checkpoint_dir": self.folder / f"run_{name}",
            "mlflow_uri": f"sqlite:///{self.folder / f'mlflow_{name}.db'}",
            "codec": self.options.codec,
            "objective": self.options.objective,
            "batch_size": case.batch,
            "num_workers": 0,
            "epochs": 1,
            "d_model": self.options.d_model,
            "num_layers": self.options.num_layers,
        }
        if self.options.codec_repository is not None:
            flags["codec_repository"] = self.options.codec_repository
        return [part for name, value in flags.items() for part in (f"--{name}", str(value))]

    def _environment(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(self.options.threads)}
        return threads if self.options.device == "cuda" else {**threads, "CUDA_VISIBLE_DEVICES": ""}


def cost_table(title: str, rows: dict[str, tuple[Case, StepCost]]) -> Table:
    """Time, memory and page faults of each row, and each part's share of the time."""
    table = Table(title=title)
    table.add_column("case")
    for name in (
        "s/step",
        "user",
        "kernel",
        "peak GB",
        "faults",
        "audio s/s",
        *(part.replace(" ", "\n") for part in PARTS),
    ):
        table.add_column(name, justify="right")
    for name, (case, cost) in rows.items():
        shares = [f"{seconds_of(cost.parts[p]) / cost.seconds:.0%}" if p in cost.parts else "–" for p in PARTS]
        table.add_row(
            name,
            f"{cost.seconds:.2f}",
            f"{cost.total('user'):.2f}",
            f"{cost.total('kernel'):.2f}",
            f"{cost.peak / 1e9:.2f}",
            f"{cost.total('faults'):,.0f}",
            f"{case.seconds * case.batch / cost.seconds:.1f}",
            *shares,
        )
    return table


def print_cases(
    console: Console, bench: StepBench, cases: list[Case], against: Path | None, more: tuple[str, ...]
) -> None:
    """Each case here, and in the other checkout with the ratio."""
    rows, ratios = dict[str, tuple[Case, StepCost]](), Table(title=f"{against} : here, in one interleaved run")
    for name in ("case", "time", "peak memory"):
        ratios.add_column(name)
    for case in cases:
        costs = bench.best(case, [ROOT] if against is None else [ROOT, against], more)
        rows[str(case)] = case, costs[0]
        if against is not None:
            here, there = costs
            rows[f"{case}, {against.name}"] = case, there
            ratios.add_row(str(case), f"{there.seconds / here.seconds:.2f}", f"{there.peak / here.peak:.2f}")
    console.print(cost_table("A training step", rows))
    if against is not None:
        console.print(ratios)


def print_lengths(console: Console, bench: StepBench, lengths: list[float], more: tuple[str, ...]) -> None:
    """Cost against the segments' length, and the straight line through it."""
    cases = [Case(seconds, 1) for seconds in lengths]
    costs = [bench.best(case, [ROOT], more)[0] for case in cases]
    rows = {str(case): (case, cost) for case, cost in zip(cases, costs, strict=True)}
    console.print(cost_table("Cost against the segments' length", rows))
    for name, values in (
        ("seconds", [cost.seconds for cost in costs]),
        ("GB", [cost.peak / 1e9 for cost in costs]),
    ):
        slope, constant = np.polyfit(lengths, values, 1)
        error = np.abs(np.polyval([slope, constant], lengths) / values - 1).max()
        exponent = np.polyfit(np.log(lengths), np.log(values), 1)[0]
        console.print(
            f"{name} = {constant:.3f} + {slope:.4f} · length in seconds, largest deviation {error:.0%}; "
            f"as a power of the length: {exponent:.2f}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every case depends on."""
    parser.add_argument("--cases", default="16x8,16x1,4x2", help="SECONDSxBATCH,...; '' leaves them out")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--codec_repository", type=Path)
    parser.add_argument("--objective", default="energy", choices=("energy", "regression"))
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("flags", nargs="*", help="after --: more flags for this checkout's train_worker.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument(
        "--lengths", default="4,8,16,32,64", help="seconds of the segments of batch 1; '' leaves it out"
    )
    parser.add_argument("--against", type=Path, help="another checkout of Encore")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    console, more = Console(width=180), tuple(options.flags)
    with tempfile.TemporaryDirectory() as folder:
        bench = StepBench(Path(folder), options)
        against = options.against and options.against.resolve()
        if options.cases:
            print_cases(console, bench, [Case.parse(text) for text in options.cases.split(",")], against, more)
        if options.lengths:
            print_lengths(console, bench, [float(text) for text in options.lengths.split(",")], more)


if __name__ == "__main__":
    main()
