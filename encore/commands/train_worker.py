# ruff: noqa: E501
#!/usr/bin/env python3
"""One rank of a training run. Started by train_ddp.py; also runs under torchrun and srun, with the same flags."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable
from functools import partial
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import losses
from encore.codecs.encodec import FrozenCodec, load_codec
from encore.codecs.losses import loss_options
from encore.config import cli
from encore.config.checks import validate
from encore.config.schema import ADVERSARIAL, TrainConfig, registered_name
from encore.data.dataset import Batch, EpochSampler, Pair, PairDataset, collate, find_pairs, segment_frames
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError
from encore.models.loading import build_model, generation_config
from encore.tracking import build_tracker
from encore.training import distributed
from encore.training.checkpoint import Progress, TrainState, resume_source, set_aside
from encore.training.console import SHARE, EpochFigures, Screen, named_metrics
from encore.training.distributed import Ranks
from encore.training.meters import Sums, means
from encore.training.objective import Component, Objective
from encore.training.optim import Schedule, adamw, averaged
from encore.training.synthesis import Hearing, heard_samples
from encore.training.validation import baselines, validation, write_example

DIVERGED = 3  # exit status after a run of steps that were not finite
NOT_FINITE_IN_A_ROW = 10
CPU_DECODE_SECONDS = 2.0
ROLLOUT_PHASE = 0.25  # of the steps, the last ones: the model then goes on from what it made itself
SHARES_EVERY = 10  # steps from one measurement of the gradients' shares to the next; each takes a pass per loss
LABELS = {"rms_input": "rms_in", "rms_target": "rms_tgt", "spectral": "spec"}  # in the log's lines

Loader = Iterable[Batch]


class Diverged(EncoreError):
    """Too many steps in a row whose loss or gradient was not finite."""


class StopSignal:
    """Notes SIGINT and SIGTERM, so that the loop can finish its step and save."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


