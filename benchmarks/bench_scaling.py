"""What 1,000 and 1,000,000 hours of audio cost, on paper, from constants that are measured here.

python -m benchmarks.bench_scaling [--hours 1000,1000000] [--processes 8,256] [--rate 50]

Measured, on one thread of this machine, in processor seconds: encoding (the starter codec, and a network of
EnCodec's architecture and size with random weights, whose cost is the same), reading a pair, a training step against
batch, width and decode crop with its floating-point operations, and what the index of a pair takes in memory.
Everything else follows by multiplication; GPUs are reckoned at `--rate` TFLOP/s reached, an assumption and no
measurement. Pairs are 16 s and 8 s, every 8 s.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from encodec import EncodecModel
from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import TinyCodec
from benchmarks.bench_step import Case, StepBench, write_pairs
from encore.codecs import Codec, load_codec
from encore.codecs.encodec import SEANetCodec
from encore.config.schema import TrainConfig
from encore.data import find_pairs, segment_frames
from encore.data.dataset import PairDataset
from encore.data.latent_cache import LatentCache
from encore.data.latent_shards import PATTERN
from encore.data.shards import ShardIndex
from encore.models.loading import build_model

CONTEXT, TARGET, HOP = 16, 8, 8  # seconds of a pair, and from one to the next
PAIRS_PER_HOUR = 3600 / HOP
LATENT_BYTES = 2 * 128 * 75  # of a second
SHARD_HOURS = 2**25 / LATENT_BYTES / 3600
AUDIO_BYTES = 2 * 24_000
FLAC = 100 / 173  # of the bytes of a wav, as docs/data.md has measured
INDEXED = 100_000  # pairs of the index that is measured
LINKS = {"1 Gbit/s": 0.125, "10 Gbit/s": 1.25, "100 Gbit/s": 12.5, "400 Gbit/s": 50.0, "NVLink": 450.0}  # GB/s
STEPS = {  # name: batch, width, seconds decoded
    "batch 1": (1, 512, 2.0),
    "batch 4": (4, 512, 2.0),
    "batch 4, width 256": (4, 256, 2.0),
    "batch 4, 8 s decoded": (4, 512, 8.0),
}


@dataclass(frozen=True)
class StepFigures:
    """A training step: processor seconds, and floating-point operations."""

    batch: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class Constants:
    """What is measured.

    Attributes:
        encoding: processor seconds per second of audio, by codec.
        reading: processor seconds per pair.
        steps: by name, as in `STEPS`.
        index_memory: bytes per pair and rank.
        index_seconds: processor seconds per pair, at a start.
        parameters: of the model, by width.
    """

    encoding: dict[str, float]
    reading: float
    steps: dict[str, StepFigures]
    index_memory: float
    index_seconds: float
    parameters: dict[int, int]


def fastest(function: Callable[[], object], repeats: int = 3) -> float:
    """Processor seconds of the fastest call."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def encodec_like() -> Codec:
    """EnCodec's architecture at 24 kHz, with random weights."""
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    return SEANetCodec(model.encoder, model.decoder, model.sample_rate, model.channels)


def measure_encoding(codec: Codec) -> float:
    audio = 0.1 * torch.randn(1, 1, CONTEXT * codec.sample_rate)
    return fastest(lambda: codec.encode(audio)) / CONTEXT


def measure_reading(root: Path) -> float:
    """Of a pair of wavs with its latents, all checksums verified."""
    codec = load_codec("starter")
    folder = write_pairs(root / "read", Case(CONTEXT, 1), 4)
    pairs = find_pairs(folder, codec.sample_rate)
    segments = pairs["train"].segments
    cache = LatentCache.open(folder / ".latents", codec, segments)
    cache.complete(np.arange(len(segments)), codec, torch.device("cpu"))
    data = PairDataset(pairs["train"], cache, codec, segment_frames(pairs, codec.hop_length))
    return fastest(lambda: [data[number] for number in range(4)]) / 4


def resident() -> float:
    """Bytes of memory of this process."""
    return 4096.0 * int(Path("/proc/self/statm").read_text().split()[1])


