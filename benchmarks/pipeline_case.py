"""Trains one system for some processor minutes and writes the course of its quality; started by `bench_pipeline`.

python -m benchmarks.pipeline_case SYSTEM DATASET RESULT.json --minutes M ...

SYSTEM is `minimal` (`benchmarks/minimal_pipeline.py`) or one of Encore's objectives, `regression` or `energy`. Time is
processor time from the start of the process, with everything that the system does but without the measurements here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each system imports what it needs within its processor time
    from torch import Tensor

    from encore.codecs import Codec

ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
FIRST_SECONDS, GROWTH = 3.0, 1.15  # a measurement is due when the seconds of training have grown by this much


def processor_seconds() -> float:
    """User and kernel seconds of this process and of its children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory() -> float:
    """Largest resident memory in bytes since the last reset."""
    return 1024 * float(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


class Clock:
    """Processor seconds and peak memory of what is to be measured, without what happens in `paused`."""

    def __init__(self) -> None:
        self.left_out, self.peak = 0.0, 0.0

    @property
    def seconds(self) -> float:
        return processor_seconds() - self.left_out

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = processor_seconds()
        self.peak = max(self.peak, peak_memory())
        yield
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.left_out += processor_seconds() - start


def quality(samples: Tensor, target: Tensor, sample_rate: int) -> dict[str, float]:
    """How far continuations `[S, 1, N]` of one input are from what followed, `[1, 1, N]`; the same for all systems.

    "reconstruction": mean over the samples of multi-resolution STFT (auraloss) plus log-mel L1, which are the minimal
    pipeline's own losses. "score": energy score of log-mel L1, `mean_i d(x_i, y) − ½ mean_{i ≠ j} d(x_i, x_j)`; the
    second term is 0 with a single sample.
    """
    from benchmarks.minimal_pipeline import MinimalLoss

    loss = MinimalLoss(sample_rate)
    mels, mel = loss.log_mel(samples), loss.log_mel(target)
    pairs = list(itertools.permutations(range(len(samples)), 2))
    repulsion = sum(float((mels[i] - mels[j]).abs().mean()) for i, j in pairs) / max(1, len(pairs))
    return {
        "reconstruction": sum(float(loss.spectral(one[None], target)) for one in samples) / len(samples),
        "score": float((mels - mel).abs().mean()) - repulsion / 2,
    }


class Course:
    """The course of a run's quality against processor time.

    Args:
        options: of the command line.
        clock: begun with the process.
    """

    def __init__(self, options: argparse.Namespace, clock: Clock):
        self.options, self.clock = options, clock
        self.points: list[dict[str, float]] = []
        self.start = self.due = 0.0
        self.over = False
        self.steps, self.train_seconds = 0, 0.0

    def begin(self, codec: Codec, continuations: Callable[[int], Tensor]) -> None:
        """Training is about to begin; `continuations(i)` gives those of validation pair i, `[S, 1, N]`."""
        with self.clock.paused():
            from benchmarks.minimal_pipeline import load_pairs

            self.rate, self.continuations = codec.sample_rate, continuations
            self.targets = load_pairs(self.options.dataset / "val")[1]
            self.segment = self.targets.shape[-1] / codec.sample_rate
        self.start = self.clock.seconds
        self._measure(0.0)
        self.due = FIRST_SECONDS

    def step_done(self) -> bool:
        """Counts a step and measures if it is time; whether the run is over, in which case nothing more is counted."""
        if self.over:
            return True
        self.steps += 1
        self.train_seconds = self.clock.seconds - self.start
        self.over = self.train_seconds >= 60 * self.options.minutes
        if self.over or self.train_seconds >= self.due:
            self._measure(self.train_seconds)
            self.due = GROWTH * self.train_seconds + FIRST_SECONDS
        return self.over

    def _measure(self, trained: float) -> None:
        import torch

        with self.clock.paused(), torch.no_grad(), torch.random.fork_rng():
            found = []
            for number, target in enumerate(self.targets):
                samples = self.continuations(number)
                found.append(quality(samples, target[None, :, : samples.shape[-1]], self.rate))
            means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        self.points.append({"seconds": trained, "step": self.steps, **means})

    def result(self) -> dict[str, Any]:
        """What is written for `bench_pipeline`."""
        audio = self.steps * self.options.batch_size * self.segment
        return {
            "start": self.start,
            "steps": self.steps,
            "points": self.points,
            "throughput": audio / max(self.train_seconds, 1e-9),
            "peak": max(self.clock.peak, peak_memory()),
        }


def train_minimal(options: argparse.Namespace, clock: Clock) -> Course:
    """Trains the minimal pipeline."""
    from benchmarks.minimal_pipeline import MinimalPipeline, load_pairs
    from encore.codecs import load_codec

    codec, course = load_codec(options.codec, options.codec_repository, None), Course(options, clock)
    pipeline = MinimalPipeline(
        options.dataset,
        codec,
        d_model=options.d_model,
        layers=options.num_layers,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup_steps=options.warmup_steps,
    )
    with clock.paused():
        sources = load_pairs(options.dataset / "val")[0]
    course.begin(codec, lambda number: pipeline.continuation(sources[number][None]))
    for batch in pipeline.batches():
        pipeline.step(batch)
        if course.step_done():
            return course
    raise AssertionError


def train_encore(options: argparse.Namespace, clock: Clock) -> Course:
    """Trains with Encore's own training loop."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from encore.config.schema import TrainConfig
    from encore.data.dataset import collate
    from encore.training import distributed
    from encore.training.console import TrainConsole
    from encore.training.trainer import StopSignal, Trainer
    from encore.training.validation import Validation

    course, stop = Course(options, clock), StopSignal()

    class MeasuredTrainer(Trainer):
        """Its validation is left out, as the minimal pipeline has none."""

        def train_epoch(self, *arguments: Any, **named: Any) -> Any:
            if not course.points:
                course.begin(self.state.objective.synthesizer.codec, self.continuations)
            return super().train_epoch(*arguments, **named)

        def continuations(self, number: int) -> Tensor:
            model = self.state.evaluated
            training = model.training
            audio = self.state.objective.synthesizer.sample(model.eval(), collate([self.data.val[number]]))
            model.train(training)
            return audio

        def validate(self) -> Validation:
            return Validation({"loss": course.points[-1]["score"]}, [])

    def step_done(*unused: Any) -> None:
        if course.step_done():
            stop.number = 1  # the run ends with this step

    os.environ.update(ONE_RANK)
    with distributed.start(10.0) as ranks, TrainConsole(False) as console:
        trainer = MeasuredTrainer.from_config(TrainConfig.from_flags(encore_flags(options)), ranks, console)
        handle = register_optimizer_step_post_hook(step_done)
        trainer.fit(stop)
        handle.remove()
        trainer.close()
    return course


def encore_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Encore's settings; of regression the losses are those of the minimal pipeline, of energy the default."""
    flags: dict[str, Any] = {name: vars(options)[name] for name in ("codec", "codec_repository", "batch_size", "lr")}
    flags |= {name: vars(options)[name] for name in ("d_model", "num_layers", "warmup_steps")}
    flags |= {"dataset_folder": options.dataset, "cache_dir": options.cache, "objective": options.system}
    flags |= {"checkpoint_dir": options.result.with_suffix(".run"), "tracker": "none", "metrics": "", "num_workers": 0}
    flags |= {"epochs": 10**6, "save_every": 10**6, "scheduler": "constant"}
    if options.system == "regression":
        flags |= {f"loss_weight_{name}": 1.0 for name in ("mrstft", "mel", "target", "input")}
    return flags | dict(flag.split("=") for flag in options.flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("system", choices=("minimal", "regression", "energy"))
    parser.add_argument("dataset", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("flags", nargs="*", help="more of Encore's flags, NAME=VALUE")
    parser.add_argument("--cache", type=Path, help="folder of Encore's encoded latents")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    for name, kind in (("lr", float), ("warmup_steps", int), ("d_model", int), ("num_layers", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--codec", required=True)
    parser.add_argument("--codec_repository", type=Path)
    options = parser.parse_args()
    course = (train_minimal if options.system == "minimal" else train_encore)(options, Clock())
    options.result.write_text(json.dumps(course.result()))
    shutil.rmtree(options.result.with_suffix(".run"), ignore_errors=True)


if __name__ == "__main__":
    main()
