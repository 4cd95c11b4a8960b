"""The dataset format `pairs`: `FOLDER/{train,val,test}/pair_*_{input,output}.wav`, shards, or a manifest."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from encore.data.manifest import find_listed
from encore.data.pairs import SPLITS, TEST, Found, Pairs, register_dataset
from encore.data.segments import ABSENT, AudioFiles
from encore.data.shards import INDEX, find_shards
from encore.errors import EncoreError, listing

COLUMNS = ("pair", "source_file", "start_second", "split", "altered")  # of metadata.csv
READ = {"pair", "source_file", "split"}  # of these
ROLES = ("input", "output")


@register_dataset("pairs")
def find_prepared(folder: Path, sample_rate: int) -> Found:
    """The pairs that a file lists; of a folder those of its shards, if it has an index of them, else those of wavs."""
    if folder.is_file():
        return find_listed(folder)
    return find_shards(folder) if (folder / INDEX).is_file() else find_wavs(folder)


def find_wavs(folder: Path) -> dict[str, Pairs]:
    """The pairs of `folder/{train,val,test}`, by name; their recordings come from `folder/metadata.csv`, if any.

    Raises:
        EncoreError: no pairs in train or val.
    """
    recordings = _recordings(folder / "metadata.csv")
    names: dict[str, list[str]] = {}
    files: list[str] = []
    stamps: list[tuple[int, int]] = []
    problems = []
    for split in (*SPLITS, TEST):
        found = _list_wavs(folder / split)
        # A file without its partner makes a pair too, so that the missing one is reported.
        names[split] = sorted({name.rpartition("_")[0] for name in found})
        if not names[split] and split in SPLITS:
            problems.append(
                f"{folder / split}: no pair_*_input.wav in it; python prepare_data.py MUSIC --output {folder}"
            )
        for file in (f"{name}_{role}.wav" for name in names[split] for role in ROLES):
            files.append(f"{split}/{file}")
            stamps.append(found.get(file, (ABSENT, 0)))
    if problems:
        raise EncoreError(listing(problems))
    sizes, times = np.array(stamps, np.int64).T
    segments, first, result = AudioFiles(folder, files, sizes, times), 0, dict[str, Pairs]()
    for split in [split for split in names if names[split]]:
        inputs = np.arange(first, first + 2 * len(names[split]), 2)
        first += 2 * len(names[split])
        known = [recordings.get((split, name)) for name in names[split]]
        result[split] = Pairs(segments, inputs, inputs + 1, names[split], known)
    return result


def _list_wavs(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of the files of pairs in a folder, by name."""
    endings = tuple(f"_{role}.wav" for role in ROLES)
    found = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("pair_") and entry.name.endswith(endings):
                    status = entry.stat()
                    found[entry.name] = status.st_size, status.st_mtime_ns
    return found


def _recordings(path: Path) -> dict[tuple[str, str], str]:
    """The file that each pair was cut from, by split and name; empty without a `metadata.csv` of prepare_data.py's.

    A data set that something else made may have a file of that name with other columns. Its names are compared and
    shown, and never opened.

    Raises:
        EncoreError: the file cannot be read, or a line of it lacks a column.
    """
    if not path.is_file():
        return {}
    line = 1
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            columns = next(rows, [])
            if READ - set(columns):
                return {}
            split, pair, source = (columns.index(name) for name in ("split", "pair", "source_file"))
            found = {}
            for row in rows:
                line = rows.line_num
                found[row[split], row[pair]] = row[source]
            return found
    except (OSError, csv.Error, IndexError) as error:
        raise EncoreError(
            f"{path}: line {line} cannot be read ({error}); copy or prepare the data set again"
        ) from error
