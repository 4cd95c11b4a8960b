"""The configuration of a training run: groups of settings, each with its flag, help text, unit, default and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encore.config.components import ADVERSARIAL, RMS_COMPONENTS, WEIGHT, component_of, loss_knobs, registered_name
from encore.config.knobs import (
    MAX_COUNT,
    MAX_SECONDS,
    MAX_SEED,
    from_flags,
    knob,
    knobs_of,
    listed,
    many,
    to_flags,
)
from encore.registry import DATASETS, PRIORS, TRACKERS

DATA, CODEC, MODEL, GENERATION, OBJECTIVE = "Data", "Codec", "Model", "Generation", "Objective"
OPTIMISATION, RUN, RANKS, TRACKING = "Optimisation", "Run", "Ranks", "Tracking"
SCHEDULERS = ("cosine", "plateau", "constant")
DISCRIMINATORS = ("msstft", "mpd", "msstft+mpd")
EMBEDDINGS = ("codec", "crepe", "panns", "openl3")
PRECISIONS = ("auto", "fp32", "bf16")
MIN_RATE, MAX_RATE = 1e-12, 1e30  # of learning; training that diverges is noticed, whatever the rate
MAX_PROCESSES = 1024  # on a machine
OBJECTIVES, GENERATIONS = ("regression", "energy"), ("blocks", "whole")
PARALLELS = ("ddp", "fsdp")


def latents_of(dataset: Path) -> Path:
    """The folder for the encoded latents of a data set: in its folder, or beside its manifest."""
    return (dataset.parent if dataset.is_file() else dataset) / ".latents"


@dataclass(frozen=True)
class DataConfig:
    """The pairs to train on."""

    dataset_folder: Path | None = knob(
        None,
        "folder with train/ and val/ pairs (prepare_data.py makes it), a manifest of pairs (.jsonl, .csv), or a folder "
        "of songs",
        DATA,
        common=True,
    )
    dataset_format: str = knob("pairs", "how the pairs are stored there", DATA, choices=DATASETS)
    cache_dir: Path | None = knob(
        None, "folder for encoded latents, and pairs cut from songs; default DATASET_FOLDER/.latents", DATA
    )
    num_workers: int = knob(2, "processes that read audio, per rank", DATA, minimum=0, maximum=MAX_PROCESSES)
    batch_size: int = knob(8, "pairs per step and rank", DATA, minimum=1, maximum=65536, common=True)
    global_batch_size: int | None = knob(
        None,
        "pairs per optimiser step over all ranks, whatever their number, in batches of at most BATCH_SIZE; default: "
        "BATCH_SIZE x ranks x GRAD_ACCUMULATION",
        DATA,
        minimum=1,
        maximum=MAX_COUNT,
    )
    unity_test: bool = knob(False, "make the target the end of the input: checks the whole pipeline", DATA, common=True)
    shuffle_targets: bool = knob(False, "give every input another pair's target: a control", DATA)

    @property
    def latent_folder(self) -> Path:
        assert self.dataset_folder is not None
        return self.cache_dir or latents_of(self.dataset_folder)


@dataclass(frozen=True)
class CodecConfig:
    """The frozen codec."""

    name: str = knob(
        "encodec_24khz",
        "encodec_24khz, encodec_48khz, starter, or a path to your own weights",
        CODEC,
        flag="codec",
        common=True,
    )
    repository: Path | None = knob(
        None, "folder with the pretrained codecs' files, instead of a download", CODEC, flag="codec_repository"
    )
    bandwidth: float | None = knob(
        None,
        "kbit/s of the quantiser; default: continuous latents",
        CODEC,
        flag="encodec_bandwidth",
        minimum=0.1,
        maximum=1000,
    )


@dataclass(frozen=True)
class ModelConfig:
    """The transformer, and how it generates."""

    d_model: int = knob(512, "width of the transformer", MODEL, minimum=1, maximum=16384, common=True)
    nhead: int = knob(8, "attention heads", MODEL, minimum=1, maximum=1024)
    num_layers: int = knob(4, "transformer layers", MODEL, minimum=1, maximum=256, common=True)
    dropout: float = knob(0.1, "dropout probability", MODEL, minimum=0, maximum=0.99)
    generation: str | None = knob(
        None,
        "block after block, or the whole segment at once; default: blocks for energy, whole for regression",
        GENERATION,
        choices=GENERATIONS,
    )
    block_seconds: float = knob(1.0, "length of a block", GENERATION, minimum=0.001, maximum=3600)
    context_seconds: float | None = knob(
        None,
        "seconds of the past that the model sees; default: a whole input",
        GENERATION,
        minimum=0.001,
        maximum=MAX_SECONDS,
    )
    prior: str = knob(
        "rhythm",
        "what a continuation starts from: the context again, at its own rhythm, at any lag or where a trained pointer "
        "says, or nothing",
        GENERATION,
        choices=PRIORS,
        common=True,
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: the weighted sum of losses on decoded audio, as a regression or an energy distance."""

    kind: str | None = knob(
        None,
        "energy draws several continuations and scores them, regression makes one; default: energy, regression in a "
        "unity test",
        OBJECTIVE,
        flag="objective",
        choices=OBJECTIVES,
        common=True,
    )
    samples: int = knob(2, "continuations drawn per input by the objective energy", OBJECTIVE, minimum=2, maximum=1024)
    decode_seconds: float | None = knob(
        None,
        "seconds decoded and compared per training step; default: the whole segment on a GPU, 2 on a CPU",
        OBJECTIVE,
        minimum=0.001,
        maximum=MAX_SECONDS,
        common=True,
    )
    context_noise: float = knob(
        0.0,
        "largest standard deviation of noise on the context in training, relative to the latents'",
        OBJECTIVE,
        minimum=0,
        maximum=1000,
    )
    rollout_blocks: int = knob(
        0,
        "most blocks of its own that the model continues from, in the last quarter of training",
        OBJECTIVE,
        minimum=0,
        maximum=1000,
    )
    metrics: str = knob(
        "rms_input,rms_target,spectral,mel",
        "losses measured at validation, whatever their weight: a,b,c",
        OBJECTIVE,
        common=True,
    )
    loss_balancer: bool = knob(False, "balance gradients so that weights are shares (EnCodec)", OBJECTIVE)
    balancer_shrink: bool = knob(
        False, "let the balanced gradient fade as losses are solved; not in a unity test", OBJECTIVE
    )
    loss_weights: Mapping[str, float] = many(loss_knobs)
    embedding_model: str = knob(
        "codec", "model whose features the loss embedding compares", "Losses: perceptual", choices=EMBEDDINGS
    )
    embedding_weights: Path | None = knob(None, "its weights; default: downloaded if need be", "Losses: perceptual")
    embedding_layers: str = knob("all", "its layers that are compared", "Losses: perceptual", choices=("all", "last"))
    gan_type: str = knob("hinge", "kind of adversarial loss", "Losses: adversarial", choices=("hinge", "lsgan"))
    discriminator: str = knob(
        "msstft",
        "multi-scale STFT (EnCodec), multi-period (HiFi-GAN) or both",
        "Losses: adversarial",
        choices=DISCRIMINATORS,
    )
    disc_lr: float = knob(
        1e-4, "learning rate of the discriminator", "Losses: adversarial", minimum=MIN_RATE, maximum=MAX_RATE
    )
    disc_update_freq: int = knob(
        1,
        "steps from one update of the discriminator to the next",
        "Losses: adversarial",
        minimum=1,
        maximum=MAX_COUNT,
    )
    disc_start_step: int = knob(
        0, "step at which the discriminator joins in", "Losses: adversarial", minimum=0, maximum=MAX_COUNT
    )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every component, by its name, in order."""
        flags = (one.name for one in loss_knobs())
        return {component_of(flag): self.loss_weights.get(flag, 0.0) for flag in flags}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(listed(self.metrics))

    @property
    def loss_names(self) -> set[str]:
        """The registered names of the losses that a run is trained on or measured by, without the adversary's."""
        components = {name for name, weight in self.weights.items() if weight} | set(self.metric_names)
        return {registered_name(name) for name in components - {*ADVERSARIAL}}

    def flag_of(self, component: str) -> str:
        """The flag, with its value, because of which a component is computed."""
        flags = {name: flag for flag, name in RMS_COMPONENTS.items()}
        weight = self.weights.get(component)
        return f"--{WEIGHT}{flags.get(component, component)} {weight:g}" if weight else f"--metrics {component}"


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, learning rate, and when training ends."""

    epochs: int = knob(200, "passes over the training pairs", OPTIMISATION, minimum=1, maximum=MAX_COUNT, common=True)
    max_steps: int | None = knob(
        None,
        "optimiser steps after which training ends, whatever the epoch",
        OPTIMISATION,
        minimum=1,
        maximum=MAX_COUNT,
    )
    lr: float = knob(1e-4, "peak learning rate of AdamW", OPTIMISATION, minimum=MIN_RATE, maximum=MAX_RATE, common=True)
    weight_decay: float = knob(0.01, "weight decay of the weight matrices", OPTIMISATION, minimum=0, maximum=1000)
    scheduler: str = knob("cosine", "learning-rate schedule after the warm-up", OPTIMISATION, choices=SCHEDULERS)
    warmup_steps: int = knob(100, "steps of linear warm-up", OPTIMISATION, minimum=0, maximum=MAX_COUNT)
    clip_norm: float = knob(
        1.0, "largest gradient norm; larger ones are scaled down to it", OPTIMISATION, minimum=1e-9, maximum=1e30
    )
    grad_accumulation: int = knob(1, "batches per optimiser step", OPTIMISATION, minimum=1, maximum=65536)
    ema_decay: float = knob(
        0.999,
        "decay per step of the averaged weights that are validated; 0: off",
        OPTIMISATION,
        minimum=0,
        maximum=0.9999999,
    )
    precision: str = knob(
        "auto",
        "of the transformer; auto: bf16 where this GPU or CPU is faster with it. Decoder and losses stay in float32",
        OPTIMISATION,
        choices=PRECISIONS,
    )
    recompute: bool = knob(
        False, "compute activations again in the backward pass: less memory, more time", OPTIMISATION
    )
    compile: bool = knob(False, "torch.compile the transformer", OPTIMISATION)
    patience: int | None = knob(
        None, "epochs without a better validation loss before stopping", OPTIMISATION, minimum=1, maximum=MAX_COUNT
    )


@dataclass(frozen=True)
class RunConfig:
    """The run: its folder, seed, plugins and ranks."""

    checkpoint_dir: Path = knob(
        Path("checkpoints"), "folder for checkpoints, config.json and train.log", RUN, common=True
    )
    save_every: int = knob(1, "epochs between saves of last.pt", RUN, minimum=1, maximum=MAX_COUNT)
    save_minutes: float = knob(
        10.0,
        "minutes between saves of last.pt within an epoch; 0: after every step",
        RUN,
        minimum=0,
        maximum=MAX_COUNT,
    )
    keep_last: int = knob(
        2, "newest checkpoints to keep: last.pt, before it last_1.pt, and so on", RUN, minimum=1, maximum=MAX_COUNT
    )
    resume: str | None = knob(
        None,
        "checkpoint to resume, or auto: the newest whole one in CHECKPOINT_DIR if there is one",
        RUN,
        common=True,
    )
    seed: int = knob(
        0, "seed of weights, order of pairs, dropout and crops", RUN, minimum=0, maximum=MAX_SEED, common=True
    )
    plugins: str = knob("", "modules or files of your own that register building blocks: a,b.py", RUN, common=True)
    world_size: int | None = knob(
        None, "ranks on this machine; default: all GPUs, else 1", RANKS, minimum=1, maximum=MAX_PROCESSES, common=True
    )
    parallel: str = knob(
        "ddp",
        "whether ranks hold the whole model each (ddp) or a part of it (fsdp), if it is too large for one",
        RANKS,
        choices=PARALLELS,
    )
    nnodes: str = knob("1", "machines, N or MIN:MAX", RANKS)
    rdzv_endpoint: str = knob("", "HOST:PORT where several machines meet; default in a SLURM job: from it", RANKS)
    max_restarts: int = knob(
        0, "times that failed workers are restarted, from last.pt", RANKS, minimum=0, maximum=MAX_COUNT
    )
    timeout_minutes: float = knob(
        10.0,
        "minutes that a rank may stand still in training before all end and are restarted",
        RANKS,
        minimum=0.01,
        maximum=7 * 24 * 60,
    )


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is logged."""

    tracker: str = knob(
        "mlflow", "what the run is logged to; none: only to its folder", TRACKING, choices=TRACKERS, common=True
    )
    mlflow_uri: str = knob("sqlite:///mlflow.db", "MLflow tracking server or store", TRACKING, common=True)
    experiment: str = knob("encore", "experiment of MLflow, project of wandb", TRACKING)
    run_name: str | None = knob(
        None, "name of the run; default: its objective, its losses and what else is not as usual", TRACKING, common=True
    )
    artifact_every: int = knob(
        5,
        "epochs between validation examples (audio and picture) in the tracker",
        TRACKING,
        minimum=1,
        maximum=MAX_COUNT,
    )


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any] | None = None, **more: Any) -> TrainConfig:
        """A configuration from values by flag, in their own types or as `to_dict` writes them.

        Raises:
            TypeError: a name that is no flag.
        """
        kinds = {one.name: one.kind for one in knobs_of(cls)}
        values = {**(flags or {}), **more}
        typed = {n: Path(v) if kinds.get(n) is Path and v is not None else v for n, v in values.items()}
        return from_flags(cls, typed)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration in a checkpoint; settings that this version does not know are left out."""
        known = {one.name for one in knobs_of(cls)}
        return cls.from_flags({name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by flag, for JSON, checkpoints and MLflow's parameters."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in to_flags(self).items()}

    def to_argv(self) -> list[str]:
        """Flags that give this configuration again."""
        argv = []
        for name, value in self.to_dict().items():
            if value is not None:
                argv += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
        return argv

    def resolved(self) -> TrainConfig:
        """The same with what follows from other settings: objective, generation, and a weight if none is given."""
        kind = self.objective.kind or ("regression" if self.data.unity_test else "energy")
        generation = self.model.generation or ("blocks" if kind == "energy" else "whole")
        weights = self.objective.loss_weights
        if not any(weights.values()):
            weights = {WEIGHT + ("spectral_energy" if kind == "energy" else "target"): 1.0}
        objective = replace(self.objective, kind=kind, loss_weights=weights)
        return replace(self, objective=objective, model=replace(self.model, generation=generation))
