"""Data: pairs of a segment of music and the segment that follows it, on disk and as batches.

`find_pairs` finds them by the value of `--dataset_format`. Registered here: `pairs` (pairs.py), the folders that
prepare_data.py writes.
"""

from __future__ import annotations

from encore.data import pairs
from encore.data.dataset import Pair, check_pairs, find_pairs, register_dataset

__all__ = ["Pair", "check_pairs", "find_pairs", "pairs", "register_dataset"]