def write_index(folder: Path, pairs: int) -> None:
    """The indices of a data set in shards and of its latents, whose files are empty space."""
    digests = np.random.default_rng(0).integers(0, 256, (pairs + 1, 32), np.uint8)
    places = np.stack([np.zeros(pairs + 1, np.int64), 1000 * np.arange(pairs + 1), np.full(pairs + 1, 1000)], 1)
    rows = np.stack([np.arange(pairs), np.arange(1, pairs + 1), np.zeros(pairs, np.int64)], 1)
    pieces = np.stack([np.arange(pairs + 1), np.ones(pairs + 1, np.int64)], 1)
    split = {"train": rows[:-1], "val": rows[-1:]}
    codec = TinyCodec()
    samples = HOP * codec.sample_rate
    name, size = "shard-000000.tar", 1000 * (pairs + 2)
    with open(folder / name, "wb") as file:
        file.truncate(size)
    ShardIndex(codec.sample_rate, samples, [name], [size], places, digests, pieces, ["music.wav"], split).save(folder)
    segments = find_pairs(folder, codec.sample_rate)["train"].segments
    cache = LatentCache.open(folder / ".latents", codec, segments)
    frames = samples // codec.hop_length
    cache.names, cache.sizes = [PATTERN.replace("*", "0")], [2 * codec.latent_dim * frames * (pairs + 1)]
    with open(cache.folder / cache.names[0], "wb") as file:
        file.truncate(cache.sizes[0])
    cache.digests, cache.checksums = digests, np.zeros(pairs + 1, np.uint32)
    first = 2 * codec.latent_dim * frames * np.arange(pairs + 1)
    shape = np.broadcast_to([codec.latent_dim, frames], (pairs + 1, 2))
    cache.places = np.concatenate([np.zeros((pairs + 1, 1), np.int64), first[:, None], shape], 1)
    cache.save_index()


def measure_index(root: Path) -> tuple[float, float]:
    """Bytes in memory and processor seconds per pair, of opening the data set and its latents' cache."""
    codec = TinyCodec()
    write_index(root, INDEXED)
    before, start = resident(), time.process_time()
    pairs = find_pairs(root, codec.sample_rate)
    cache = LatentCache.open(root / ".latents", codec, pairs["train"].segments)
    assert not len(cache.missing(pairs["train"].numbers))
    return (resident() - before) / INDEXED, (time.process_time() - start) / INDEXED


def measure_steps(root: Path) -> Iterator[tuple[str, StepFigures]]:
    options = {"codec": "starter", "codec_repository": None, "objective": "energy", "num_layers": 4}
    for name, (batch, width, decoded) in STEPS.items():
        settings = SimpleNamespace(**options, steps=1, repeats=1, d_model=width, threads=1, device="cpu")
        more = ("--tracker", "none", "--decode_seconds", str(decoded))
        cost = StepBench(root, settings).measure(Case(TARGET, batch), more=more, count_flops=True)  # type: ignore[arg-type]
        flops = sum(part.get("flops", 0.0) for part in cost.counted.values())
        yield name, StepFigures(batch, cost.seconds, flops)


def parameters(width: int) -> int:
    config = TrainConfig.from_flags(codec="starter", d_model=width).resolved()
    return sum(weights.numel() for weights in build_model(config, load_codec("starter"), 75 * CONTEXT).parameters())


def measure() -> Constants:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "index").mkdir()
        memory, seconds = measure_index(root / "index")
        return Constants(
            {
                "starter": measure_encoding(load_codec("starter")),
                "EnCodec's architecture": measure_encoding(encodec_like()),
            },
            measure_reading(root),
            dict(measure_steps(root)),
            memory,
            seconds,
            {width: parameters(width) for width in (256, 512, 1024, 2048)},
        )