def main(config: TrainConfig) -> None:
    """One rank of a training run: set up, build, resume, loop, close."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C just ends the process
    share_cores()
    ranks = distributed.start()
    screen, tracker, outcome = Screen(ranks.is_main), None, "FAILED"
    try:
        config = config.resolved()
        distributed.together(partial(validate, config))

        # Data, codec and losses
        load = partial(load_codec, config.codec.name, config.codec.repository, config.codec.bandwidth)
        codec = distributed.together(load).to(ranks.device)
        assert config.data.dataset_folder is not None
        pairs = distributed.together(partial(find_pairs, config.data.dataset_folder, codec.sample_rate))
        frames = segment_frames(pairs, codec.hop_length)
        recipe = distributed.together(partial(generation_config, config, codec, frames))
        seconds = config.objective.decode_seconds or (math.inf if ranks.has_gpu else CPU_DECODE_SECONDS)
        heard_frames = int(min(frames, max(1, seconds * codec.frame_rate)))
        silence = torch.zeros(1, codec.channels, heard_samples(codec, recipe, heard_frames), device=ranks.device)
        components = distributed.together(partial(components_of, config, codec, silence))
        adversary = distributed.together(partial(adversary_of, config, codec, silence))
        cache = encode_pairs(config, codec, pairs, ranks, screen)
        dataset = partial(
            PairDataset,
            cache=cache,
            codec=codec,
            frames=frames,
            unity=config.data.unity_test,
            shuffle_seed=config.run.seed if config.data.shuffle_targets else None,
        )
        train_set, val_set = dataset(pairs["train"]), dataset(pairs["val"])
        sampler = EpochSampler(
            len(train_set),
            config.data.batch_size,
            config.optim.grad_accumulation,
            ranks.rank,
            ranks.world_size,
            config.run.seed,
        )
        mine = range(ranks.rank, len(val_set), ranks.world_size)
        loader = partial(DataLoader, num_workers=config.data.num_workers, collate_fn=collate, pin_memory=ranks.has_gpu)
        train_loader = loader(train_set, batch_sampler=sampler, persistent_workers=config.data.num_workers > 0)
        val_loader = loader(val_set, config.data.batch_size, sampler=mine)

        # Model and objective
        torch.manual_seed(config.run.seed)
        model = build_model(config, codec, frames)
        inputs = [pair.input for pair in pairs["train"]]
        model.set_statistics(*distributed.from_main(partial(cache.statistics, inputs)))
        model.to(ranks.device)
        bf16 = config.optim.bf16 and ranks.has_gpu and torch.cuda.is_bf16_supported()
        margin = distributed.from_main(lambda: codec.measure_margin(val_set[0][0][None].to(ranks.device)))
        hearing = Hearing(
            codec,
            recipe,
            config.objective.samples if recipe.generative else 1,
            margin,
            heard_frames,
            autocast=partial(torch.autocast, "cuda", torch.bfloat16) if bf16 else contextlib.nullcontext,
            context_noise=config.objective.context_noise,
            rollout_blocks=config.objective.rollout_blocks,
        )
        combiner = combiner_of(config)
        objective = Objective(components, hearing, losses.shared_spectra, losses.shared_rows, combiner, adversary)
        objective.to(ranks.device)
        optimizer = adamw(model, config.optim.lr, config.optim.weight_decay)
        total_steps = min(config.optim.max_steps or math.inf, config.optim.epochs * sampler.steps)
        schedule = Schedule(config.optim.scheduler, config.optim.lr, config.optim.warmup_steps, int(total_steps))
        ema = averaged(model, config.optim.ema_decay) if config.optim.ema_decay else None
        state = TrainState(model, ema, optimizer, schedule, objective, Progress())
        source = distributed.from_main(partial(resume_source, config))
        if source is not None:
            distributed.together(lambda: state.load(source, config, codec))
        progress = state.progress
        ddp = DistributedDataParallel(
            torch.compile(model) if config.optim.compile else model, gradient_as_bucket_view=True
        )

        # Nothing was wrong with the input, so this run begins: its folder, its baselines, its run in MLflow
        if ranks.is_main:
            set_aside(config.run.checkpoint_dir, source)
            (config.run.checkpoint_dir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
            screen.open_log(config.run.checkpoint_dir / "train.log")
        known = baselines(objective, val_loader, ranks)
        screen.baselines(components, known)
        if source is not None:
            screen.say(f"resumed from {source} at epoch {progress.epoch + 1}, step {progress.epoch_step}")
        if ranks.is_main:
            tracker = build_tracker(config.tracking, progress.run_id, config.run.checkpoint_dir, screen.say)
            tracker.params(config.to_dict())
            for kind, values in known.items():
                tracker.metrics(named_metrics(kind, values, components), step=0)
            tracker.artifact(config.run.checkpoint_dir / "config.json")
            tracker.flush()
            progress.run_id = tracker.run_id

        # The loop
        stop = StopSignal()
        save = partial(state.save, config=config, codec=codec, segment_frames=frames)
        evaluated = ema.module if ema is not None else model
        last = progress.epoch >= config.optim.epochs or progress.step >= total_steps
        while not last:
            sampler.start_at(progress.epoch, progress.epoch_step)
            figures = train_epoch(config, ranks, state, ddp, train_loader, sampler, stop, screen)
            if figures is None:
                if ranks.is_main:
                    save(config.run.checkpoint_dir / "last.pt")
                screen.say(f"stopped in epoch {progress.epoch + 1} after step {progress.step}; --resume auto goes on")
                outcome = "KILLED"
                break
            figures.val = validation(objective, evaluated, val_loader, ranks)
            figures.best = figures.val["loss"] < progress.best
            progress.best = min(figures.val["loss"], progress.best)
            progress.waited = 0 if figures.best else progress.waited + 1
            if progress.epoch_step >= sampler.steps:  # else --max_steps has ended it early
                progress.epoch, progress.epoch_step, progress.sums = figures.epoch, 0, {}
                schedule.epoch_ended(figures.val["loss"])
            impatient = config.optim.patience is not None and progress.waited >= config.optim.patience
            last = progress.epoch >= config.optim.epochs or progress.step >= total_steps or impatient
            screen.epoch(figures)
            if tracker is not None:
                tracker.metrics(figures.metrics(components), step=figures.epoch)
                if figures.epoch % config.tracking.artifact_every == 0 or last:
                    folder = config.run.checkpoint_dir / "examples" / f"epoch_{figures.epoch:04d}"
                    write_example(folder, objective, evaluated, val_set, ranks.device, codec.sample_rate)
                    tracker.artifact(folder, f"examples/{folder.name}")
                tracker.flush()
                progress.run_id = tracker.run_id
                if figures.best:
                    save(config.run.checkpoint_dir / "best_model.pt")
                if figures.epoch % config.run.save_every == 0 or last:
                    save(config.run.checkpoint_dir / "last.pt")
            if impatient:
                screen.say(f"stopped early: no better validation loss for {config.optim.patience} epochs")
        else:
            outcome = "FINISHED"
            screen.say(f"best validation loss {progress.best:.4f}, in {config.run.checkpoint_dir / 'best_model.pt'}")
    except EncoreError as error:
        if ranks.is_main:
            cli.print_error(error)
        sys.exit(DIVERGED if isinstance(error, Diverged) else cli.USER_ERROR)
    finally:
        if tracker is not None:
            if (config.run.checkpoint_dir / "best_model.pt").is_file():
                tracker.artifact(config.run.checkpoint_dir / "best_model.pt", "checkpoints")
            tracker.close(outcome)
        screen.close()
        distributed.stop()
    if outcome == "KILLED":
        sys.exit(128 + (stop.number or signal.SIGTERM))


def train_epoch(
    config: TrainConfig,
    ranks: Ranks,
    state: TrainState,
    model: DistributedDataParallel,
    loader: Loader,
    sampler: EpochSampler,
    stop: StopSignal,
    screen: Screen,
) -> EpochFigures | None:
    """Trains to the end of the epoch (or of --max_steps); None if a signal stopped it, after a whole step.

    Raises:
        Diverged: too many steps in a row were not finite.
    """
    progress, objective = state.progress, state.objective
    sums = Sums(progress.sums if ranks.is_main else {})
    task = screen.task(f"epoch {progress.epoch + 1}/{config.optim.epochs}", sampler.steps, progress.epoch_step)
    begun, seconds, stopped, lr = time.monotonic(), 0.0, False, 0.0
    batches = iter(loader)
    model.train()
    while progress.epoch_step < sampler.steps and progress.step < state.schedule.total_steps and not stopped:
        # All randomness of a step follows from its number, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(seed_of(config.run.seed, progress.step, ranks.rank))
        step_sums, finite, left_out = Sums(sums.sums), True, set[str]()
        for remaining in reversed(range(config.optim.grad_accumulation)):
            batch = next(batches).to(ranks.device)
            late = progress.step >= (1 - ROLLOUT_PHASE) * state.schedule.total_steps
            plan = objective.hearing.plan(batch.context.shape[-1], own=late)
            with model.no_sync() if remaining else contextlib.nullcontext():
                outcome = objective(model, batch, plan)
                measure = progress.epoch_step % SHARES_EVERY == 0
                step = objective.backward(outcome, 1 / config.optim.grad_accumulation, measure)
            finite, left_out = finite and step.finite, left_out.union(step.left_out)
            step_sums.add(step.values, step.total)
            for name, share in step.shares.items():
                step_sums.add_value(SHARE + name, share, len(batch))
            seconds += len(batch) * ranks.world_size * batch.input_audio.shape[-1] / objective.sample_rate
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        step_sums.add_value("grad_norm", float(norm), len(batch) * config.optim.grad_accumulation)
        flags = torch.tensor([not (finite and norm.isfinite()), stop.number > 0], dtype=torch.int, device=ranks.device)
        not_finite, stopped = (count > 0 for count in distributed.total(flags).tolist())
        lr = state.schedule.lr(progress.step)
        if not_finite:
            progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
            screen.say(f"step {progress.step + 1} skipped: its loss or gradient is not finite", style="yellow")
        else:
            progress.skipped_in_a_row, sums = 0, step_sums
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            state.optimizer.step()
            if state.ema is not None:
                state.ema.update_parameters(state.model)
            for name in sorted(left_out):
                screen.say(f"step {progress.step + 1} without {name}: it is not finite", style="yellow")
        objective.end_step(skip=not_finite)
        state.optimizer.zero_grad(set_to_none=True)
        progress.step, progress.epoch_step = progress.step + 1, progress.epoch_step + 1
        throughput = seconds / (time.monotonic() - begun)
        screen.advance(task, f"loss {step.total.mean().item():.4f}  {throughput:.1f} s/s")
        if progress.skipped_in_a_row >= NOT_FINITE_IN_A_ROW:
            raise Diverged(
                f"loss or gradient was not finite for {NOT_FINITE_IN_A_ROW} steps in a row, training can't go on; the "
                f"last good checkpoint is in {config.run.checkpoint_dir}. Lower --lr ({config.optim.lr:g}) or --clip_norm"
            )
    screen.finish(task)
    progress.sums = sums.over_ranks(ranks.device)
    if stopped:
        return None
    throughput = seconds / (time.monotonic() - begun)
    return EpochFigures(progress.epoch + 1, config.optim.epochs, means(progress.sums), lr, throughput, progress.skipped)


@torch.no_grad()
def components_of(config: TrainConfig, codec: FrozenCodec, silence: Tensor) -> list[Component]:
    """The objective's terms: those with a weight and those of --metrics, each tried on a crop of silence.

    Raises:
        EncoreError: losses that can't be computed here, a line each: another package, more samples or channels needed.
    """
    components, problems = [], []
    for name, weight in config.objective.weights.items():
        if not weight and name not in config.objective.metric_names:
            continue
        label, against_input, loss, metric, distance = LABELS.get(name, name), name == "rms_input", None, None, False
        if name not in ADVERSARIAL:
            registered = registered_name(name)
            try:
                loss = losses.create(registered, codec.sample_rate, **loss_options(config.objective, codec, name))
                loss.to(silence.device)(silence, silence)
                metric = losses.REGISTRY[registered].metric
                distance = losses.REGISTRY[registered].distance and not against_input
            except (ImportError, OSError, ValueError) as error:
                problems.append(f"{config.objective.flag_of(name)}: {error}")
        components.append(Component(name, label, weight, against_input, loss, metric, distance))
    if problems:
        raise EncoreError("\n".join(problems))
    return components


@torch.no_grad()
def adversary_of(config: TrainConfig, codec: FrozenCodec, silence: Tensor) -> losses.Adversary | None:
    """The discriminator, with all that trains it, if there is to be one; the same on all ranks.

    Raises:
        EncoreError: it needs more samples than there are in a crop.
    """
    if not any(config.objective.weights[name] for name in ADVERSARIAL):
        return None
    torch.manual_seed(config.run.seed)
    judge = losses.discriminator(config.objective.discriminator, codec.sample_rate, codec.channels).to(silence.device)
    try:
        judge(silence)
    except ValueError as error:
        raise EncoreError(f"--discriminator {config.objective.discriminator}: {error}") from error
    return losses.Adversary(
        judge,
        config.objective.gan_type,
        config.objective.disc_lr,
        config.objective.disc_update_freq,
        config.objective.disc_start_step,
    )


def combiner_of(config: TrainConfig) -> losses.LossBalancer | losses.WeightedGradient:
    """What makes one gradient of the terms'."""
    if config.objective.loss_balancer:
        return losses.LossBalancer(
            config.objective.weights, shrink=config.objective.balancer_shrink and not config.data.unity_test
        )
    return losses.WeightedGradient(config.objective.weights)


