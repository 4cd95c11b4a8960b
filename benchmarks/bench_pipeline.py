"""Encore's training beside a minimal pipeline: processor time to the same quality, throughput, memory, start-up.

python -m benchmarks.bench_pipeline [--lengths 16,4] [--minutes 5] [--dataset_folder PAIRS] [-- NAME=VALUE ...]

The minimal pipeline (`benchmarks/minimal_pipeline.py`) encodes every batch anew, decodes input and whole output in
every step and takes its losses from auraloss and torchaudio. All systems have the same data, width, depth, optimiser,
learning rate and batch size, and each trains for `--minutes` of processor time in a process of its own. By default the
data is synthesised music. What follows `--` are more of Encore's settings, for example `-- ema_decay=0`.

Quality is measured in two ways (`benchmarks.pipeline_case.quality`) on decoded validation audio, outside the time that
counts. "Equal quality" is the best value that the minimal pipeline reaches. The time to it counts from the start of the
process, imports and encoding included; the ratio is the minimal pipeline's time to it over the system's. Encore has a
second row each, "data encoded before": the same run as if an earlier one had filled its cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("minimal", "regression", "energy")
QUALITIES = ("reconstruction", "score")
VALIDATION = 0.15  # share of the pieces


@dataclass(frozen=True)
class Run:
    """What a system did in its time.

    Attributes:
        start: processor seconds before the first step.
        cached_start: the same when the data is already encoded; None where nothing is kept.
        points: "seconds" of training, "step" and the qualities, each time that they were measured.
        steps: of training.
        throughput: seconds of audio per processor second of training.
        peak: resident memory in bytes.
    """

    start: float
    cached_start: float | None
    points: list[dict[str, float]]
    steps: int
    throughput: float
    peak: float

    def best(self, quality: str) -> float:
        return min(point[quality] for point in self.points)

    def seconds_to(self, quality: str, level: float) -> float:
        """Processor seconds from the start of the process until the quality is at `level`; infinity if never.

        Between two measurements the quality is taken to change linearly.
        """
        before = None
        for point in self.points:
            if point[quality] <= level:
                if before is None:
                    return self.start
                share = (before[quality] - level) / (before[quality] - point[quality])
                return self.start + before["seconds"] + share * (point["seconds"] - before["seconds"])
            before = point
        return math.inf


def write_pairs(folder: Path, seconds: float, files: int) -> Path:
    """Synthesised music, cut into pairs of segments of `seconds` seconds: two of each piece."""
    music, pairs = folder / "music", folder / "pairs"
    python = [sys.executable, "-m"]
    for command in (
        [*python, "encore.data.demo", music, "--files", files, "--seconds", 3 * seconds],
        [*python, "encore.commands.prepare", music, "--output", pairs, "--context_seconds", seconds]
        + ["--segment_seconds", seconds, "--val_fraction", VALIDATION, "--test_fraction", 0, "--num_workers", 0],
    ):
        subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True)
    return pairs


def train(system: str, pairs: Path, folder: Path, options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """A run of `benchmarks.pipeline_case`.

    Raises:
        RuntimeError: it failed.
    """
    result = folder / f"{system}.json"
    flags: dict[str, Any] = {name: vars(options)[name] for name in ("batch_size", "lr", "warmup_steps", "codec")}
    flags |= {"d_model": options.d_model, "num_layers": options.num_layers, "cache": folder / f"latents_{system}"}
    flags |= {"minutes": minutes}
    if options.codec_repository is not None:
        flags["codec_repository"] = options.codec_repository
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline_case", *given, system, str(pairs), str(result), *options.flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{system} failed:\n{process.stdout}{process.stderr}")
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def measure(pairs: Path, folder: Path, options: argparse.Namespace) -> dict[str, Run]:
    """A run of every system, and Encore's start-up once more."""
    runs = {}
    for system in SYSTEMS:
        content = train(system, pairs, folder, options, options.minutes)
        again = None if system == "minimal" else train(system, pairs, folder, options, minutes=0)["start"]
        runs[system] = Run(cached_start=again, **content)
    return runs


def print_runs(console: Console, title: str, runs: dict[str, Run], minutes: float) -> None:
    """What every system needs, and how long until its quality is the minimal pipeline's best."""
    minimal, limit = runs["minimal"], 60 * minutes
    costs = Table(title=title)
    for name in ("system", "start-up s", "cached", "audio s/s", "ratio", "peak GB", "steps"):
        costs.add_column(name, justify="left" if name == "system" else "right")
    for system, run in runs.items():
        cached = "–" if run.cached_start is None else f"{run.cached_start:.1f}"
        ratio = f"{run.throughput / minimal.throughput:.2f}"
        costs.add_row(
            system,
            f"{run.start:.1f}",
            cached,
            f"{run.throughput:.1f}",
            ratio,
            f"{run.peak / 1e9:.2f}",
            str(run.steps),
        )
    console.print(costs)
    for quality in QUALITIES:
        table = Table(title=f"{quality}: at the first step, and the best within {minutes:g} min of training")
        for name in ("system", "first", "best", "s to minimal's best", "ratio", "minimal's s to this best"):
            table.add_column(name, justify="left" if name == "system" else "right")
        level = minimal.best(quality)
        for system, run in with_encoded(runs).items():
            there, back = run.seconds_to(quality, level), minimal.seconds_to(quality, run.best(quality))
            table.add_row(
                system,
                f"{run.points[0][quality]:.3f}",
                f"{run.best(quality):.3f}",
                _seconds(there, run.start + limit),
                f"{minimal.seconds_to(quality, level) / there:.2f}" if there < math.inf else "–",
                _seconds(back, minimal.start + limit),
            )
        console.print(table)


def with_encoded(runs: dict[str, Run]) -> dict[str, Run]:
    """Each run, and those that keep what they encode once more as they start when the data is already encoded."""
    rows = {}
    for system, run in runs.items():
        rows[system] = run
        if run.cached_start is not None:
            rows[f"{system}, data encoded before"] = replace(run, start=run.cached_start)
    return rows


def _seconds(value: float, limit: float) -> str:
    return f"{value:.1f}" if value < math.inf else f"> {limit:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="16,4", help="seconds of the segments of the synthesised music")
    parser.add_argument("--files", type=int, default=20, help="pieces of synthesised music")
    parser.add_argument("--dataset_folder", type=Path, help="your own pairs instead")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor minutes of training of each system")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--codec_repository", type=Path)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("flags", nargs="*", help="after --: more of Encore's settings, NAME=VALUE")
    options, console = parser.parse_args(), Console(width=120)
    lengths = [] if options.dataset_folder else [float(text) for text in options.lengths.split(",")]
    with tempfile.TemporaryDirectory() as name:
        if options.dataset_folder:
            runs = measure(options.dataset_folder.resolve(), Path(name), options)
            print_runs(console, str(options.dataset_folder), runs, options.minutes)
        for seconds in lengths:
            folder = Path(name) / f"{seconds:g}"
            folder.mkdir()
            runs = measure(write_pairs(folder, seconds, options.files), folder, options)
            print_runs(console, f"Segments of {seconds:g} s, batches of {options.batch_size}", runs, options.minutes)


if __name__ == "__main__":
    main()
