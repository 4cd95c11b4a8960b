"""How a start grows with the number of pairs: 1,000 to 1,000,000 tiny pairs in shards, and up to 100,000 of wavs.

`python -m benchmarks.bench_data` makes the data sets in a temporary folder (`--folder` for another disk; a million
pairs take 2 GB), and prints for each, in processor seconds of a process of its own: finding and checking the pairs,
opening the latent cache (with hashing of what is new), finding what it lacks, the statistics, and the first batch of an
epoch; then peak memory, the size of the indices, and the growth per tenfold. "first" is a start on latents that are
there but not indexed and, for wavs, on files that were never seen; "next" any later one.

`--worker 1000000` instead starts a real rank of training (`train_worker.py`, starter codec, default model) on so many
pairs in shards, twice, and prints seconds and memory up to the end of its first step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from encore.codecs import Codec, load_codec
from encore.data import find_pairs, segment_frames
from encore.data.dataset import Division, EpochSampler, PairDataset, collate
from encore.data.latent_cache import LatentCache
from encore.data.latent_shards import write_shard
from encore.data.latent_statistics import LatentStatistics
from encore.data.segments import Segments
from encore.data.shards import SHARD_BYTES, ShardIndex, ShardWriter
from tests.conftest import ONE_RANK

RATE, SAMPLES, VALUES, FRAMES = 24_000, 4_800, 8, 15  # of a segment: 0.2 s, and of its latents
PER_LATENT_SHARD = 20_000
BATCH = 8
STEPS = ("find", "open", "missing", "statistics", "batch")


# Up to its first optimiser step, whatever ranks read and write.
WORKER = """
import os, sys, time
import encore.commands.train_worker as worker
from benchmarks.bench_data import peak
from encore.training.step import Step
take, apply = Step.take, Step.apply

def figures():
    return time.process_time(), time.perf_counter() - begin, peak()

def first(self, *arguments):
    self.before = figures()
    return take(self, *arguments)

def last(self, *arguments):
    apply(self, *arguments)
    print("ended", *self.before, *figures(), flush=True)
    os._exit(0)

begin = time.perf_counter() - time.process_time()
Step.take, Step.apply = first, last
worker.run()
"""


class TinyCodec(Codec):
    """Gives the shapes of tiny latents, which are never decoded."""

    def __init__(self) -> None:
        super().__init__(RATE, 1, SAMPLES // FRAMES, VALUES)


def contents(count: int, format: str) -> Iterator[bytes]:
    """Audio files of quiet clicks, no two equal."""
    place = np.zeros(SAMPLES, np.int16)
    for number in range(count):
        place[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        file = io.BytesIO()
        soundfile.write(file, place, RATE, format=format, subtype="PCM_16")
        yield file.getvalue()


def make_shards(folder: Path, pairs: int) -> None:
    """One recording whose neighbouring segments are the pairs, up to 64 of them for validation."""
    writers: list[ShardWriter] = []
    places, digests = [], []
    for number, flac in enumerate(contents(pairs + 1, "FLAC")):
        if not writers or writers[-1].size >= SHARD_BYTES:
            writers.append(ShardWriter(folder / f"shard-{len(writers):06d}.tar"))
        _, first, size, digest = writers[-1].add("music.wav", number * SAMPLES, flac)
        places.append((len(writers) - 1, first, size))
        digests.append(digest)
    for writer in writers:
        writer.close()
    rows = np.stack([np.arange(pairs), np.arange(1, pairs + 1), np.zeros(pairs, np.int64)], 1)
    names, train = [writer.path.name for writer in writers], pairs - min(64, pairs // 100)
    split = {"train": rows[:train], "val": rows[train:]}
    sizes = [writer.path.stat().st_size for writer in writers]
    known = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)
    pieces = np.stack([np.arange(pairs + 1), np.ones(pairs + 1, np.int64)], 1)
    ShardIndex(RATE, SAMPLES, names, sizes, np.array(places), known, pieces, ["music.wav"], split).save(folder)


def make_wavs(folder: Path, pairs: int) -> None:
    """The same number of pairs as two files each."""
    files = contents(2 * pairs, "WAV")
    for split, first, last in (("train", 0, pairs - pairs // 100), ("val", pairs - pairs // 100, pairs)):
        (folder / split).mkdir()
        for number in range(first, last):
            for role in ("input", "output"):
                (folder / split / f"pair_{number:07d}_{role}.wav").write_bytes(next(files))


def make_latents(segments: Segments, folder: Path, values: int = VALUES) -> None:
    """Shards of latents with `values` per frame for all segments, without an index of them."""
    numbers = np.arange(len(segments))
    new = segments.unhashed(numbers)
    segments.digests[new] = segments.hash(new)
    folder.mkdir(parents=True)
    latents = np.random.default_rng(0).standard_normal((PER_LATENT_SHARD, values, FRAMES), np.float32)
    latents = latents.astype(np.float16)
    for first in range(0, len(segments), PER_LATENT_SHARD):
        digests = segments.digests[first : first + PER_LATENT_SHARD]
        named = {digest.tobytes().hex(): each for digest, each in zip(digests, latents, strict=False)}
        write_shard(folder, named)


def measure(folder: Path) -> dict[str, float]:
    """Processor seconds of the steps of a start, and megabytes: peak memory, that before, and the indices."""
    figures, codec = {"before": peak()}, TinyCodec()
    start = time.process_time()

    def lap(step: str) -> None:
        nonlocal start
        figures[step] = time.process_time() - start
        start = time.process_time()

    pairs = find_pairs(folder, RATE)
    lap("find")
    segments = pairs["train"].segments
    cache, numbers = LatentCache.open(folder / ".latents", codec, segments), np.arange(len(segments))
    new = segments.unhashed(numbers)
    cache.know(new, segments.hash(new))
    segments.remember(folder / ".latents")
    cache.save_index()
    lap("open")
    assert not len(cache.missing(numbers))
    lap("missing")
    statistics = LatentStatistics(cache, pairs["train"].inputs)
    if statistics.stored() is None:
        statistics.store(*statistics.of_sums(statistics.sums()))
    lap("statistics")
    data = PairDataset(pairs["train"], cache, codec, segment_frames(pairs, codec.hop_length))
    sampler = EpochSampler(len(data), Division(BATCH, 1, BATCH), 0, seed=0)
    batch = next(iter(DataLoader(data, batch_sampler=sampler, collate_fn=collate)))
    assert len(batch) == BATCH
    lap("batch")
    indices = [*folder.glob("*.npz"), *(folder / ".latents").rglob("*.npz")]
    return {**figures, "memory": peak(), "index": sum(path.stat().st_size for path in indices) / 1e6}


def peak() -> float:
    """Largest resident memory of this process so far, MB; `ru_maxrss` would include that of the process before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3


