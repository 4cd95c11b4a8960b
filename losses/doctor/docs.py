"""Writes the tables of docs/losses.md from the registry and docstrings: `python -m losses.doctor.docs docs/losses.md`.

A table is between `<!-- losses: GROUP -->` and `<!-- end -->`; its last two columns are measured. The names of the
losses that are distances are between `<!-- distances -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from losses.doctor.cases import Material, all_entries, synthesised
from losses.registry import Entry

HEAD = "| loss | formula | when to use it | noise | music |\n|---|---|---|---|---|\n"
Scales = Mapping[str, tuple[str, str]]  # by name of the loss: its values on noise and on music


def updated(page: str, scales: Scales) -> str:
    """The page with its tables written anew.

    Raises:
        ValueError: a group of losses for which the page has no table.
    """
    entries = all_entries()
    tables = re.findall(r"<!-- losses: (\w+) -->", page)
    if missing := {entry.group for entry in entries.values()} - {*tables}:
        raise ValueError(f"the page lacks the table <!-- losses: {missing.pop()} -->")
    for group in tables:
        rows = [row(name, entry, scales) for name, entry in entries.items() if entry.group == group]
        before, begin, rest = page.partition(f"<!-- losses: {group} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        page = "".join([before, begin, HEAD, *rows, end, after])
    distances = ", ".join(f"`{name}`" for name, entry in entries.items() if entry.distance)
    return re.sub("(?<=<!-- distances -->\n).*?(?=<!-- end -->)", f"{distances}.\n", page, flags=re.DOTALL)


def row(name: str, entry: Entry, scales: Scales) -> str:
    texts = [text.replace("|", r"\|") or "–" for text in (entry.formula, entry.use)]
    return "| " + " | ".join([f"`{name}`", *texts, *scales.get(name, ("–", "–"))]) + " |\n"


def written_scales(page: str) -> dict[str, tuple[str, str]]:
    """The measured columns of a page's tables."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    return {name: (noise, music) for name, noise, music in rows}


def measured_scales() -> dict[str, tuple[str, str]]:
    """Each loss's mean value on a second of noise and of synthesised music at 24 kHz, with its default settings."""
    material = synthesised(24000, 1)
    return {name: scales_of(entry, material) for name, entry in all_entries().items()}


def scales_of(entry: Entry, material: Material) -> tuple[str, str]:
    loss = entry.build(material.sample_rate)
    pairs = material.with_channels(entry.channels or 1).values()
    # As in training, where the random resolutions are drawn anew for every call.
    noise, music = (f"{loss(p.clone().requires_grad_(), t).mean().item():.3g}" for p, t in pairs)
    return noise, music


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text(), measured_scales()))
