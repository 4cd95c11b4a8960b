"""Data: pairs of a segment of music and the segment that follows it, on disk and as batches.

`find_pairs` finds them by the value of `--dataset_format`. Registered here: `pairs` (folders.py), the folders that
prepare_data.py writes.
"""

from __future__ import annotations

from encore.data import folders
from encore.data.pairs import Pair, PairFrames, Pairs, find_pairs, register_dataset, segment_frames

__all__ = ["Pair", "PairFrames", "Pairs", "find_pairs", "folders", "register_dataset", "segment_frames"]
