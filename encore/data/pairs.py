"""The dataset format `pairs`: `FOLDER/{train,val}/pair_*_{input,output}.wav`, as prepare_data.py writes it."""

from __future__ import annotations

import csv
from pathlib import Path

from encore.data.dataset import SPLITS, Pair, check_pairs, register_dataset

COLUMNS = ("pair", "source_file", "start_second", "split")  # of metadata.csv
READ = {"pair", "source_file", "split"}  # of these


@register_dataset("pairs")
def find_pairs(folder: Path, sample_rate: int) -> dict[str, list[Pair]]:
    """The pairs of `folder/train` and `folder/val`, by name; their recordings come from `folder/metadata.csv`, if any.

    Raises:
        EncoreError: no pairs in a split, or all problems of the files together, each with its remedy.
    """
    recordings = _recordings(folder / "metadata.csv")
    found: dict[str, list[Pair]] = {}
    problems: list[str] = []
    for split in SPLITS:
        inputs = sorted((folder / split).glob("pair_*_input.wav"))
        outputs = sorted((folder / split).glob("pair_*_output.wav"))
        if not inputs and not outputs:
            problems.append(
                f"{folder / split}: no pair_*_input.wav in it; python prepare_data.py MUSIC --output {folder}"
            )
        names = [path.name.removesuffix("_input.wav") for path in inputs]
        found[split] = [
            Pair(name, path, path.with_name(f"{name}_output.wav"), recordings.get((split, name)))
            for name, path in zip(names, inputs, strict=True)
        ]
        expected = {pair.output for pair in found[split]}
        problems += [
            f"{path}: its input is missing; restore it or remove this file" for path in outputs if path not in expected
        ]
    return check_pairs(found, sample_rate, problems)


def _recordings(path: Path) -> dict[tuple[str, str], str]:
    """The file that each pair was cut from, by split and name; empty without a `metadata.csv` of prepare_data.py's.

    A data set that something else made may have a file of that name with other columns.
    """
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if READ - set(rows.fieldnames or ()):
            return {}
        return {(row["split"], row["pair"]): row["source_file"] for row in rows}
