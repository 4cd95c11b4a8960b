"""Speed and memory of the spectral losses, forward and backward to the prediction, beside auraloss and torch.stft.

python -m benchmarks.bench_losses [--threads 1] [--repeats 15] [--device cpu] [--energy]

Cases are run in turn within one process, so that a busy machine slows all alike; figures are the least processor time
(on a GPU, time) relative to the first of a group. Peak memory is what the resident set grows by in a process of its own
(on a GPU, what torch allocates). --energy measures an energy distance instead: attraction and repulsion of 2 samples of
8 items of 16 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache

import auraloss
import torch
import torchaudio
from rich.console import Console
from rich.table import Table
from torch import Tensor

import losses
from losses.doctor.checks import peak_memory
from losses.dsp.scales import a_weighting

RATE = 24000
SHAPES = ((8, 1, 48000), (16, 1, 24000))
SPECTRAL = ((512, 128, 512), (1024, 256, 1024), (2048, 512, 2048))
AURALOSS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
ENERGY_SHAPE = (16, 1, 384000)
ENERGY = ("spectral_energy", "mel", "mrstft")
ALL = ("spectral", "mel", "multi_mel", "complex_stft", "phase", "loudness")
Case = Callable[[Tensor, Tensor], Tensor]


def plain_stft(signal: Tensor, n_fft: int, hop: int, win: int) -> Tensor:
    window = torch.hann_window(win, device=signal.device)
    return torch.stft(signal.flatten(0, 1), n_fft, hop, win, window, return_complex=True)


def plain_magnitude(signal: Tensor, n_fft: int, hop: int, win: int) -> Tensor:
    return plain_stft(signal, n_fft, hop, win).abs().clamp_min(1e-4)


def bare(sizes: tuple[tuple[int, int, int], ...]) -> Case:
    """torch.stft of both signals and its backward pass, nothing else: what a loss built on it can't be faster than."""

    def run(prediction: Tensor, target: Tensor) -> Tensor:
        total = prediction.new_zeros(())
        for size in sizes:
            with torch.no_grad():
                plain_stft(target, *size)
            total = total + torch.view_as_real(plain_stft(prediction, *size)).sum()
        return total

    return run


@cache
def plain_filters(n_fft: int, n_mels: int, f_max: float, device: torch.device) -> Tensor:
    fbanks = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, f_max, n_mels, RATE, "slaney", "slaney")
    return fbanks.T.to(device)


