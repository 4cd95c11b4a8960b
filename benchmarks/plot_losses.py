"""The curves of docs/loss_curves.md: every loss's value and gradient as a sound moves away from its target.

`python -m benchmarks.plot_losses` draws them for all losses of the registry and the adversary's, and writes the page;
`--only mel,stft` draws these alone. The same machine gives the same files.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from losses.doctor.cases import all_entries
from losses.registry import Entry

DOCS = Path(__file__).resolve().parent.parent / "docs"
RATE, SECONDS, LEVEL = 24000, 0.6, 0.1  # Hz; s; RMS of the target, −20 dBFS
ATTACK = 0.003  # s: notes begin softly, so that a delay has a derivative
HUM = 10 ** (-70 / 20)  # RMS of the noise that target and prediction share, as recordings have some
STYLE = {"svg.hashsalt": "encore", "svg.fonttype": "none"}
GROUPS = {"waveform": "Waveform", "spectral": "Spectral", "perceptual": "Perceptual", "adversarial": "Adversarial"}
STEP = 1e-3  # of a setting, for derivatives in float64
NO_SLOPE = 1e-4  # a cosine
VALUE, GRADIENT, AWAY = "#3f51b5", "#e07b00", "#d32f2f"

HEAD = """# The losses' curves

<!-- Written by `python -m benchmarks.plot_losses`, and so are the pictures. -->

What does a loss tell a model that is nearly right? The target is {seconds:g} s of plucked notes at 24 kHz, −20 dBFS.
The prediction is the same notes, but louder or quieter, later or earlier, out of tune, or with white noise added.

- **Blue**, left axis: the value, with default settings. **Red** where it leads astray: following the gradient there
  would take level, delay, pitch or noise away from the target's.