def time_of(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s"


def size_of(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} B"


def print_constants(constants: Constants, console: Console) -> None:
    table = Table("constant", "value", title="Measured, one thread", title_justify="left")
    for codec, seconds in constants.encoding.items():
        table.add_row(f"encoding, {codec}", f"{1 / seconds:,.0f} times real time")
    table.add_row("reading a pair of 16 s and 8 s", f"{1000 * constants.reading:.1f} ms")
    table.add_row(
        "index of a pair: memory, start", f"{constants.index_memory:.0f} B, {1e6 * constants.index_seconds:.2f} µs"
    )
    for name, step in constants.steps.items():
        table.add_row(f"step, {name}", f"{step.seconds:.2f} s, {step.flops / 1e9:,.0f} GFLOP")
    for width, count in constants.parameters.items():
        table.add_row(f"parameters, width {width}", f"{count / 1e6:.1f} M")
    console.print(table)


def print_hours(constants: Constants, hours: list[float], processes: list[int], console: Console) -> None:
    table = Table("", *(f"{count:,.0f} h" for count in hours), title="What hours of music cost", title_justify="left")
    times = (CONTEXT + TARGET) / HOP

    def row(name: str, value: Callable[[float], str]) -> None:
        table.add_row(name, *map(value, hours))

    row("pairs", lambda count: f"{count * PAIRS_PER_HOUR:,.0f}")
    row("audio in shards (FLAC)", lambda count: size_of(count * 3600 * AUDIO_BYTES * FLAC))
    row("latents, segments of 16 s and 8 s", lambda count: size_of(count * 3600 * LATENT_BYTES * times))
    row("shards of latents", lambda count: f"{count * times / SHARD_HOURS:,.0f}")
    for codec, seconds in constants.encoding.items():
        for number in processes:
            row(
                f"encoding, {codec}, {number} threads",
                lambda count, each=seconds, by=number: time_of(count * 3600 * times * each / by),  # type: ignore[misc]
            )
    row("index in memory, per rank", lambda count: size_of(count * PAIRS_PER_HOUR * constants.index_memory))
    row("start, per rank, latents indexed", lambda count: time_of(count * PAIRS_PER_HOUR * constants.index_seconds))
    console.print(table)


def print_epoch(constants: Constants, hours: list[float], rate: float, console: Console) -> None:
    table = Table(
        "step",
        "TFLOP per pair",
        "pairs/s, one thread",
        f"pairs/s, GPU at {rate:g} TFLOP/s",
        "readers that feed it",
        *(f"epoch of {count:,.0f} h, 8 GPUs" for count in hours),
        title="Steps",
        title_justify="left",
    )
    for name, step in constants.steps.items():
        speed = rate * 1e12 * step.batch / step.flops
        epochs = [time_of(count * PAIRS_PER_HOUR / speed / 8) for count in hours]
        table.add_row(
            name,
            f"{step.flops / step.batch / 1e12:.3f}",
            f"{step.batch / step.seconds:.2f}",
            f"{speed:,.0f}",
            f"{speed * constants.reading:.1f}",
            *epochs,
        )
    console.print(table)


def print_links(constants: Constants, rate: float, console: Console) -> None:
    """The time of a ring's all-reduce, 2 · 4 bytes per parameter, and where it is as long as the step."""
    table = Table(
        "link",
        *(f"{width}: {2 * 4 * count / 1e6:,.0f} MB" for width, count in constants.parameters.items()),
        "batch per GPU that hides it, width 512",
        "ranks of a batch of 1024",
        title="Summing gradients, by width: volume and time of a step",
        title_justify="left",
    )
    step = constants.steps["batch 4"]
    each = step.flops / step.batch / rate / 1e12  # seconds per pair
    for name, speed in LINKS.items():
        seconds = [2 * 4 * count / speed / 1e9 for count in constants.parameters.values()]
        least = max(1.0, seconds[1] / (2 / 3 * each))  # the backward pass, two thirds of a step, hides it
        table.add_row(name, *(time_of(each) for each in seconds), f"{least:,.1f}", f"{max(1.0, 1024 / least):,.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", default="1000,1000000", help="of audio")
    parser.add_argument("--processes", default="8,256", help="numbers of threads that encode")
    parser.add_argument("--rate", type=float, default=50.0, help="TFLOP/s that a GPU is reckoned to reach")
    options = parser.parse_args()
    hours, processes = [float(each) for each in options.hours.split(",")], [*map(int, options.processes.split(","))]
    constants, console = measure(), Console(highlight=False, width=160)
    print_constants(constants, console)
    print_hours(constants, hours, processes, console)
    print_epoch(constants, hours, options.rate, console)
    print_links(constants, options.rate, console)


if __name__ == "__main__":
    main()