def plain_mel(prediction: Tensor, target: Tensor, n_fft: int, n_mels: int, f_max: float) -> Tensor:
    filters = plain_filters(n_fft, n_mels, f_max, prediction.device)
    logs = [
        (filters @ plain_magnitude(signal, n_fft, n_fft // 4, n_fft)).clamp_min(1e-5).log()
        for signal in (prediction, target)
    ]
    return (logs[0] - logs[1]).abs().mean()


def plain_all(prediction: Tensor, target: Tensor) -> Tensor:
    """The losses of ALL as one writes them down: each with its own torch.stft."""
    total = prediction.new_zeros(())
    for size in SPECTRAL:
        p, t = plain_magnitude(prediction, *size), plain_magnitude(target, *size)
        total = total + ((p - t).norm() / t.norm() + (p.log() - t.log()).abs().mean()) / 3
    total = total + plain_mel(prediction, target, 1024, 80, 8000)
    for n_fft, n_mels in ((1024, 80), (2048, 160), (4096, 320)):
        total = total + plain_mel(prediction, target, n_fft, n_mels, 12000) / 3
    for size in SPECTRAL:
        p, t = plain_stft(prediction, *size), plain_stft(target, *size)
        total = total + (p - t).abs().mean() / t.abs().mean() / 3
    for size in SPECTRAL:
        difference = plain_stft(prediction, *size).angle() - plain_stft(target, *size).angle()
        for term in (difference, difference.diff(dim=-1), difference.diff(dim=-2)):
            total = total + (term - 2 * math.pi * (term / (2 * math.pi)).round()).abs().mean() / 3
    for size in SPECTRAL:
        p, t = plain_magnitude(prediction, *size), plain_magnitude(target, *size)
        frequencies = torch.linspace(0, RATE / 2, size[0] // 2 + 1, device=t.device)
        weights = (10 ** (a_weighting(frequencies) / 20))[:, None] * t
        total = total + (weights * (p.log() - t.log()).abs()).sum() / weights.sum() / 3
    return total


def ours(names: tuple[str, ...], shared: bool = True) -> Case:
    modules = [losses.create(name, RATE, reduction="none") for name in names]

    def run(prediction: Tensor, target: Tensor) -> Tensor:
        if not shared:
            return torch.stack([module(prediction, target) for module in modules]).sum(0).mean()
        with losses.shared_spectra():
            return torch.stack([module(prediction, target) for module in modules]).sum(0).mean()

    return run


def energy(shared: bool) -> Case:
    """Two samples of each item, in turn; each is compared with the item's target and with the other sample."""
    modules = [losses.create(name, RATE, reduction="none") for name in ENERGY]

    def run(samples: Tensor, target: Tensor) -> Tensor:
        rows = losses.shared_rows if shared else torch.Tensor.__getitem__
        each = torch.arange(len(samples) // 2).repeat_interleave(2)
        first = torch.arange(0, len(samples), 2)
        with losses.shared_spectra() if shared else contextlib.nullcontext():
            targets = rows(target[: len(samples) // 2], each)
            left, right = rows(samples, first), rows(samples, first + 1)
            values = [m(samples, targets).mean() - m(left, right).mean() / 2 for m in modules]
        return torch.stack(values).sum()

    return run


def groups(device: torch.device, of_energy: bool = False) -> dict[str, dict[str, Case]]:
    """The cases, by group; the first of each is what the others are measured against."""
    if of_energy:
        return {" + ".join(ENERGY): {"each comparison by itself": energy(False), "shared rows": energy(True)}}
    sizes = [list(column) for column in zip(*SPECTRAL, strict=True)]
    spectral = auraloss.freq.MultiResolutionSTFTLoss(*sizes).to(device)
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, 1024, hop_length=256, n_mels=80, f_max=8000.0, power=1.0, norm="slaney", mel_scale="slaney"
    ).to(device)

    def reference(prediction: Tensor, target: Tensor) -> Tensor:
        logs = [mel(signal).clamp_min(1e-5).log() for signal in (prediction, target)]
        return spectral(prediction, target) + (logs[0] - logs[1]).abs().mean()

    return {
        "multi-resolution STFT": {
            "auraloss": auraloss.freq.MultiResolutionSTFTLoss().to(device),
            "ours": losses.MultiResolutionSTFTLoss(reduction="batch"),
            "bare torch.stft": bare(AURALOSS),
        },
        "spectral + mel": {
            "auraloss + torchaudio": reference,
            "ours": ours(("spectral", "mel")),
            "bare torch.stft": bare(SPECTRAL),
        },
        "everything spectral": {
            "each its own torch.stft": plain_all,
            "ours": ours(ALL),
            "ours, not shared": ours(ALL, shared=False),
            "bare torch.stft": bare((*SPECTRAL, (4096, 1024, 4096))),
        },
    }


def signals(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(shape, generator=generator).mul_(0.1).to(device) for _ in range(2))
    return prediction.requires_grad_(), target


def step(case: Case, prediction: Tensor, target: Tensor) -> None:
    prediction.grad = None
    case(prediction, target).backward()
    if prediction.is_cuda:
        torch.cuda.synchronize()


def seconds(cases: dict[str, Case], shape: tuple[int, ...], repeats: int, device: torch.device) -> dict[str, float]:
    """The least time of each case's step."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    prediction, target = signals(shape, device)
    for case in cases.values():
        step(case, prediction, target)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            begun = clock()
            step(case, prediction, target)
            times[name].append(clock() - begun)
    return {name: min(values) for name, values in times.items()}


def peak(group: str, name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """Bytes that a step takes at its peak, over what was there before."""
    case = groups(device, group not in groups(device))[group][name]
    prediction, target = signals(shape, device)
    step(case, prediction[:2, :, :9000].detach().requires_grad_(), target[:2, :, :9000])
    return peak_memory(lambda: step(case, prediction, target), device)


def peak_elsewhere(*arguments: str) -> float:
    """`peak` in a new process, whose allocator gives back every large block at once."""
    command = [sys.executable, "-m", "benchmarks.bench_losses", "--peak", json.dumps(arguments)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def report(
    console: Console, shape: tuple[int, ...], threads: int, repeats: int, device: torch.device, of_energy: bool
) -> None:
    """Measures and prints the cases for signals of one shape."""
    table = Table(title=f"{list(shape)}, {threads} thread{'s' * (threads > 1)}, {device}", title_justify="left")
    for column in ("losses", "computed by", "ms", "time", "times as fast", "peak MB", "peak"):
        table.add_column(column, justify="left" if column in ("losses", "computed by") else "right")
    for group, cases in groups(device, of_energy).items():
        times = seconds(cases, shape, repeats, device)
        peaks = {
            name: peak(group, name, shape, device)
            if device.type == "cuda"
            else peak_elsewhere(group, name, json.dumps(shape))
            for name in cases
        }
        first = next(iter(cases))
        for name in cases:
            table.add_row(
                group if name == first else "",
                name,
                f"{1000 * times[name]:.1f}",
                f"{times[name] / times[first]:.2f}",
                f"{times[first] / times[name]:.2f}",
                f"{peaks[name] / 1e6:.0f}",
                f"{peaks[name] / peaks[first]:.2f}",
            )
        table.add_section()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: 1, then all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--energy", action="store_true", help="an energy distance of long signals")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.peak:
        group, name, shape = json.loads(arguments.peak)
        print(peak(group, name, tuple(json.loads(shape)), device))
        return
    console = Console(width=110)
    for threads in [arguments.threads] if arguments.threads else sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for shape in (ENERGY_SHAPE,) if arguments.energy else SHAPES:
            report(console, shape, threads, arguments.repeats, device, arguments.energy)


if __name__ == "__main__":
    main()