def bench(kind: str, pairs: int, root: Path) -> dict[str, dict[str, float]]:
    """The figures of a first start and of the next one."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        make_shards(folder, pairs) if kind == "shards" else make_wavs(folder, pairs)
        make_latents(find_pairs(folder, RATE)["train"].segments, folder / ".latents" / TinyCodec().identity)
        command = [sys.executable, "-m", "benchmarks.bench_data", "--measure", str(folder)]
        return {
            start: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for start in ("first", "next")
        }


def bench_worker(pairs: int, root: Path) -> None:
    """Prints what two starts of a rank cost; the first finds latents that are not indexed."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        make_shards(folder, pairs)
        codec = load_codec("starter")
        make_latents(find_pairs(folder, RATE)["train"].segments, folder / ".latents" / codec.identity, codec.latent_dim)
        flags = ("--codec", "starter", "--num_workers", 0, "--block_seconds", 0.2, "--tracker", "none")
        command = [sys.executable, "-c", WORKER, "--dataset_folder", folder, "--checkpoint_dir", folder / "run", *flags]
        for start in ("first", "next"):
            result = subprocess.run(
                [*map(str, command)], env={**os.environ, **ONE_RANK}, check=True, capture_output=True, text=True
            )
            line = next(line for line in result.stdout.splitlines() if line.startswith("ended"))
            values = [*map(float, line.split()[1:])]
            for when, (cpu, wall, memory) in (("up to", values[:3]), ("with", values[3:])):
                said = f"{pairs:,} pairs, {start} start, {when} the first step"
                print(f"{said}: {cpu:.1f} s of processor time, {wall:.1f} s, {memory:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--sizes", default="1000,10000,100000,1000000", help="numbers of pairs, ten times the last each"
    )
    parser.add_argument("--most_wavs", type=int, default=100_000, help="largest number of pairs of wavs")
    parser.add_argument("--folder", type=Path, default=None, help="where the data sets are made")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, default=None, help="pairs of a real rank's start")
    options = parser.parse_args()
    if options.worker is not None:
        bench_worker(options.worker, options.folder)
        return
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    table = Table(title="a start, in processor seconds")
    columns = ("kind", "pairs", "start", *STEPS, "all", "times", "memory MB", "of that before", "indices MB")
    for column in columns:
        table.add_column(column, justify="left" if column in ("kind", "start") else "right", no_wrap=True)
    for kind in ("wavs", "shards"):
        before: dict[str, float] = {}
        for pairs in map(int, options.sizes.split(",")):
            if kind == "wavs" and pairs > options.most_wavs:
                continue
            for start, figures in bench(kind, pairs, options.folder).items():
                total = sum(figures[step] for step in STEPS)
                growth = f"{total / before[start]:.1f}" if start in before else ""
                before[start] = total
                seconds = [f"{figures[step]:.2f}" for step in STEPS]
                sizes = [f"{figures[name]:.0f}" for name in ("memory", "before")] + [f"{figures['index']:.1f}"]
                table.add_row(kind, f"{pairs:,}", start, *seconds, f"{total:.2f}", growth, *sizes)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
