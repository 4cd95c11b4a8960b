"""The benchmarks of speed run through their command lines, at sizes of a few seconds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import bench_roofline, bench_step, bench_yardstick
from encore.evaluation.metrics.registry import short_name
from encore.evaluation.per_item import DISTANCES
from tests.conftest import ROOT, Finished, Forks, unchanged_process, write_pairs

SMALL = ("--tracker", "none", "--decode_seconds", 0.2)
Benchmark = Callable[..., str]


@pytest.fixture
def benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forks: Forks
) -> Benchmark:
    """Runs a benchmark's command line within this process, and the steps that it measures in forks: what it prints."""

    def fork(program: list[str], *, cwd: Path, env: dict[str, str], **unused: Any) -> Finished:
        return forks(program[1], *program[2:], cwd=cwd, env=env)

    def run(module: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(bench_step, "subprocess", SimpleNamespace(run=fork))
        with unchanged_process(ROOT, {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}):
            module.main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_step_prints_every_part_and_the_ratio_to_another_checkout(benchmark: Benchmark) -> None:
    tiny = ("--d_model", 32, "--num_layers", 1, "--steps", 1, "--repeats", 1)
    cases = ("--cases", "1x2", "--lengths", "1,2", "--against", ROOT, "--", *SMALL)
    output = benchmark(bench_step, *tiny, *cases)
    rows = [line.split("│")[1:-1] for line in output.splitlines() if re.match("│ [12] s × [12]", line)]
    *costs, ratio = sorted(rows, key=len, reverse=True)
    assert len(costs) == 4  # the case, its other checkout, and the two lengths
    for row in costs:
        seconds, user, kernel, peak = map(float, row[1:5])
        assert 0 < seconds == pytest.approx(user + kernel, abs=0.02)
        assert 0.1 < peak < 10  # GB
        assert "–" not in "".join(row[7:]), f"a part was not seen: {row}"
        assert sum(float(share.strip("% ")) for share in row[7:]) == pytest.approx(100, abs=4)
    assert all(0.1 < float(value) < 10 for value in ratio[1:])
    assert re.search(r"seconds = -?[\d.]+ \+ -?[\d.]+ · length in seconds", output), output


@pytest.mark.slow
def test_roofline_counts_the_operations_of_every_part(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_roofline, "TIMES", 2)
    monkeypatch.setattr(bench_roofline, "matmul_rate", partial(bench_roofline.matmul_rate, rows=256, width=512))
    monkeypatch.setattr(bench_roofline, "bandwidth", partial(bench_roofline.bandwidth, elements=2**20))
    sizes = ("--d_model", 128, "--num_layers", 1, "--steps", 1, "--cases", "1x2")
    output = benchmark(bench_roofline, *sizes, "--", *SMALL)
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in output.splitlines() if line.startswith("│")}
    parts = ("transformer forward", "transformer backward", "decoder forward", "decoder backward", "losses")
    amounts = [float(rows[part][0].split()[0]) for part in parts]
    assert min(amounts) > 0, output
    # 12 · width² weights in a layer, 2 operations each; 2 samples of 2 items with 75 frames. The context adds a little.
    least = 2 * 12 * 128**2 * 4 * 75 / 1e9
    assert least < amounts[0] < 2 * least
    assert amounts[1] == pytest.approx(2 * amounts[0], rel=0.2)
    assert float(rows["step"][3]) > float(rows["step"][2]) > 0, "a step takes longer than its floor"


@pytest.mark.slow
def test_yardstick_prints_the_skill_of_every_change_of_the_truth(benchmark: Benchmark, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", {"train": 1, "val": 1, "test": 3})
    output = benchmark(bench_yardstick, pairs)
    head, *rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in output.splitlines() if line[:1] in "│┃"
    ]
    assert head == ["continuation", *map(short_name, DISTANCES), "codec"]
    skills, shares = (
        {row[0]: row[1:] for row in rows if len(row) == size and row[0] != head[0]}
        for size in (len(head), len(head) + 2)
    )
    assert skills.keys() == shares.keys() and len(skills) == 13
    for name, cells in skills.items():
        for cell in cells:
            skill, low, high = (float(number) for number in re.findall(r"([+-]\d+)%", cell))
            assert low <= skill <= high
            assert skill == {"truth": 100, "replay": 0}.get(name, skill)
    for name in ("truth, 1 dB louder", "truth, MP3 at 128 kb/s"):
        assert float(skills[name][1].split("%")[0]) > 50, "the audible distance"
    assert float(shares["truth"][-2]) > float(shares["white noise"][-2]), "the pulse"
    assert float(shares["silence"][-1]) > 1 > float(shares["replay"][-1]), "the patch distance"
