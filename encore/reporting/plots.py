"""Plots as images, without matplotlib's global state: curves over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Light on dark, like the colour map of the spectrograms, which suits light pages and dark ones.
BACKGROUND, INK, GRID = "#16181d", "#e8e8ea", "#3a3e47"
# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart; the first one is the model's.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#a6a9b0", "#0072b2")
DASHES = ("-", "--", "-.", ":")
WIDTH = 4.0  # inches: small, so that the text can be read on a phone
DPI = 200
WEBP_QUALITY = 70


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
    """Writes a figure of `new_figure`: as PNG to a path, to an open file as WebP, which is a fifth of the size."""
    canvas = FigureCanvasAgg(figure)  # `savefig` would draw it twice
    if isinstance(path, Path):
        canvas.print_png(path, pil_kwargs={"compress_level": 1})  # twice as fast as 6, 8% larger
    else:
        canvas.print_webp(path, pil_kwargs={"quality": WEBP_QUALITY, "method": 2})


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]], looks: Mapping[str, str], path: Path | BinaryIO, xlabel: str
) -> None:
    """Writes an image with a panel per title: a curve per name, its values at 1, 2, 3, … on the x axis.

    Args:
        panels: curves by name, by the panel's title.
        looks: the names' colours; see `colours`.
        path: PNG file to write, or an open binary one, which becomes WebP.
        xlabel: label of the x axis, with its unit.
    """
    names = [name for name in looks if any(name in values for values in panels.values())]
    dashes = dict(zip(names, cycle(DASHES), strict=False))
    figure, axes = _plot_panels(panels, 1.4)
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
    figure, axes = new_figure(len(panels), 0.6 + height * len(panels), sharex=True)
    figure.set_layout_engine("constrained")
    for panel, title in zip(axes, panels, strict=True):
        set_title(panel, title)
        panel.set_facecolor(BACKGROUND)
        panel.tick_params(colors=INK, labelsize=8)
        for edge in panel.spines.values():
            edge.set_color(GRID)
    return figure, axes
