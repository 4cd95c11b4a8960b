"""A manifest: a JSONL or CSV file that lists pairs of audio files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from encore.data.pairs import SPLITS, TEST, Pair
from encore.errors import EncoreError, listing

REQUIRED, OPTIONAL = ("input", "output", "split"), ("name", "recording")
Row = tuple[int, dict[str, Any] | str]  # number of the line, and its columns, or what is wrong with it


def find_listed(manifest: Path) -> dict[str, list[Pair]]:
    """The pairs that a manifest lists, by split.

    A line is a pair: the columns `input` and `output` name its files, relative to the manifest, and `split` is train,
    val or test. `name` and `recording` may stand beside them; others are left alone.

    Raises:
        EncoreError: the file cannot be read, or all problems of its lines together, each with line and column.
    """
    reader = READERS.get(manifest.suffix.lower())
    if reader is None:
        raise EncoreError(f"--dataset_folder {manifest}: a file must be a manifest, {' or '.join(READERS)}")
    found: dict[str, list[Pair]] = {split: [] for split in (*SPLITS, TEST)}
    problems = []
    try:
        for line, row in reader(manifest):
            problem = row if isinstance(row, str) else _problem(row, manifest.parent)
            if problem:
                problems.append(f"{manifest}: line {line}: {problem}")
            elif not isinstance(row, str):
                found[row["split"]].append(_pair(row, line, manifest.parent))
    except (OSError, UnicodeError, csv.Error) as error:
        raise EncoreError(f"{manifest}: cannot be read ({error})") from error
    if problems:
        raise EncoreError(listing(problems))
    return {split: pairs for split, pairs in found.items() if pairs}


def _rows_of_jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"is no JSON ({error})"
            else:
                yield number, row if isinstance(row, dict) else "must be a JSON object, {" + '"input": …}'


def _rows_of_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _rows_of_jsonl, ".csv": _rows_of_csv}


def _problem(row: dict[str, Any], folder: Path) -> str:
    """What is wrong with a line; empty: nothing."""
    for column in (*REQUIRED, *OPTIONAL):
        value = row.get(column)
        if not value and column in REQUIRED:
            return f"column {column}: missing; every line needs {', '.join(REQUIRED)}"
        if value is not None and not isinstance(value, str):
            return f"column {column}: {value!r} is no text"
        if column in ("input", "output") and not (folder / str(value)).is_file():
            return f"column {column}: {folder / str(value)}: no such file"
    splits = (*SPLITS, TEST)
    return "" if row["split"] in splits else f"column split: {row['split']}: must be one of {', '.join(splits)}"


def _pair(row: dict[str, Any], line: int, folder: Path) -> Pair:
    name = row.get("name") or f"line_{line:04d}"
    return Pair(name, folder / row["input"], folder / row["output"], row.get("recording") or None)
