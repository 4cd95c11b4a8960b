"""Prints what continuing songs costs: `OMP_NUM_THREADS=1 python -m benchmarks.bench_inference CHECKPOINT`.

Processor time of loading and until the first audio, times real time for 1 and 4 candidates and for 8 songs, and peak
memory, for songs of 30 s, 5 min and 1 h. Each length is measured in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from rich.console import Console
from rich.table import Table

from encore.config.cli import new_app, run
from encore.inference.config import SampleConfig
from encore.inference.continuation import Draws, stream_batch
from encore.inference.songs import read_song
from encore.models.allocator import keep_freed_memory
from encore.models.loading import load_generator

app = new_app()

LENGTHS = {"30 s": 30, "5 min": 300, "1 h": 3600}
RATE = 44100  # of the songs, so that they have to be resampled


def measure(checkpoint: Path, song: Path, seconds: float, precision: str) -> dict[str, float]:
    """The figures of one song; times are processor seconds."""
    keep_freed_memory()
    began = time.process_time()
    generator = load_generator(checkpoint, torch.device("cpu"), precision=precision)
    figures = {"load (s)": time.process_time() - began}

    began = time.process_time()
    context = read_song(SampleConfig(input=song, seconds=seconds), song, generator).context
    pieces = stream_batch(generator, context[None], Draws(seconds))
    next(pieces), next(pieces)  # the context; then the first second, or the whole of a shorter continuation
    figures["first audio (s)"] = time.process_time() - began
    for name, songs, candidates in (("1 candidate", 1, 1), ("4 candidates", 1, 4), ("8 songs", 8, 1)):
        began = time.process_time()
        contexts = context.expand(songs, -1, -1)
        for _ in stream_batch(generator, contexts, Draws(seconds, range(candidates))):
            pass
        figures[f"{name} (× real time)"] = songs * candidates * seconds / (time.process_time() - began)
    figures["peak memory (MB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def write_noise(path: Path, seconds: int) -> None:
    """A song of noise, written second by second."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(seconds):
            file.write(0.1 * random.standard_normal(RATE).astype(np.float32))


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint of a training run")],
    seconds: Annotated[float, typer.Option("--seconds", min=2, help="length of the continuations")] = 32.0,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16")] = "auto",
    song: Annotated[Path | None, typer.Option("--song", help="measure this song alone, and print JSON")] = None,
) -> None:
    """Print what continuing songs of several lengths costs."""
    if song is not None:
        print(json.dumps(measure(checkpoint, song, seconds, precision)))
        return
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.wav"
        for name, length in LENGTHS.items():
            write_noise(path, length)
            flags = ["--seconds", str(seconds), "--precision", precision, "--song", str(path)]
            command = [sys.executable, "-m", "benchmarks.bench_inference", str(checkpoint), *flags]
            columns[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table = Table(f"continuations of {seconds:g} s, {precision}", *columns)
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{column[row]:.2f}" for column in columns.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(app)
