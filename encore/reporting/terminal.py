"""Tables on terminals of any width: nothing is cut, what does not fit stands below or is left to another table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

GAP = 2  # characters between two columns
HEAD_WIDTH = 14  # characters of a line of a heading, where it can be broken


@dataclass
class Column:
    """A column of a table, without markup.

    Attributes:
        heading: of one or several lines.
        cells: a row each.
        style: of all of it.
        left: whether it is aligned to the left.
    """

    heading: str
    cells: Sequence[str]
    style: str | None = None
    left: bool = False
    styles: dict[int, str] = field(default_factory=dict)  # of single cells, by their row

    def of(self, rows: Sequence[int]) -> Column:
        """The column with these rows alone."""
        styles = {place: self.styles[row] for place, row in enumerate(rows) if row in self.styles}
        return replace(self, cells=[self.cells[row] for row in rows], styles=styles)

    @property
    def width(self) -> int:
        lines = [line for text in (self.heading, *self.cells) for line in text.split("\n")]
        return max(map(len, lines), default=0)


def parts(label: Column, columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in order, as many in each part as fit beside the label; at least one."""
    available = width - label.width - GAP
    found: list[list[Column]] = []
    left = 0
    for column in columns:
        if not found or column.width + GAP > left:
            found.append([])
            left = available
        found[-1].append(column)
        left -= column.width + GAP
    return found


def narrowed(label: Column, width: int) -> Column:
    """The label with its names in several lines, where they would take more than half of the width."""
    if 2 * label.width <= width:
        return label
    return replace(label, cells=[folded(cell, width // 2 - 2) for cell in label.cells])


def that_fit(label: Column, columns: Sequence[Column], optional: Sequence[Column], width: int) -> list[Column]:
    """The columns, and as many of the optional ones, in their order, as fit beside them and the label."""
    left = width - sum(column.width + GAP for column in (label, *columns))
    chosen = list(columns)
    for column in optional:
        left -= column.width + GAP
        if left < 0:
            break
        chosen.append(column)
    return chosen


def table(label: Column, columns: Sequence[Column], title: str | None = None, ends: Sequence[int] = ()) -> Table:
    """A table of these columns; after the rows `ends` there is a line."""
    made = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in (label, *columns):
        side: JustifyMethod = "left" if column.left else "right"
        made.add_column(Text(column.heading), justify=side, style=column.style, no_wrap=True, overflow="fold")
    for row in range(len(label.cells)):
        cells = [Text(column.cells[row], column.styles.get(row, "")) for column in (label, *columns)]
        made.add_row(*cells, end_section=row in ends)
    return made


def folded(name: str, width: int = HEAD_WIDTH) -> str:
    """A name in lines of at most so many characters, broken after underscores and at spaces; never within a word."""
    lines = textwrap.wrap(name.replace("_", "_\0 "), width + 1, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line.replace("_\0 ", "_").replace("\0", "") for line in lines)
