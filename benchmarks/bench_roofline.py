"""A training step beside what its parts cannot be faster than on this machine.

python -m benchmarks.bench_roofline [--cases 16x8,16x1,4x2] [--threads 1] [--device cpu]

Measures the rate of matrix products (float32, bfloat16) and the memory's bandwidth, counts the operations of each part
of a real step (`benchmarks/step_case.py`), and prints the time that they take at that rate beside the part's own:

- transformer: its matrix products, attention's included, at the rate of one large product;
- decoder: its convolutions and its LSTM, each alone with the step's shapes, forward and backward to the input, and
  its matrix products at the rate of one large product;
- losses: what their Fourier transforms read and write, at the memory's bandwidth.

With `--device cuda` also with `--compile true`, and times are by the clock; on the CPU they are processor seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_step import PARTS, Case, StepBench, StepCost, add_arguments, seconds_of
from encore.codecs import Codec, load_codec

TIMES = 5


def fastest(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    best = math.inf
    for _ in range(TIMES + 1):
        start = _seconds(device)
        function()
        now = _seconds(device)
        best = min(best, now - start) if _ else best
    return best


def _seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def matmul_rate(dtype: torch.dtype, device: torch.device, rows: int = 4096, width: int = 2048) -> float:
    """FLOP/s of the product of `[rows, width]` with `[width, width]`."""
    left = torch.randn(rows, width, device=device).to(dtype)
    right = torch.randn(width, width, device=device).to(dtype)
    return 2 * rows * width**2 / fastest(lambda: left @ right, device)


def bandwidth(device: torch.device, elements: int = 2**26) -> float:
    """Bytes per second, read and written, of a copy that does not fit into the caches."""
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), device)


@dataclass
class Decoding:
    """The decoder's layers, each alone: FLOPs and seconds, forward and backward to the input."""

    convolution_flops: float = 0.0
    convolution_seconds: float = 0.0  # forward
    forward: float = 0.0
    backward: float = 0.0


def decode_alone(codec: Codec, shapes: list[list[int]]) -> Decoding:
    """The layers of the decoder one by one, with the inputs that they have when latents of `shapes` are decoded."""
    result, cases = Decoding(), list[tuple[nn.Module, torch.Size]]()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        cases.append((module, inputs[0].shape))

    layers = [m for m in codec.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d, nn.LSTM))]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    with torch.no_grad():
        for shape in shapes:
            codec.decode(torch.zeros(shape, device=codec.device))
    for handle in handles:
        handle.remove()
    for layer, input_shape in cases:
        _time_layer(layer, torch.randn(input_shape, device=codec.device), result)
    return result


def _time_layer(layer: nn.Module, x: Tensor, result: Decoding) -> None:
    """Adds a layer's figures to the result."""
    x.requires_grad_()

    def forward() -> Tensor:
        output = layer(x)
        return output[0] if isinstance(output, tuple) else output

    one, both = fastest(forward, x.device), fastest(lambda: forward().sum().backward(), x.device)
    result.forward, result.backward = result.forward + one, result.backward + max(0.0, both - one)
    if not isinstance(layer, nn.LSTM):
        with FlopCounterMode(display=False) as counter:
            forward()
        result.convolution_flops += counter.get_total_flops()
        result.convolution_seconds += one


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: FLOP/s of matrix products, bytes per second of its memory."""

    float32: float
    bfloat16: float
    memory: float

    @classmethod
    def measure(cls, device: torch.device) -> Rates:
        return cls(matmul_rate(torch.float32, device), matmul_rate(torch.bfloat16, device), bandwidth(device))


def floors(cost: StepCost, rates: Rates, decoding: Decoding) -> dict[str, tuple[str, float, float]]:
    """Of each part: what it does, and the least seconds that it takes with the transformer in float32 and bfloat16."""
    found = {}
    for part in ("transformer forward", "transformer backward"):
        flops = cost.counted.get(part, {}).get("flops", 0.0)
        found[part] = f"{flops / 1e9:,.2f} GFLOP", flops / rates.float32, flops / rates.bfloat16
    for part, seconds in (("decoder forward", decoding.forward), ("decoder backward", decoding.backward)):
        flops = cost.counted.get(part, {}).get("flops", 0.0)
        seconds += max(0.0, flops - decoding.convolution_flops) / rates.float32
        found[part] = f"{flops / 1e9:,.2f} GFLOP, LSTM if it has one", seconds, seconds
    for part in ("losses", "targets' spectra"):
        moved = cost.counted.get(part, {}).get("fft_bytes", 0.0)
        found[part] = f"{moved / 1e9:.2f} GB of Fourier transforms", moved / rates.memory, moved / rates.memory
    return found


def print_roofline(console: Console, title: str, cost: StepCost, least: dict[str, tuple[str, float, float]]) -> None:
    """Each part's floors beside its measured time, and the share of the floors' sum in the step."""
    table = Table(title=title)
    for name in ("part", "does", "floor s, fp32", "floor s, bf16", "measured s", "fp32 floor", "bf16 floor"):
        table.add_column(name, justify="left" if name in ("part", "does") else "right")
    sums = [0.0, 0.0]
    for part in PARTS:
        measured = seconds_of(cost.parts[part]) if part in cost.parts else 0.0
        does, *seconds = least.get(part, ("", 0.0, 0.0))
        sums = [total + one for total, one in zip(sums, seconds, strict=True)]
        shares = [f"{one / measured:.0%}" if one and measured else "–" for one in seconds]
        table.add_row(part, does, *(f"{one:.3f}" if one else "–" for one in seconds), f"{measured:.3f}", *shares)
    table.add_section()
    shares = [f"{total / cost.seconds:.0%}" for total in sums]
    table.add_row("step", "", *(f"{total:.3f}" for total in sums), f"{cost.seconds:.3f}", *shares)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(options.threads)
    console, device = Console(width=140), torch.device(options.device)
    rates = Rates.measure(device)
    console.print(
        f"matrix products: {rates.float32 / 1e9:.0f} GFLOP/s in float32, {rates.bfloat16 / 1e9:.0f} in bfloat16; "
        f"memory: {rates.memory / 1e9:.1f} GB/s, {options.threads} threads"
    )
    codec = load_codec(options.codec, options.codec_repository, None).to(device)
    variants: dict[str, tuple[str, ...]] = {"": ()}
    if device.type == "cuda":
        variants[", --compile true"] = ("--compile", "true")
    with tempfile.TemporaryDirectory() as folder:
        bench = StepBench(Path(folder), options)
        for case in [Case.parse(text) for text in options.cases.split(",")]:
            eager = bench.measure(case, more=tuple(options.flags), count_flops=True)
            decoding = decode_alone(codec, eager.decoded)
            least = floors(eager, rates, decoding)
            rate = decoding.convolution_flops / decoding.convolution_seconds / 1e9
            for name, flags in variants.items():
                cost = bench.measure(case, more=(*flags, *options.flags)) if flags else eager
                print_roofline(console, f"{case}{name}; the decoder's convolutions: {rate:.0f} GFLOP/s", cost, least)


if __name__ == "__main__":
    main()
