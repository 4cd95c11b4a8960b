"""Models that the ranks split among them (FSDP) train like those that each of them holds (DDP)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encore.models.loading import load_generator, read
from tests.conftest import Command, Finished, Forks
from tests.json_tracker import FLAGS as JSON

LAST = Path("checkpoints/last.pt")
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, train_flags: list[object]) -> Run:
    """Runs ranks, two unless told otherwise: the folder of their checkpoints."""
    flags = (*train_flags, *JSON, "--objective", "energy", "--rollout_blocks", 1, "--epochs", 2, "--prior", "rhythm")
    flags += ("--batch_size", 1, "--grad_accumulation", 2, "--precision", "fp32", "--decode_seconds", 0.2)
    flags += ("--metrics", "spectral")

    def start(*more: object, ranks: int = 2, resumed: Path | None = None) -> Path:
        folder = tmp_path_factory.mktemp("run")
        if resumed is not None:
            more = (*more, "--resume", resumed / LAST)
        done: list[Finished] = forks.ranks(ranks, *flags, *more, cwd=folder)
        assert not any(rank.returncode for rank in done), "".join(rank.stderr for rank in done)
        (folder / "stdout.txt").write_text(done[0].stdout)
        return folder

    return start


@pytest.fixture(scope="module")
def ddp(run: Run) -> Path:
    return run()


@pytest.fixture(scope="module")
def fsdp(run: Run) -> Path:
    return run("--parallel", "fsdp")


def assert_close(one: Path, other: Path) -> None:
    """Weights, averaged weights and the optimiser's moments, of which no tensor is split."""
    mine, others = read(one / LAST), read(other / LAST)
    for part in ("model", "ema"):
        assert mine[part].keys() == others[part].keys()
        for name, weight in mine[part].items():
            assert type(weight) is torch.Tensor
            # Sums in another order, of which Adam makes whole steps where a gradient is nearly zero.
            difference = (weight - others[part][name]).double()
            assert difference.norm() <= 0.05 * weight.double().norm() + 1e-4, f"{part} {name}"
    for number, values in mine["optimizer"]["state"].items():
        for name, value in values.items():
            assert value.shape == others["optimizer"]["state"][number][name].shape
    assert mine["progress"]["samples"] == others["progress"]["samples"]


@pytest.mark.slow
def test_both_give_the_same_losses_and_weights(ddp: Path, fsdp: Path) -> None:
    losses = [
        [line.split("(")[0] for line in (folder / "stdout.txt").read_text().splitlines() if "Loss:" in line]
        for folder in (ddp, fsdp)
    ]
    assert len(losses[0]) == 4
    for one, other in zip(*losses, strict=True):
        assert float(one.split()[-1]) == pytest.approx(float(other.split()[-1]), abs=2e-4)
    assert_close(ddp, fsdp)
    best = [read(folder / LAST)["progress"]["best"] for folder in (ddp, fsdp)]
    assert best[0] == pytest.approx(best[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.full
def test_a_checkpoint_of_either_is_resumed_by_the_other_and_by_one_rank(run: Run, ddp: Path) -> None:
    halves = [run("--max_steps", 2, "--parallel", kind) for kind in ("ddp", "fsdp")]
    assert read(halves[0] / LAST)["progress"]["step"] == 2
    for half, kind in zip(halves, ("fsdp", "ddp"), strict=True):
        assert_close(run("--parallel", kind, resumed=half), ddp)
    alone = run("--parallel", "fsdp", "--global_batch_size", 4, "--grad_accumulation", 1, ranks=1, resumed=halves[1])
    assert read(alone / LAST)["progress"]["samples"] == read(ddp / LAST)["progress"]["samples"]


@pytest.mark.slow
def test_inference_reads_a_checkpoint_of_a_split_model(fsdp: Path) -> None:
    model = load_generator(fsdp / LAST, torch.device("cpu")).model
    assert all(type(weight.data) is torch.Tensor for weight in model.parameters())
    assert torch.equal(model.out_proj.weight, read(fsdp / LAST)["ema"]["module.out_proj.weight"])


def test_a_split_model_is_not_compiled(call_command: Command, train_flags: list[object], tmp_path: Path) -> None:
    result = call_command("train_worker.py", *train_flags, "--parallel", "fsdp", "--compile", "true", cwd=tmp_path)
    assert result.returncode == 2 and "--parallel fsdp --compile true: do not go together" in result.stderr
