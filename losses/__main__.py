"""The loss doctor: `python -m losses` checks every loss, or those of --only, on noise and music or on your files."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from losses.doctor import cases, checks
from losses.doctor.cases import Material
from losses.doctor.checks import Report
from losses.registry import Entry, load_plugins

USER_ERROR = 2
WIDTH = 120  # columns of output that goes to a file or pipe
NARROW = 100  # below so many columns long names are broken into two lines
ONE_TABLE = 80  # below so many columns there are two tables
LONGEST = 18  # characters of a line of a name
SAMPLE_RATE, SECONDS = 24000, 1.0
MOST_SECONDS, MOST_HERTZ = 86_400, 1_000_000
MOST_SAMPLES = 10_000_000  # fits into the memory of a small machine, whatever the loss

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "token_normalize_func": lambda name: name.replace("-", "_") if len(name) > 1 else name,
        "help_option_names": ["--help", "-h"],
    },
)


@app.command(help=__doc__)
def main(
    only: Annotated[str | None, typer.Option("--only", help="losses to check: a,b,c; default: all")] = None,
    input_: Annotated[Path | None, typer.Option("--input", help="audio file to use as the prediction")] = None,
    target: Annotated[Path | None, typer.Option("--target", help="audio file to use as the target")] = None,
    sample_rate: Annotated[
        int | None, typer.Option("--sample_rate", help="sample rate of the noise and music, Hz; default: 24000")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="length of the signals; default: 1, or the whole files")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    plugins: Annotated[str, typer.Option("--plugins", help="modules or files with losses of your own: a,b.py")] = "",
) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    entries = selected(only, plugins)
    if device not in ("cpu", "cuda"):
        refuse(f"--device {device}: must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        refuse("--device cuda: torch finds no CUDA device; use --device cpu")
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        refuse(f"--seconds {seconds:g}: must be above 0, and at most {MOST_SECONDS}")
    if sample_rate is not None and not 1 <= sample_rate <= MOST_HERTZ:
        refuse(f"--sample_rate {sample_rate}: must be above 0, and at most {MOST_HERTZ}")
    place = torch.device(device)
    material = signals(console, input_, target, sample_rate, seconds)
    pairs = {name: (p.to(place), t.to(place)) for name, (p, t) in material.pairs.items()}
    material = replace(material, pairs=pairs)

    progress = Console(stderr=True)
    watched = track(entries.items(), "Examining", console=progress, transient=True, disable=not progress.is_terminal)
    reports = [checks.examine(name, entry, material, place) for name, entry in watched]
    check_length(reports, material)
    for report in reports:  # last, because it changes the memory allocator's settings, which slows the losses down
        if report.step is not None:
            report.megabytes = checks.peak_memory(report.step, place) / 1e6
    print_table(console, reports, material, place)
    failed = print_notes(console, reports)
    for text, wrong in checks.guide(material.sample_rate, place).items():
        line(console, wrong is None, text if wrong is None else f"{text.split(':')[0]}: {wrong}")
        failed |= wrong is not None
    raise typer.Exit(int(failed))


def selected(only: str | None, plugins: str) -> dict[str, Entry]:
    """The losses that --only names, or all of them, those of --plugins included."""
    try:
        load_plugins(plugins)
    except ValueError as error:
        refuse(f"--plugins {plugins}: {error}")
    entries = cases.all_entries()
    names = list(entries) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in entries]:
        refuse(f"--only {','.join(unknown)}: no such loss; there are {', '.join(entries)}")
    if not names:
        refuse("--only names no loss; give names separated by commas")
    return {name: entries[name] for name in names}


def signals(
    console: Console, prediction: Path | None, target: Path | None, sample_rate: int | None, seconds: float | None
) -> Material:
    """The signals of the given files, or noise and music if there are none."""
    if prediction is None and target is None:
        sample_rate, seconds = sample_rate or SAMPLE_RATE, seconds or SECONDS
        if not seconds * sample_rate <= MOST_SAMPLES:
            refuse(f"--seconds {seconds:g}: at most {MOST_SAMPLES // sample_rate} s are possible at {sample_rate} Hz")
        if round(seconds * sample_rate) < 1:
            refuse(f"--seconds {seconds:g}: shorter than one sample at {sample_rate} Hz")
        return cases.synthesised(sample_rate, seconds)
    if prediction is None or target is None:
        refuse("--input and --target go together: give both")
    (ours, rate), (theirs, other) = read("--input", prediction), read("--target", target)
    if rate != other:
        refuse(f"{prediction} has {rate} Hz and {target} {other} Hz; resample one of them")
    if sample_rate not in (None, rate):
        refuse(f"--sample_rate {sample_rate}: the files have {rate} Hz; leave this flag out")
    if len(ours[0]) != len(theirs[0]):
        refuse(f"{prediction} has {len(ours[0])} channel(s) and {target} {len(theirs[0])}; make them equal")
    samples = min(ours.shape[-1], theirs.shape[-1])
    if ours.shape[-1] != theirs.shape[-1]:
        longer = prediction if ours.shape[-1] > samples else target
        most = max(ours.shape[-1], theirs.shape[-1])
        line(console, None, f"{longer} is cut from {most / rate:.3f} s to {samples / rate:.3f} s")
    if seconds is not None:
        samples = min(samples, max(1, round(seconds * rate)))
    return Material({"files": (ours[..., :samples], theirs[..., :samples])}, rate, len(ours[0]))


def read(flag: str, path: Path) -> tuple[Tensor, int]:
    """An audio file as `[1, C, N]`, and its rate in Hz."""
    import soundfile

    if not path.is_file():
        refuse(f"{flag} {path}: no such file")
    try:
        audio, rate = soundfile.read(os.fsencode(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, MemoryError) as error:
        refuse(f"{flag} {path}: cannot be read as audio ({error})")
    signal = torch.from_numpy(audio.T.copy())[None]
    if not signal.numel():
        refuse(f"{flag} {path}: contains no samples")
    if not signal.isfinite().all():
        refuse(f"{flag} {path}: contains samples that are not finite")
    if signal.shape[1] > 2:
        refuse(f"{flag} {path}: has {signal.shape[1]} channels; give a mono or stereo file")
    return signal, int(rate)


def check_length(reports: list[Report], material: Material) -> None:
    samples = material.shape[-1]
    needs = {report.name: report.shortest for report in reports if (report.shortest or 0) > samples}
    if needs:
        wanted = ", ".join(f"{least} for {name}" for name, least in needs.items())
        refuse(f"{samples} samples ({samples / material.sample_rate:.3g} s) are too few; at least: {wanted}")


def print_table(console: Console, reports: list[Report], material: Material, device: torch.device) -> None:
    items, _, samples = material.shape
    shape = f"[{items}, {material.channels}, {samples}]" + " (two channels for stereo losses)" * (
        material.channels == 1
    )
    title = f"Losses at {material.sample_rate} Hz on {device.type}, {shape}"
    console.print(title)
    values, costs = (*material.pairs, "itself", "safe"), ("least", "ch.", "ms", "MB", "gradient")
    for columns in [(*values, *costs)] if console.width >= ONE_TABLE else [values, costs]:
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("loss", overflow="fold", min_width=min(LONGEST, console.width // 2))
        for column in columns:
            table.add_column(column, justify="left" if column in ("ch.", "safe") else "right", no_wrap=True)
        for report in reports:
            name = folded(report.name) if console.width < NARROW else report.name
            cells = cells_of(report, material)
            note = f"\n[dim]{report.note}[/]" if report.note else ""
            table.add_row(name + note, *(cells[column] for column in columns))
        console.print(table)
    console.print(
        f"{', '.join(material.pairs)}: value, prediction against target. itself: value of the target against itself, "
        "✓ if that is its minimum.\n"
        f"safe: ✓ for each of {', '.join(checks.SAFETY)} with a finite value and gradient.\n"
        "least: samples needed. ch.: channels accepted. ms, MB: forward and backward, peak memory. gradient: norm for "
        "one item.\n",
        style="dim",
    )


def cells_of(report: Report, material: Material) -> dict[str, str]:
    """A loss's row of the table, by column."""
    return {
        **{pair: number(report.values.get(pair, math.nan)) for pair in material.pairs},
        "itself": f"{mark(report.at_minimum)} {number(round(report.identity, 6) + 0.0)}".strip(),
        "safe": "".join(map(mark, report.safe)) or "–",
        "least": str(report.shortest or "–"),
        "ch.": report.channels or "–",
        "ms": number(report.milliseconds),
        "MB": "–" if math.isnan(report.megabytes) else f"{report.megabytes:.1f}",
        "gradient": number(report.gradient),
    }


def print_notes(console: Console, reports: list[Report]) -> bool:
    """Warnings and problems, a line each; returns whether a loss has failed."""
    for report in reports:
        for warning in report.warnings:
            line(console, None, f"{report.name}: {warning}")
        for problem in report.problems:
            line(console, False, f"{report.name}: {problem}")
    return any(report.problems for report in reports)


def number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def mark(good: bool | None) -> str:
    return "" if good is None else "[green]✓[/]" if good else "[red]✗[/]"


def folded(name: str) -> str:
    """A long name on two lines, broken after an underscore."""
    lines = textwrap.wrap(name.replace("_", "_ "), LONGEST)
    return "\n".join(line.replace(" ", "") for line in lines)


def line(console: Console, good: bool | None, text: str) -> None:
    console.print(f"{'[yellow]![/]' if good is None else mark(good)} {escape(text)}", soft_wrap=True)


def refuse(problem: str) -> NoReturn:
    """Exits with status 2 after one line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(problem)}")
    raise typer.Exit(USER_ERROR)


if __name__ == "__main__":
    app()