- **Orange**, right axis: the norm of the gradient at the prediction's samples. It says how much the loss contributes to
  a sum with others, and whether it fades as it is solved. Losses differ by powers of ten here, which is why shares of
  gradients, not weights, are what to compare ([training](training.md#weights-shares-and-the-balancer)).

Level, delay and pitch are one parameter each for all notes; noise is the ratio of the notes' power to its own, high on
the left. [All losses](losses.md) has formulas and uses.
"""


@dataclass(frozen=True)
class Sweep:
    """One way for a prediction to differ from its target.

    Attributes:
        label: of the axis, with the unit.
        settings: the values drawn, `[P]`.
        predictions: at these, `[P, 2, N]`.
        derivatives: of the predictions by the setting, likewise.
        reverse: whether the axis runs from the high to the low values.
    """

    label: str
    settings: Tensor
    predictions: Tensor
    derivatives: Tensor
    reverse: bool = False


@dataclass(frozen=True)
class Curve:
    """A loss along a sweep, `[P]` each.

    Attributes:
        value: of the loss.
        gradient: L2 norm of its gradient at the prediction's samples; their full scale is 1.
        slope: the cosine of the angle between that gradient and the direction of the sweep: what following the
            gradient does to the setting.
    """

    value: Tensor
    gradient: Tensor
    slope: Tensor


@functools.cache
def _notes() -> np.ndarray:
    """Onset (s), pitch (Hz) and decay (1/s) of the notes of both channels, `[3, 2, notes]`."""
    random = np.random.default_rng(0)
    onsets = np.tile(np.arange(0.05, SECONDS, 0.15), (2, 1))
    pitches = 110 * 2 ** (random.integers(0, 25, onsets.shape) / 12)
    return np.stack([onsets, pitches, random.uniform(3, 8, onsets.shape)])


def notes(delay: Tensor, ratio: Tensor) -> Tensor:
    """Plucked notes `[P, 2, N]`, `delay [P]` seconds late and at `ratio [P]` times their pitch; RMS about 0.1."""
    clock = torch.arange(round(SECONDS * RATE), dtype=torch.float64) / RATE
    channels = []
    for channel in _notes().transpose(1, 2, 0):
        row = torch.zeros(1, len(clock), dtype=torch.float64)
        for onset, pitch, decay in channel:
            since = clock - onset - delay[:, None]
            gone = since.clamp_min(0)
            envelope = 1 - torch.exp(-gone / ATTACK)
            for overtone in range(1, 9):
                angle = 2 * math.pi * pitch * overtone * ratio[:, None] * since
                row = row + envelope * torch.exp(-decay * overtone * gone) * torch.sin(angle) / overtone
        channels.append(row)
    return 0.2 * torch.stack(channels, 1)


def _noise(seed: int) -> Tensor:
    return torch.randn(1, 2, round(SECONDS * RATE), generator=torch.Generator().manual_seed(seed))


@functools.cache
def target() -> Tensor:
    """`[1, 2, N]`, both channels of their own notes."""
    return notes(torch.zeros(1).double(), torch.ones(1).double()) + HUM * _noise(1)


def along(label: str, settings: Tensor, change: Callable[[Tensor], Tensor], reverse: bool = False) -> Sweep:
    """The sweep of `change`, which gives `[P, 2, N]` from settings `[P]`."""
    settings = settings.double()
    derivatives = (change(settings + STEP) - change(settings - STEP)) / (2 * STEP)
    return Sweep(label, settings.float(), change(settings).float(), derivatives.float(), reverse)


def louder(db: Tensor) -> Tensor:
    return target() * _factor(db)


def later(milliseconds: Tensor) -> Tensor:
    return notes(milliseconds / 1000, 0 * milliseconds + 1) + HUM * _noise(1)


def higher(cents: Tensor) -> Tensor:
    return notes(0 * cents, 2 ** (cents / 1200)) + HUM * _noise(1)


def noisier(snr: Tensor) -> Tensor:
    return target() + LEVEL * _factor(-snr) * _noise(2)


def _factor(db: Tensor) -> Tensor:
    return 10 ** (db[:, None, None] / 20)


@functools.cache
def sweeps() -> tuple[Sweep, ...]:
    """The four sweeps; at 0 dB, 0 ms and 0 cents the prediction is the target."""
    return (
        along("level, dB", torch.linspace(-24, 24, 33), louder),
        along("delay, ms", torch.linspace(-12, 12, 81), later),
        along("pitch, cents", torch.linspace(-300, 300, 61), higher),
        along("noise: SNR, dB", torch.linspace(-10, 50, 25), noisier, reverse=True),
    )


def curve(entry: Entry, sweep: Sweep) -> Curve:
    """Value and gradients of a loss along a sweep."""
    channels = entry.channels or 1
    prediction = sweep.predictions[:, :channels].clone().requires_grad_()
    loss = entry.build(RATE)
    loss.reduction = "none"
    value = loss(prediction, target()[:, :channels].float().repeat(len(prediction), 1, 1))
    (gradient,) = torch.autograd.grad(value.sum(), prediction)
    slope = torch.cosine_similarity(gradient.flatten(1), sweep.derivatives[:, :channels].flatten(1))
    return Curve(value.detach(), gradient.flatten(1).norm(dim=1), slope)


def astray(sweep: Sweep, found: Curve) -> Tensor:
    """Where following the slope downhill leads away from the target, `[P]`."""
    uphill = -sweep.settings.sign() if not sweep.reverse else torch.ones_like(sweep.settings)
    return found.slope * uphill > NO_SLOPE


def draw(entry: Entry, path: Path) -> None:
    """Writes the four panels of a loss as an SVG file."""
    figure = Figure(figsize=(6, 3.9), layout="constrained")
    for axes, sweep in zip(figure.subplots(2, 2).flat, sweeps(), strict=True):
        _panel(axes, sweep, curve(entry, sweep))
    figure.savefig(path, transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    path.write_text(_compact(path.read_text()))


def _compact(svg: str) -> str:
    """Coordinates to a tenth of a point, no list of fonts and no indentation: half of the size."""

    def rounded(tag: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", tag[0])

    svg = re.sub("font-family: [^;]*", "font-family: sans-serif", re.sub("<[^>]*>", rounded, svg))
    return re.sub(r"\n\s*", "\n", svg)


def _panel(axes: Axes, sweep: Sweep, found: Curve) -> None:
    settings, value = sweep.settings.numpy(), found.value.numpy()
    axes.plot(settings, value, color=VALUE, linewidth=1.6)
    axes.plot(settings, np.where(astray(sweep, found), value, np.nan), color=AWAY, linewidth=2.4)
    other = axes.twinx()
    other.plot(settings, found.gradient.numpy(), color=GRADIENT, linewidth=1.0)
    other.set_ylim(0, max(1.05 * float(found.gradient.max()), 1e-12))
    for side, color in ((axes, VALUE), (other, GRADIENT)):
        side.tick_params(axis="y", colors=color, labelsize=8)
        side.locator_params(axis="y", nbins=4)
        side.ticklabel_format(axis="y", scilimits=(-2, 4))
        side.yaxis.get_offset_text().set(color=color, size=8)
        side.spines["top"].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(sweep.label, fontsize=9)
    axes.axvline(0, color="grey", linewidth=0.5) if not sweep.reverse else axes.invert_xaxis()


def page(entries: Mapping[str, Entry]) -> str:
    """The text of docs/loss_curves.md."""
    parts = [HEAD.format(seconds=SECONDS)]
    for group, title in GROUPS.items():
        parts.append(f"\n## {title}\n")
        if group in NOTES:
            parts.append(f"\n{NOTES[group]}\n")
        for name, entry in entries.items():
            if entry.group == group:
                summary = entry.summary[:1].upper() + entry.summary[1:]
                parts.append(f"\n### {name}\n\n{summary}.\n\n![Curves of {name}](loss_curves/{name}.svg)\n")
    return "".join(parts)


NOTES = {
    "perceptual": "`embedding` is that of a small encoder with random weights, which gives the order of magnitude.",
    "adversarial": "Of a small discriminator with random weights: what it looks like before it has learned anything.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="losses to draw, a list a,b; default: all, and the page")
    only = [name for name in parser.parse_args().only.split(",") if name]
    entries = all_entries()
    (DOCS / "loss_curves").mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name in only or entries:
            draw(entries[name], DOCS / "loss_curves" / f"{name}.svg")
    if not only:
        (DOCS / "loss_curves.md").write_text(page(entries))


if __name__ == "__main__":
    main()
