"""Pairs in shards: `prepare_data.py --shards`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from encore.data.cutting import Cut, SegmentConfig, Source, cut_to_flac, in_order
from encore.data.division import Division
from encore.data.index_files import DIGEST_BYTES
from encore.data.shards import SHARD_BYTES, Member, ShardIndex, ShardWriter
from encore.data.staging import Progress, Staging, read_note
from encore.json_files import write_json

ORIGINALS, ALTERED = "shard", "altered"  # beginnings of the shards' names


class ShardedPairs:
    """Cuts files into shards, and writes their index in the end.

    Args:
        staging: where that is done.
        config: how files are cut.
    """

    def __init__(self, staging: Staging, config: SegmentConfig):
        self.staging, self.config = staging, config
        self.shards: list[dict[str, Any]] = []

    def cut(self, jobs: Sequence[Cut], workers: int, progress: Progress) -> list[Source]:
        """Cuts what an earlier run has not finished. All but the first of files with the same audio are left out."""
        kind, staging = ALTERED if jobs[0].copy else ORIGINALS, self.staging
        shards = self._finished(kind, jobs)
        sources = [Source.from_dict(entry["source"]) for shard in shards for entry in shard["sources"]]
        done = len(sources)
        staging.say_what_is_kept(done, len(jobs), progress)
        first = {source.content: source.name for source in sources}
        results = in_order(cut_to_flac, [(job, self.config) for job in jobs[done:]], workers)
        writer, entries = None, list[dict[str, Any]]()
        for job, (source, pieces) in zip(jobs[done:], progress.track(results, len(jobs), done), strict=True):
            if source.content and first.setdefault(source.content, source.name) != source.name:
                source, pieces = source.copy_of(first[source.content]), []
            sources.append(source)
            if pieces and writer is None:
                writer = ShardWriter(staging.data / f"{kind}-{len(shards):06d}.tar")
            folder = f"{job.name}.{job.copy}" if job.copy else job.name
            members = [writer.add(folder, start, flac) for start, flac in pieces] if writer is not None else []
            entries.append({"key": job.key, "source": asdict(source), "members": members})
            if writer is not None and writer.size >= SHARD_BYTES:
                shards.append(self._finish_shard(writer, entries))
                writer, entries = None, []
        if writer is not None:
            shards.append(self._finish_shard(writer, entries))
        self.shards += shards
        return sources

    def finish(self, jobs: Sequence[Cut], sources: Sequence[Source], division: Division) -> None:
        """Writes the index."""
        _index(self.shards, [job.key for job in jobs], sources, division, self.config).save(self.staging.data)

    def _finished(self, kind: str, jobs: Sequence[Cut]) -> list[dict[str, Any]]:
        """What an earlier run noted of its finished shards, as far as their files are the same; others are deleted."""
        shards: list[dict[str, Any]] = []
        done, staging = 0, self.staging
        while (noted := read_note(staging.folder / f"{kind}-{len(shards):06d}.json")) is not None:
            keys = [entry["key"] for entry in noted["sources"]]
            if keys != [job.key for job in jobs[done : done + len(keys)]]:
                changed = f" from {jobs[done].name} on" if done < len(jobs) else ""
                staging.note = f"files changed since the run that was stopped: cut again{changed}"
                break
            shards.append(noted)
            done += len(keys)
        kept = {shard["name"] for shard in shards}
        for path in [*staging.data.glob(f"{kind}-*"), *staging.folder.glob(f"{kind}-*.json")]:
            if path.with_suffix(".tar").name not in kept:
                path.unlink()
        return shards

    def _finish_shard(self, writer: ShardWriter, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Completes a shard, and notes what is in it: a shard without this note is made again."""
        writer.close()
        noted = {"name": writer.path.name, "size": writer.path.stat().st_size, "sources": entries}
        write_json(self.staging.folder / f"{writer.path.stem}.json", noted)
        return noted


def _index(
    shards: Sequence[dict[str, Any]],
    keys: Sequence[str],
    sources: Sequence[Source],
    division: Division,
    config: SegmentConfig,
) -> ShardIndex:
    """The index of shards, whose files have `keys`."""
    places, digests = list[tuple[int, int, int]](), list[str]()
    rows: dict[str, dict[int, int]] = {}  # for each file the row of the piece that begins at a sample
    for number, shard in enumerate(shards):
        for entry in shard["sources"]:
            members: list[Member] = entry["members"]
            rows[entry["key"]] = {start: len(places) + k for k, (start, *_) in enumerate(members)}
            places += [(number, begin, size) for _, begin, size, _ in members]
            digests += [digest for *_, digest in members]
    context, target = (length // config.piece_samples for length in (config.context_samples, config.target_samples))
    found = {
        split: [
            (rows[keys[i]][start], rows[keys[i]][start + config.context_samples], i)
            for i in members
            for start in sources[i].starts
        ]
        for split, members in division.items()
    }
    # A segment is a first piece and a number of pieces; if inputs and outputs have the same, many are both.
    wanted = [((first, context), (second, target)) for pairs in found.values() for first, second, _ in pairs]
    pieces, numbers = np.unique(np.array(wanted, np.int64).reshape(-1, 2), axis=0, return_inverse=True)
    segments = iter(np.split(numbers.reshape(-1, 2), np.cumsum([len(pairs) for pairs in found.values()])[:-1]))
    return ShardIndex(
        config.sample_rate,
        config.piece_samples,
        [shard["name"] for shard in shards],
        [shard["size"] for shard in shards],
        np.array(places, np.int64),
        np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST_BYTES),
        pieces,
        [source.name for source in sources],
        {
            split: np.concatenate([next(segments), np.array([i for *_, i in pairs], np.int64)[:, None]], 1)
            for split, pairs in found.items()
        },
    )
