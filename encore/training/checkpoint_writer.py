"""Checkpoints on disk: written whole or not at all, on a thread, while training goes on."""

from __future__ import annotations

import copy
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encore.errors import EncoreError, disk_space


class DiskFile(io.BufferedWriter):
    """A file for torch.save, which hides the error of a file that it is writing to behind one of its own."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise

    def save(self, content: Mapping[str, Any]) -> None:
        """Returns when the disk has everything."""
        try:
            torch.save(content, self)
        except RuntimeError:
            if self.error is not None:
                raise self.error from None
            raise
        self.flush()
        os.fsync(self.fileno())


def write(content: Mapping[str, Any], path: Path, keep: int | None = None) -> None:
    """Writes a checkpoint so that whenever the process or the machine stops, a whole one is in the folder.

    It gets a temporary name and is renamed once the disk has it. The file holds a checksum of each of its parts, which
    `read` compares.

    Args:
        content: of tensors and plain values.
        path: of the checkpoint.
        keep: how many to keep, with this one: those before it become `name_1.pt`, `name_2.pt`, … None: no others.

    Raises:
        EncoreError: the disk is full. What was there before is still there.
        OSError: it cannot be written for another reason.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with disk_space(path, "a checkpoint"), DiskFile(io.FileIO(temporary, "w")) as file:
            file.save(content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if keep is not None:
        shift(path, keep)
    temporary.replace(path)
    sync(path.parent)


def write_all(content: Mapping[str, Any], places: Sequence[tuple[Path, int | None]]) -> None:
    """Writes a checkpoint to several places, one after the other.

    Raises:
        EncoreError: one of them cannot be written.
    """
    for path, keep in places:
        try:
            write(content, path, keep)
        except OSError as error:
            raise EncoreError(f"{path}: the checkpoint cannot be written ({error.strerror or error})") from error


def shift(path: Path, keep: int) -> None:
    """Makes room for the next checkpoint at `path`: renames it and those before it by one, and deletes the oldest."""
    names = [path, *(path.with_stem(f"{path.stem}_{number}") for number in range(1, keep))]
    for newer, older in reversed([*itertools.pairwise(names)]):
        if newer.exists():
            newer.replace(older)
    for found in path.parent.glob(f"{path.stem}_*{path.suffix}"):
        if found not in names and found.stem.removeprefix(f"{path.stem}_").isdecimal():
            found.unlink()


def sync(folder: Path) -> None:
    """Waits until the disk has the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_host(value: Any) -> Any:
    """A copy of nested mappings and sequences of tensors, in the computer's own memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # a state dict of torch's has attributes that belong to it
        copied.update({name: to_host(part) for name, part in value.items()})
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_host, value))
    return value


class CheckpointWriter:
    """Writes checkpoints on a thread, one after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def write(self, content: Mapping[str, Any], *places: tuple[Path, int | None]) -> None:
        """Copies `content` and begins to write it to each place, a path and how many to keep (`write`).

        Waits for the write before it, so that memory holds no more than one copy.

        Raises:
            EncoreError: the write before it has failed.
        """
        self.wait()
        self._pending = self._executor.submit(write_all, to_host(dict(content)), places)

    @property
    def failed(self) -> bool:
        """Whether a write has ended with an error, which `wait` then raises."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Waits for the last write.

        Raises:
            EncoreError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last write, whether it succeeds or not."""
        self._executor.shutdown()
