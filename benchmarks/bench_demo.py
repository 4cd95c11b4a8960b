"""What the demonstration needs: time, memory and disk, and the picture of README.md.

`python -m benchmarks.bench_demo` runs `./run_train.sh` in a clone of this repository that uses its `.venv`, and prints
the figures of README.md; `--picture docs/continuation.png` also draws its first candidate and the truth.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from encore.audio import read_audio
from encore.reporting.spectrograms import spectrograms

ROOT = Path(__file__).resolve().parent.parent
START, RATE = 8, 24000  # seconds into the song that run_train.sh continues; Hz


def gigabytes(folder: Path) -> float:
    """Disk space of a folder's files; a file that has several names counts once."""
    found = {(s := path.lstat()).st_ino: s.st_blocks * 512 for path in folder.rglob("*")}
    return sum(found.values()) / 1e9


def draw(demo: Path, picture: Path) -> None:
    """Spectrograms of the first candidate and of what follows in the song."""
    with open(demo / "pairs" / "metadata.csv", newline="") as file:
        song = next(row["source_file"] for row in csv.DictReader(file) if row["split"] == "val")
    made = read_audio(demo / "continuation" / "continuation.wav", RATE, 1)
    truth = read_audio(demo / "music" / song, RATE, 1)[:, START * RATE :][:, : made.shape[-1]]
    spectrograms({"Continuation": made, "Truth": truth}, RATE, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="PNG to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "encore"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        start = time.monotonic()
        subprocess.run(["./run_train.sh"], cwd=clone, check=True)
        minutes = (time.monotonic() - start) / 60
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"cores: {len(os.sched_getaffinity(0))}")
        print(f"time: {minutes:.1f} min, processor time {(used.ru_utime + used.ru_stime) / 60:.1f} min")
        print(f"memory of the largest process: {used.ru_maxrss / 1e6:.1f} GB")
        print(f"disk: .venv {gigabytes(ROOT / '.venv'):.1f} GB, demo {gigabytes(clone / 'demo'):.2f} GB")
        if options.picture is not None:
            draw(clone / "demo", options.picture.resolve())


if __name__ == "__main__":
    main()
