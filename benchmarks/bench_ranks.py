"""How training scales over ranks: time per step of one rank and of several, each bound to a core of its own.

python -m benchmarks.bench_ranks [--ranks 2] [--case 4x2]

Every rank is a real `train_worker.py` on one thread, its time per step taken by the clock (see
`benchmarks/step_case.py`). All ranks take batches of one size, so that without any cost of working together the time
per step stays the same; the efficiency is the ratio of both. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.bench_step import ROOT, WARMUP, Case, write_pairs


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def seconds_per_step(folder: Path, data: Path, case: Case, ranks: int, steps: int) -> float:
    """The fastest step of rank 0, in seconds by the clock.

    Raises:
        RuntimeError: training failed.
    """
    cores = sorted(os.sched_getaffinity(0))
    flags = {"dataset_folder": data, "codec": "starter", "batch_size": case.batch, "num_workers": 0, "tracker": "none"}
    flags["checkpoint_dir"] = folder / f"run_{ranks}"
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    workers = []
    for rank in range(ranks):
        result = folder / f"result_{rank}.json"
        result.unlink(missing_ok=True)
        meter = [sys.executable, str(ROOT / "benchmarks" / "step_case.py"), str(result), str(WARMUP), str(steps), "0"]
        environment = {**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = ["taskset", "--cpu-list", str(cores[rank]), *meter, "train_worker.py", *arguments]
        workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    for worker in workers:
        worker.wait()
    if not (folder / "result_0.json").is_file():
        raise RuntimeError("train_worker.py failed")
    content = json.loads((folder / "result_0.json").read_text())
    return min(sum(part["wall"] for part in parts.values()) for parts in content["steps"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="compared with one")
    parser.add_argument("--case", default="4x2", help="SECONDSxBATCH, the batch of each rank")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number of ranks, in turn")
    options = parser.parse_args()
    cores, case = len(os.sched_getaffinity(0)), Case.parse(options.case)
    if cores < options.ranks:
        parser.error(f"--ranks {options.ranks}: there are {cores} cores")
    best = dict.fromkeys((1, options.ranks), float("inf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_pairs(folder / "pairs", case, options.ranks * (WARMUP + options.steps + 1))
        for _ in range(options.repeats):
            for ranks in best:
                best[ranks] = min(best[ranks], seconds_per_step(folder, data, case, ranks, options.steps))
    console = Console()
    for ranks, seconds in best.items():
        throughput = ranks * case.batch * case.seconds / seconds
        console.print(f"{ranks} rank(s): {seconds:.3f} s per step, {throughput:.1f} seconds of audio per second")
    console.print(f"efficiency of {options.ranks} ranks: {best[1] / best[options.ranks]:.1%}")


if __name__ == "__main__":
    main()
