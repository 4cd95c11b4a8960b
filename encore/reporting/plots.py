"""Plots of figures: points with their intervals, and curves over time, as PNG without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from encore.reporting.spectrograms import BACKGROUND, INK
from encore.statistics import Interval

GRID = "#3a3e47"
# Okabe and Ito's, which the colour-blind tell apart; the first for the model.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#a6a9b0", "#0072b2")
DASHES = ("-", "--", "-.", ":")
WIDTH = 5.2  # inches: small, so that the text is still read where the picture is as wide as a phone


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for every name."""
    return dict(zip(names, cycle(COLOURS), strict=False))


def points(
    panels: Mapping[str, Mapping[str, Interval]],
    looks: Mapping[str, str],
    path: Path | BinaryIO,
    reference: float | None = None,
    least: float | None = None,
) -> None:
    """Writes a PNG with a panel per title: a point per name with its interval, the first name on top.

    Args:
        panels: figures by name, by the panel's title; what is not finite is left out.
        looks: the names' colours.
        reference: a value that gets a line across all rows.
        least: the left end of the axis; what lies beyond it is an arrow there.
    """
    names = [name for name in looks if any(name in values for values in panels.values())]
    figure, axes = _panels(panels, 0.55 + 0.2 * len(names))
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        _title(panel, title)
        if reference is not None:
            panel.axvline(reference, color=INK, linewidth=0.8, linestyle="--")
        for row, name in enumerate(names):
            estimate = values.get(name)
            if estimate is None or not math.isfinite(estimate.value):
                continue
            colour = looks[name]
            if least is not None and estimate.value < least:
                panel.plot(least, row, marker="<", markersize=5, color=colour, clip_on=False)
                continue
            if estimate.low is not None and estimate.high is not None:
                panel.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2)
            panel.plot(estimate.value, row, marker="o", markersize=5, color=colour)
        panel.set_yticks(range(len(names)), names, parse_math=False)
        panel.set_ylim(len(names) - 0.4, -0.6)
        if least is not None:
            panel.set_xlim(left=least)
        panel.grid(axis="x", color=GRID, linewidth=0.6)
    figure.savefig(path, format="png")


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]], looks: Mapping[str, str], path: Path | BinaryIO, xlabel: str
) -> None:
    """Writes a PNG with a panel per title: a curve per name, in its colour, over 1, 2, 3, … of what `xlabel` says."""
    names = [name for name in looks if any(name in values for values in panels.values())]
    dashes = dict(zip(names, cycle(DASHES), strict=False))
    figure, axes = _panels(panels, 1.7)
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        _title(panel, title)
        for name, curve in values.items():
            style = {"color": looks[name], "linestyle": dashes[name], "linewidth": 1.4}
            panel.plot(range(1, len(curve) + 1), curve, label=name, **style)
        panel.grid(color=GRID, linewidth=0.6)
    axes[-1].set_xlabel(xlabel, color=INK, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(names)), fontsize=8, labelcolor=INK, frameon=False
    )
    figure.savefig(path, format="png")


def _panels(panels: Mapping[str, object], inches: float) -> tuple[Canvas, list[Axes]]:
    figure = Canvas(figsize=(WIDTH, 0.6 + inches * len(panels)), dpi=180, layout="constrained", facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    for panel in axes:
        panel.set_facecolor(BACKGROUND)
        panel.tick_params(colors=INK, labelsize=8)
        for edge in panel.spines.values():
            edge.set_color(GRID)
    return figure, axes


def _title(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
