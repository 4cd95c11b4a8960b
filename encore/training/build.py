"""Builds what a training run needs from its configuration: the objective, the model and its optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import losses
from encore.codecs import Codec, load_codec
from encore.codecs.base import hash_tensors
from encore.codecs.losses import build_losses
from encore.config.components import ADVERSARIAL, registered_name
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.models.generation import GenerationConfig
from encore.models.loading import build_model, generation_config
from encore.models.pointer import Pointer
from encore.models.precision import AUTO, FP32, choose_precision
from encore.models.transformer import ContinuationTransformer
from encore.training.checkpoint import TrainState
from encore.training.console import TrainConsole
from encore.training.data import PairData
from encore.training.distributed import Ranks
from encore.training.objective import Component, Objective
from encore.training.optim import Schedule, adamw, averaged
from encore.training.pointer import VERSION, train_pointer
from encore.training.resuming import settle, yardstick
from encore.training.run_folder import RunFolder
from encore.training.stored import MARGIN_FILE, stored
from encore.training.synthesis import Synthesizer, crop_samples

CPU_DECODE_SECONDS = 2.0
LABELS = {"rms_input": "rms_in", "rms_target": "rms_tgt", "spectral": "spec"}  # in the log's lines


@dataclass(frozen=True)
class Terms:
    """The terms of an objective, each tried on silence.

    Attributes:
        components: the losses with a weight or listed in --metrics, and the adversary's terms.
        combiner: combines their gradients.
        adversary: the discriminator with its optimiser, if there is one.
        generation: how the continuations that they compare are generated.
        crop_frames: latent frames of these that a training step decodes.
    """

    components: list[Component]
    combiner: losses.WeightedGradient | losses.LossBalancer
    adversary: losses.Adversary | None
    generation: GenerationConfig
    crop_frames: int


def build_run(
    config: TrainConfig, ranks: Ranks, console: TrainConsole, folder: RunFolder
) -> tuple[PairData, TrainState]:
    """The data and the state to begin with."""
    start = folder.start
    for note in start.notes:
        console.print(note, style="yellow")
    with ranks.agree():
        codec = load_codec(config.codec.name, config.codec.repository, config.codec.bandwidth).to(ranks.device)
        data = PairData.open(config, codec)
        terms = build_terms(config, data, ranks)
    data.encode(ranks, console)
    state = build_state(config, data, terms, ranks, start.source is not None)
    state.run, state.yardstick = start.identity.run, yardstick(config, data, state.objective)
    lines: list[str] = []
    with ranks.agree():
        if start.source is not None:
            lines = settle(state, state.load(start.source, config), config, folder)
    for line in lines:
        console.print(line)
    state.schedule.total = state.progress.samples + data.samples_left(config.optim, state.progress)
    return data, state


def crop_frames(config: TrainConfig, codec: Codec, frames: int, has_gpu: bool) -> int:
    """Latent frames that a training step decodes of targets of `frames` frames."""
    seconds = config.objective.decode_seconds or (math.inf if has_gpu else CPU_DECODE_SECONDS)
    return int(min(frames, max(1, seconds * codec.frame_rate)))


def build_terms(config: TrainConfig, data: PairData, ranks: Ranks) -> Terms:
    """The terms of the objective, as far as they can be built before the data is encoded.

    Raises:
        EncoreError: losses or a discriminator that cannot be computed here, blocks that do not fit the segments.
    """
    codec = data.codec
    generation = generation_config(config, codec, data.frames.target)
    frames = crop_frames(config, codec, data.frames.target, ranks.has_gpu)
    samples = crop_samples(codec, generation, frames)
    silence = torch.zeros(1, codec.channels, samples, device=ranks.device)
    objective = config.objective
    if objective.loss_balancer:
        shrink = objective.balancer_shrink and not config.data.unity_test
        combiner: losses.WeightedGradient | losses.LossBalancer = losses.LossBalancer(objective.weights, shrink=shrink)
    else:
        combiner = losses.WeightedGradient(objective.weights)
    components, adversary = build_components(config, codec, silence), build_adversary(config, codec, silence)
    return Terms(components, combiner, adversary, generation, frames)


def build_components(config: TrainConfig, codec: Codec, silence: Tensor) -> list[Component]:
    """The components with a weight and those of --metrics, each tried on `silence`, a crop `[1, C, N]`.

    Raises:
        EncoreError: losses that cannot be computed here, a line each: another package, more samples or channels needed.
    """
    objective = config.objective
    chosen = {name: weight for name, weight in objective.weights.items() if weight or name in objective.metric_names}
    names = {registered_name(name) for name in chosen if name not in ADVERSARIAL}
    built, problems = build_losses(names, objective, codec, silence)
    lines = [
        f"{objective.flag_of(name)}: {problems[registered_name(name)]}"
        for name in chosen
        if registered_name(name) in problems
    ]
    if lines:
        raise EncoreError("\n".join(lines))
    components = []
    for name, weight in chosen.items():
        label, against_input = LABELS.get(name, name), name == "rms_input"
        if name in ADVERSARIAL:
            components.append(Component(name, label, weight, against_input, None))
        else:
            entry, loss = losses.REGISTRY[registered_name(name)], built[registered_name(name)]
            distance = entry.distance and not against_input
            components.append(Component(name, label, weight, against_input, loss, entry.metric, distance))
    return components


@torch.no_grad()
def build_adversary(config: TrainConfig, codec: Codec, silence: Tensor) -> losses.Adversary | None:
    """The discriminator and its optimiser, if an adversarial loss has a weight; the same on all ranks.

    Raises:
        EncoreError: the discriminator needs more samples than a crop has.
    """
    objective = config.objective
    if not any(objective.weights[name] for name in ADVERSARIAL):
        return None
    torch.manual_seed(config.run.seed)
    network = losses.discriminator(objective.discriminator, codec.sample_rate, codec.channels).to(silence.device)
    try:
        network(silence)
    except ValueError as error:
        raise EncoreError(f"--discriminator {objective.discriminator}: {error}") from error
    return losses.Adversary(
        network, objective.gan_type, objective.disc_lr, objective.disc_update_freq, objective.disc_start_step
    )


def build_state(config: TrainConfig, data: PairData, terms: Terms, ranks: Ranks, resumes: bool = False) -> TrainState:
    """The model, its objective and its optimiser at the start of training, the same on all ranks.

    `resumes` says that a checkpoint is going to be loaded, with the precision that was chosen for it.
    """
    torch.manual_seed(config.run.seed)
    model = build_model(config, data.codec, data.frames.context)
    model.set_statistics(data.statistics(ranks)[1])
    model.to(ranks.device)
    model.recompute = config.optim.recompute
    if model.pointer is not None and terms.generation.generative:
        fit_pointer(model.pointer, data, terms.generation.block_frames, config.run.seed, ranks)
    optim = config.optim
    # A resumed run computes as it did before (`TrainState.load`): there is nothing to be measured.
    precision = FP32 if optim.precision == AUTO and resumes else optim.precision
    synthesizer = build_synthesizer(
        replace(config, optim=replace(optim, precision=precision)), data, terms, ranks, model
    )
    objective = Objective(terms.components, synthesizer, terms.combiner, terms.adversary).to(ranks.device)
    division = data.sampler.division
    return TrainState(
        model,
        averaged(model, optim.ema_decay) if optim.ema_decay else None,
        adamw(model, optim.lr, optim.weight_decay),
        Schedule(optim.scheduler, optim.lr, optim.warmup_steps * division.pairs, total=0),
        objective,
        division,
    )


def fit_pointer(pointer: Pointer, data: PairData, block_frames: int, seed: int, ranks: Ranks) -> None:
    """Gives all ranks the pointer that rank 0 has trained, or has read from the latent cache's folder."""
    key = hash_tensors((VERSION, data.train.content_hash, data.val.content_hash, block_frames, seed), {})
    weights: dict[str, list[float]] = {}

    def train() -> dict[str, list[float]]:
        trained = train_pointer(data.train, data.val, data.codec, block_frames, seed)
        return {name: weight.tolist() for name, weight in trained.state_dict().items()}

    with ranks.agree():
        if ranks.is_main:
            weights = stored(data.cache.folder / "pointers" / f"{key}.json", train)
    weights = ranks.broadcast_from_main(lambda: weights)
    pointer.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})


def build_synthesizer(
    config: TrainConfig, data: PairData, terms: Terms, ranks: Ranks, model: ContinuationTransformer
) -> Synthesizer:
    """Samples and decodes; the precision is measured on rank 0, and the decoder's margin too, once per codec."""
    codec = data.codec
    precision, margin = "", 0
    with ranks.agree():
        if ranks.is_main:
            probe = model.layers[0].mlp
            precision = choose_precision(config.optim.precision, probe, config.model.d_model, ranks.device)
            margin = stored(data.cache.folder / MARGIN_FILE, lambda: codec.margin)
    precision, margin = ranks.broadcast_from_main(lambda: (precision, margin))
    return Synthesizer(
        codec,
        terms.generation,
        samples=config.objective.samples if terms.generation.generative else 1,
        margin=margin,
        crop_frames=terms.crop_frames,
        precision=precision,
        context_noise=config.objective.context_noise,
        rollout_blocks=config.objective.rollout_blocks,
        recompute=config.optim.recompute,
        pointer=model.pointer,
    )
