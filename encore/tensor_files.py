"""Files of tensors and arrays from whoever: nothing in them is run, and they take no more memory than they have bytes.

`torch.save` writes pickles in a zip file, `numpy.savez` arrays in one. A pickle can ask for any function to be called,
and a zip file can claim to hold far more than it does.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

# What PyTorch says of a pickle that asks for more than tensors, plain values and containers of these.
CALLED = re.compile(r"GLOBAL (\S+)|unrecognized function (.+)")
DOS_FOLDER = 0x10  # attribute of an entry of a zip file: PyTorch reads nothing of one that has it, and says nothing
UNPICKLER = re.compile(r"WeightsUnpickler error: (.+)")


def load_tensors(source: Path | BinaryIO) -> Any:
    """What `torch.save` wrote, if it is tensors, plain values and containers of these.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is another file, a damaged one, or one that asks for code to be run; in one line.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises almost anything for files of other kinds
        text = str(error).strip()
        # PyTorch's own message tells how to load it all the same.
        if called := CALLED.search(text):
            name = called[1] or called[2]
            raise ValueError(f"it asks to run {name:.120}, which no weights do; delete it") from error
        reason = UNPICKLER.search(text)
        raise ValueError((reason[1] if reason else text.partition("\n")[0])[:120] or type(error).__name__) from error


def check_stored(path: Path) -> None:
    """Checks that a file is a zip file whose entries are as long as it says, uncompressed, as both libraries write it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is another file, or claims more than it holds.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            size, entries = path.stat().st_size, archive.infolist()
    except OSError:
        raise
    except Exception as error:  # zipfile raises almost anything for damaged files
        raise ValueError(f"no zip file: {error!s:.200}") from error
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"it claims {claimed} bytes, but has {size}")


def verify(path: Path) -> None:
    """Compares the checksums that a zip file holds of its parts (CRC-32) with them, which torch.load does not do.

    Raises:
        ValueError: a part is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & DOS_FOLDER]
    except Exception as error:  # zipfile raises almost anything for damaged files
        raise ValueError(f"damaged: {error!s:.200}") from error
    if damaged is not None:
        raise ValueError(f"damaged: the checksum of {damaged:.200} is wrong")
    if folders:
        raise ValueError(f"damaged: {folders[0]:.200} is marked as a folder")
