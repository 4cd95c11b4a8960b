"""What to expect of Encore on this machine: the figures of README.md's table for a CPU.

`python -m benchmarks.bench_demo` clones this repository, continues a song with the model that Encore comes with, and
runs the demonstration `./run_train.sh`. It uses this repository's `.venv`, or with `--install` a new one, whose
installation it measures as well (that needs the network and 14 GB of disk).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SONG = "docs/listen/pressure_original.ogg"


def gigabytes(folder: Path) -> float:
    """Disk space of a folder's files; a file that has several names counts once."""
    found = {(s := path.lstat()).st_ino: s.st_blocks * 512 for path in folder.rglob("*")}
    return sum(found.values()) / 1e9


def run(clone: Path, *command: str) -> str:
    """Runs a command in the clone: its time by the clock and the processor's, user and kernel, in words."""
    start, before = time.monotonic(), os.times()
    subprocess.run(command, cwd=clone, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{time.monotonic() - start:.0f} s, processor time {used:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="measure the installation too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "encore"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        if options.install:
            installation = run(clone, "./setup_venv.sh")
        else:
            installation = "not measured, see --install"
            (clone / ".venv").symlink_to(ROOT / ".venv")
        first = run(clone, ".venv/bin/python", "-m", "encore", "demo", SONG)
        demonstration = run(clone, "./run_train.sh")
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"cores: {len(os.sched_getaffinity(0))}")
        print(f"installation: {installation}")
        print(f"first continuation: {first}")
        print(f"demonstration: {demonstration}")
        print(f"memory of the largest process: {memory:.1f} GB")
        print(f"disk: .venv {gigabytes((clone / '.venv').resolve()):.1f} GB, demo {gigabytes(clone / 'demo'):.2f} GB")


if __name__ == "__main__":
    main()
