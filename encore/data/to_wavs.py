"""Pairs as two wavs each: `prepare_data.py` without `--shards`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from encore.data.cutting import Cut, SegmentConfig, Source, cut_to_wavs, in_order
from encore.data.division import Division, numbered
from encore.data.staging import Progress, Staging, read_note


class WavPairs:
    """Cuts files into a folder each, and moves the wavs to their places in the end.

    Args:
        staging: where that is done.
        config: how files are cut.
    """

    def __init__(self, staging: Staging, config: SegmentConfig):
        self.staging, self.config, self.parts = staging, config, staging.folder / "sources"

    def cut(self, jobs: Sequence[Cut], workers: int, progress: Progress) -> list[Source]:
        """Cuts what an earlier run has not finished. All but the first of files with the same audio are left out."""
        for unfinished in self.parts.glob("*.tmp"):
            shutil.rmtree(unfinished)
        todo = [job for job in jobs if not (self.parts / job.key).is_dir()]
        done = len(jobs) - len(todo)
        self.staging.say_what_is_kept(done, len(jobs), progress)
        results = in_order(cut_to_wavs, [(job, self.parts / job.key, self.config) for job in todo], workers)
        for _ in progress.track(results, len(jobs), done):
            pass
        sources, first = list[Source](), dict[str, str]()
        for job in jobs:
            source = Source.from_dict(read_note(self.parts / job.key / "source.json"))
            copied = source.content and first.setdefault(source.content, source.name) != source.name
            sources.append(source.copy_of(first[source.content]) if copied else source)
        return sources

    def finish(self, jobs: Sequence[Cut], sources: Sequence[Source], division: Division) -> None:
        """Numbers the pairs and moves them."""
        self.staging.start_moving()
        for split, name, index, start in numbered(division, sources):
            (self.staging.data / split).mkdir(exist_ok=True)
            for role in ("input", "output"):
                target = self.staging.data / split / f"{name}_{role}.wav"
                if not target.exists():  # moved before the run was stopped
                    (self.parts / jobs[index].key / f"{start}_{role}.wav").rename(target)
