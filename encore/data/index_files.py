"""Index files: columns of numbers and text as one uncompressed `.npz`, read and replaced as a whole.

An `.npz` is a zip file of arrays: its checksums tell a damaged file, it holds no code, and a million rows are read in a
fraction of a second, because no row becomes an object.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.tensor_files import check_stored

DIGEST_BYTES = 32  # of SHA-256
BLOCK = 2**16  # digests that are compared at once

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


def save_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes arrays by name: to a temporary file, which then replaces `path`.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **columns)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_columns(path: Path) -> dict[str, NDArray]:
    """The arrays of a file by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or something else.
    """
    check_stored(path)
    try:
        with np.load(path, allow_pickle=False) as columns:
            return {name: columns[name] for name in columns.files}
    except OSError:
        raise
    except Exception as error:  # numpy raises almost anything for damaged files
        raise ValueError(f"{error!s:.200}") from error


def pack_text(texts: Sequence[str]) -> Bytes:
    """Texts without NUL, such as file names, as one array; names need not be UTF-8."""
    return np.frombuffer(b"\0".join(text.encode("utf-8", "surrogateescape") for text in texts), np.uint8)


def unpack_text(packed: Bytes, count: int) -> list[str]:
    """The texts of `pack_text`, of which there were `count`."""
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0") if count else []


def match(wanted: Bytes, known: Bytes) -> Numbers:
    """For each digest of `wanted [W, 32]` its row in `known [K, 32]`, or −1: `[W]`."""
    rows = np.full(len(wanted), -1, np.int64)
    if not len(wanted) or not len(known):
        return rows
    # Sorted by their first eight bytes, which do for telling millions apart; all bytes are compared in the end.
    prefixes = [np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0] for digests in (wanted, known)]
    order = prefixes[1].argsort(kind="stable")
    nearest = order[np.searchsorted(prefixes[1], prefixes[0], sorter=order).clip(max=len(known) - 1)]
    for first in range(0, len(wanted), BLOCK):
        block = slice(first, first + BLOCK)
        equal = (known[nearest[block]] == wanted[block]).all(1) & wanted[block].any(1)
        rows[block] = np.where(equal, nearest[block], -1)
    return rows


def first_of_each(digests: Bytes) -> Numbers:
    """The positions of the first of each content among `digests [N, 32]`, in order."""
    keys = np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").ravel()
    return np.sort(np.unique(keys, return_index=True)[1])
