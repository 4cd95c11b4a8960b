"""Which recordings are for train, val and test: whole files, or all of an artist's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from encore.data.cutting import FOLDER, SegmentConfig, Source
from encore.data.pairs import SPLITS, TEST
from encore.data.shards import NumberedNames
from encore.errors import EncoreError, listing

Division = dict[str, list[int]]  # indices of the sources of each split


class TooFewSources(EncoreError):
    """Too few files, or folders, give pairs."""


def split_sources(sources: Sequence[Source], config: SegmentConfig) -> Division:
    """Divides the sources that give pairs; groups stay together, at least one in each split, the seed chooses.

    Raises:
        TooFewSources: fewer groups than splits give pairs.
    """
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        if source.starts:
            groups.setdefault(group_of(source.name, config.val_group), []).append(index)
    splits = [*SPLITS, TEST] if config.test_fraction else list(SPLITS)
    if len(groups) < len(splits):
        raise TooFewSources(_too_few(sources, len(groups), splits, config))
    rest = list(groups.values())
    random.Random(config.seed).shuffle(rest)
    total, division = sum(map(len, rest)), Division()
    for split, fraction in (("val", config.val_fraction), (TEST, config.test_fraction)):
        if split in splits:
            held_out = hold_out(rest, max(1, round(fraction * total)), keep=len(splits) - 1 - len(division))
            rest = [group for group in rest if group not in held_out]
            division[split] = sorted(index for group in held_out for index in group)
    division["train"] = sorted(index for group in rest for index in group)
    return {split: division[split] for split in splits}


def group_of(name: str, kind: str) -> str:
    """What a file, by its path in the music folder, is never divided from: its top folder, or nothing but itself."""
    return name.partition("/")[0] + "/" if kind == FOLDER and "/" in name else name


def hold_out(groups: Sequence[list[int]], wanted: int, keep: int) -> list[list[int]]:
    """Those of the groups, in their order, that fit into `wanted` members; the smallest one if none does.

    At least `keep` groups are left.
    """
    held_out: list[list[int]] = []
    for group in groups:
        if sum(map(len, held_out)) + len(group) <= wanted and len(groups) - len(held_out) > keep:
            held_out.append(group)
    return held_out or [min(groups, key=len)]


def _too_few(sources: Sequence[Source], found: int, splits: Sequence[str], config: SegmentConfig) -> str:
    """Why there is nothing to divide, and what to do."""
    problems = [f"  {source.name}: {source.problem}" for source in sources if source.problem]
    what = "folder or file" if any(source.starts and "/" in source.name for source in sources) else "file"
    if config.val_group != FOLDER:
        what = "file"
    *others, last = splits
    count = {0: "no file gives pairs", 1: f"one {what} gives pairs"}.get(found, f"{found} {what}s give pairs")
    message = count + (f", and {', '.join(others)} and {last} need one each" if found else "")
    remedies = ["add music", "shorten --context_seconds or --segment_seconds"]
    remedies += ["--val_group file"] * (what != "file") + ["--test_fraction 0"] * (found == 2)
    return f"{message}; {', '.join(remedies[:-1])}, or {remedies[-1]}" + (f":\n{listing(problems)}" if problems else "")


def numbered(division: Division, sources: Sequence[Source]) -> Iterator[tuple[str, str, int, int]]:
    """Split, name, source and first sample of each pair, numbered by file and start."""
    for split, members in division.items():
        pairs = [(index, start) for index in members for start in sources[index].starts]
        names = NumberedNames(len(pairs))
        for number, (index, start) in enumerate(pairs):
            yield split, names[number], index, start
