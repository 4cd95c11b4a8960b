"""Plots as PNG, without matplotlib's global state: points with their intervals, and curves over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from encore.statistics import Interval

# Light on dark, like the colour map of the spectrograms, which suits light pages and dark ones.
BACKGROUND, INK, GRID = "#16181d", "#e8e8ea", "#3a3e47"
# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart; the first one is the model's.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#a6a9b0", "#0072b2")
DASHES = ("-", "--", "-.", ":")
WIDTH = 5.2  # inches: small, so that the text can be read on a phone
DPI = 180


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same for the same place in the order."""
    return dict(zip(names, cycle(COLOURS), strict=False))


def new_figure(panels: int, height: float, **sharing: bool) -> tuple[Figure, list[Axes]]:
    """A dark figure of that height in inches, with panels below one another; `sharing`: `sharex`, `sharey`."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=BACKGROUND)
    return figure, list(figure.subplots(panels, 1, squeeze=False, **sharing)[:, 0])


def set_title(panel: Axes, title: str) -> None:
    """Writes a panel's title above its left end, as plain text."""
    panel.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)


def save(figure: Figure, path: Path | BinaryIO) -> None:
    """Writes a figure of `new_figure` as PNG; `savefig` would draw it twice."""
    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 1})  # twice as fast as 6, 8% larger


def points(
    panels: Mapping[str, Mapping[str, Interval]],
    looks: Mapping[str, str],
    path: Path | BinaryIO,
    reference: float | None = None,
    least: float | None = None,
) -> None:
    """Writes a PNG with a panel per title: a point per name with its interval, the first name on top.

    Args:
        panels: estimates by name, by the panel's title; those that are not finite are left out.
        looks: the names' colours; see `colours`.
        path: file to write, or an open binary one.
        reference: a value that is marked by a line across all rows.
        least: left end of the axis; an estimate below it is an arrow there.
    """
    names = [name for name in looks if any(name in values for values in panels.values())]
    figure, axes = _plot_panels(panels, 0.55 + 0.2 * len(names))
    for panel, values in zip(axes, panels.values(), strict=True):
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
    save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]], looks: Mapping[str, str], path: Path | BinaryIO, xlabel: str
) -> None:
    """Writes a PNG with a panel per title: a curve per name, its values at 1, 2, 3, … on the x axis.

    Args:
        panels: curves by name, by the panel's title.
        looks: the names' colours; see `colours`.
        path: file to write, or an open binary one.
        xlabel: label of the x axis, with its unit.
    """
    names = [name for name in looks if any(name in values for values in panels.values())]
    dashes = dict(zip(names, cycle(DASHES), strict=False))
    figure, axes = _plot_panels(panels, 1.7)
    for panel, values in zip(axes, panels.values(), strict=True):
        for name, curve in values.items():
            style = {"color": looks[name], "linestyle": dashes[name], "linewidth": 1.4}
            panel.plot(range(1, len(curve) + 1), curve, label=name, **style)
        panel.grid(color=GRID, linewidth=0.6)
    axes[-1].set_xlabel(xlabel, color=INK, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(names)), fontsize=8, labelcolor=INK, frameon=False
    )
    save(figure, path)


def _plot_panels(panels: Mapping[str, object], height: float) -> tuple[Figure, list[Axes]]:
    figure, axes = new_figure(len(panels), 0.6 + height * len(panels))
    figure.set_layout_engine("constrained")
    for panel, title in zip(axes, panels, strict=True):
        set_title(panel, title)
        panel.set_facecolor(BACKGROUND)
        panel.tick_params(colors=INK, labelsize=8)
        for edge in panel.spines.values():
            edge.set_color(GRID)
    return figure, axes