def encode_pairs(
    config: TrainConfig, codec: FrozenCodec, pairs: dict[str, list[Pair]], ranks: Ranks, screen: Screen
) -> LatentCache:
    """The pairs' latents, encoded by all ranks together where the cache has none."""
    files = [path for split in pairs.values() for pair in split for path in (pair.input, pair.output)]
    open_cache = partial(LatentCache.open, config.data.latent_folder, codec.identity, files)
    # Rank 0 hashes new files; the others then find the index done.
    first = distributed.together(lambda: open_cache() if ranks.is_main else None)
    cache = first or open_cache()
    missing = distributed.from_main(partial(cache.missing, files))
    share = missing[ranks.rank :: ranks.world_size]
    task = screen.task("encoding", len(share))

    def encode() -> None:
        for _ in cache.encode(share, codec, ranks.device):
            screen.advance(task)

    distributed.together(encode)
    screen.finish(task)
    seconds = segment_frames(pairs, codec.hop_length) / codec.frame_rate
    screen.say(
        f"{len(pairs['train'])} training and {len(pairs['val'])} validation pairs of {seconds:.2f} s, "
        f"{len(missing)} of {len(set(files))} files newly encoded"
    )
    return cache


def seed_of(*numbers: int) -> int:
    """A seed of 64 bits, another one for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def share_cores() -> None:
    """Shares the cores among the ranks of this machine, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1")
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


app = cli.new_app()
cli.add_command(app, TrainConfig, main)


def run() -> None:
    """Runs this rank and ends the process."""
    distributed.end_process(partial(cli.run, app))


if __name__ == "__main__":
    run()
