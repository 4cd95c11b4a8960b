"""The configuration of a training run: one frozen dataclass, from which the flags are made."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def knob(default: Any, help: str, group: str, minimum: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field of the configuration: its default, its help text (with unit), its group in `--help`, its bounds."""
    return field(default=default, metadata={"help": help, "group": group, "minimum": minimum, "choices": choices})


def weight(help: str, group: str, default: float = 0.0) -> Any:
    """The weight of a loss."""
    return knob(default, help, group, 0)


DATA, CODEC, MODEL, GENERATION = "Data", "Codec", "Model", "Generation"
WAVEFORM, SPECTRAL, PERCEPTUAL, JUDGED, COMBINING = (
    f"Losses: {kind}" for kind in ("waveform", "spectral", "perceptual", "adversarial", "combining")
)
OPTIMISATION, RUN, RANKS, TRACKING = "Optimisation", "Run", "Ranks", "Tracking"
SCHEDULERS = ("cosine", "plateau", "constant")
DISCRIMINATORS = ("msstft", "mpd", "msstft+mpd")
EMBEDDINGS = ("codec", "crepe", "panns", "openl3")
OBJECTIVES, GENERATIONS, PRIORS = ("regression", "energy"), ("blocks", "whole"), ("rhythm", "replay", "none")
COMPONENT_NAMES = {"input": "rms_input", "target": "rms_target"}  # where a weight's name is not its component's
WEIGHT = "loss_weight_"
ADVERSARIAL = ("gan", "feature_matching")  # a discriminator's, not losses that can be measured by themselves


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    dataset_folder: Path | None = knob(None, "folder with train/ and val/ pairs (prepare_data.py makes it)", DATA)
    cache_dir: Path | None = knob(None, "folder for encoded latents; default DATASET_FOLDER/.latents", DATA)
    num_workers: int = knob(2, "processes that read audio, per rank", DATA, 0)
    batch_size: int = knob(8, "pairs per step and rank", DATA, 1)
    unity_test: bool = knob(False, "make the target the input: checks the whole pipeline", DATA)
    shuffle_targets: bool = knob(False, "give every input another pair's target: a control", DATA)

    codec: str = knob("encodec_24khz", "encodec_24khz, encodec_48khz, starter, or a path to own weights", CODEC)
    codec_repository: Path | None = knob(None, "folder with the pretrained codecs' files, instead of a download", CODEC)
    encodec_bandwidth: float | None = knob(None, "kbit/s of the quantiser; default: continuous latents", CODEC, 0)
    decode_seconds: float | None = knob(
        None,
        "seconds decoded and compared per training step; default: the whole segment on a GPU, 2 on a CPU",
        CODEC,
        0,
    )

    d_model: int = knob(512, "width of the transformer", MODEL, 1)
    nhead: int = knob(8, "attention heads", MODEL, 1)
    num_layers: int = knob(4, "transformer layers", MODEL, 1)
    dropout: float = knob(0.1, "dropout probability", MODEL, 0)

    objective: str | None = knob(
        None,
        "energy draws several continuations and scores them, regression makes one; default: energy, regression in a "
        "unity test",
        GENERATION,
        choices=OBJECTIVES,
    )
    samples: int = knob(2, "continuations drawn per input by the objective energy", GENERATION, 2)
    generation: str | None = knob(
        None,
        "block after block, or the whole segment at once; default: blocks for energy, whole for regression",
        GENERATION,
        choices=GENERATIONS,
    )
    block_seconds: float = knob(1.0, "length of a block", GENERATION, 0)
    context_seconds: float | None = knob(
        None, "seconds of the past that the model sees; default: a segment", GENERATION, 0
    )
    prior: str = knob(
        "rhythm",
        "what a continuation starts from: the context again, at its own rhythm or any lag, or nothing",
        GENERATION,
        choices=PRIORS,
    )
    context_noise: float = knob(
        0.0, "greatest deviation of noise on the context in training, relative to the latents'", GENERATION, 0
    )
    rollout_blocks: int = knob(
        0, "most blocks of its own that the model goes on from, in the last quarter of training", GENERATION, 0
    )

    loss_weight_input: float = weight("RMS error against the input", WAVEFORM)
    loss_weight_target: float = weight("RMS error against the target; 1 for regression without other weights", WAVEFORM)
    loss_weight_waveform_l1: float = weight("mean absolute error", WAVEFORM)
    loss_weight_waveform_mse: float = weight("mean square error", WAVEFORM)
    loss_weight_esr: float = weight("error-to-signal ratio", WAVEFORM)
    loss_weight_dc: float = weight("difference of the means, relative to the target's level", WAVEFORM)
    loss_weight_log_cosh: float = weight("log-cosh of the error", WAVEFORM)
    loss_weight_snr: float = weight("signal-to-noise ratio", WAVEFORM)
    loss_weight_si_sdr: float = weight("scale-invariant signal-to-distortion ratio", WAVEFORM)
    loss_weight_sd_sdr: float = weight("scale-dependent signal-to-distortion ratio", WAVEFORM)

    loss_weight_spectral: float = weight("multi-resolution STFT loss", SPECTRAL)
    loss_weight_mel: float = weight("log-mel L1", SPECTRAL)
    loss_weight_stft: float = weight("STFT loss at one resolution", SPECTRAL)
    loss_weight_mel_stft: float = weight("STFT loss on mel bands", SPECTRAL)
    loss_weight_chroma_stft: float = weight("STFT loss on the twelve pitch classes", SPECTRAL)
    loss_weight_multi_resolution_stft: float = weight("STFT loss at auraloss's three resolutions", SPECTRAL)
    loss_weight_random_resolution_stft: float = weight("STFT loss at resolutions drawn anew every step", SPECTRAL)
    loss_weight_sum_and_difference_stft: float = weight("STFT loss on channels' sum and difference: stereo", SPECTRAL)
    loss_weight_mrstft: float = weight("STFT loss at korvax's six resolutions", SPECTRAL)
    loss_weight_smooth_mrstft: float = weight("STFT loss at six smooth resolutions (Schwär & Müller)", SPECTRAL)
    loss_weight_spectral_optimal_transport: float = weight("optimal transport between spectra", SPECTRAL)
    loss_weight_multi_mel: float = weight("log-mel L1 at three resolutions", SPECTRAL)
    loss_weight_complex_spec: float = weight("L1 of magnitudes relative to the target's", SPECTRAL)
    loss_weight_multi_complex_spec: float = weight("the same at seven resolutions", SPECTRAL)
    loss_weight_mse_spectrogram: float = weight("mean square error of spectrograms", SPECTRAL)
    loss_weight_log_spectrogram: float = weight("distance of log spectrograms", SPECTRAL)
    loss_weight_complex_stft: float = weight("distance of complex spectra: magnitude and phase together", SPECTRAL)
    loss_weight_phase: float = weight("anti-wrapped phase, group delay and instantaneous frequency", SPECTRAL)
    loss_weight_loudness: float = weight("spectral error weighted by how loud the target's bins are", SPECTRAL)
    loss_weight_spectral_energy: float = weight(
        "linear L1 and log L2 over six resolutions (Gritsenko); 1 for energy without other weights", SPECTRAL
    )

    loss_weight_pesq: float = weight("perceptual evaluation of speech quality: a measure of speech", PERCEPTUAL)
    loss_weight_embedding: float = weight("distance in the features of --embedding_model", PERCEPTUAL)
    embedding_model: str = knob("codec", "model whose features are compared", PERCEPTUAL, choices=EMBEDDINGS)
    embedding_weights: Path | None = knob(None, "its weights; default: downloaded if need be", PERCEPTUAL)
    embedding_layers: str = knob("all", "its layers that are compared", PERCEPTUAL, choices=("all", "last"))

    loss_weight_gan: float = weight("deceiving the discriminator", JUDGED)
    loss_weight_feature_matching: float = weight("L1 of the discriminator's features", JUDGED)
    gan_type: str = knob("hinge", "kind of adversarial loss", JUDGED, choices=("hinge", "lsgan"))
    discriminator: str = knob(
        "msstft", "multi-scale STFT (EnCodec), multi-period (HiFi-GAN) or both", JUDGED, choices=DISCRIMINATORS
    )
    disc_lr: float = knob(1e-4, "learning rate of the discriminator", JUDGED, 0)
    disc_update_freq: int = knob(1, "steps from one update of the discriminator to the next", JUDGED, 1)
    disc_start_step: int = knob(0, "step at which the discriminator joins in", JUDGED, 0)

    loss_balancer: bool = knob(False, "make each weight its loss's share of the gradient", COMBINING)
    balancer_shrink: bool = knob(False, "let it pass on that gradients fade; not in a unity test", COMBINING)
    metrics: str = knob("rms_input,rms_target,spectral,mel", "measured at validation, whatever their weight", COMBINING)

    epochs: int = knob(200, "passes over the training pairs", OPTIMISATION, 1)
    max_steps: int | None = knob(None, "optimiser steps after which training ends, whatever the epoch", OPTIMISATION, 1)
    lr: float = knob(1e-4, "peak learning rate of AdamW", OPTIMISATION, 0)
    weight_decay: float = knob(0.01, "weight decay of the weight matrices", OPTIMISATION, 0)
    scheduler: str = knob("cosine", "course of the learning rate after the warm-up", OPTIMISATION, choices=SCHEDULERS)
    warmup_steps: int = knob(100, "steps of linear warm-up", OPTIMISATION, 0)
    clip_norm: float = knob(1.0, "greatest gradient norm; larger ones are scaled down to it", OPTIMISATION, 0)
    grad_accumulation: int = knob(1, "batches per optimiser step", OPTIMISATION, 1)
    ema_decay: float = knob(0.999, "decay per step of the averaged weights that are validated; 0: off", OPTIMISATION, 0)
    bf16: bool = knob(True, "run the transformer in bfloat16 on GPUs that have it; losses stay float32", OPTIMISATION)
    compile: bool = knob(False, "torch.compile the transformer", OPTIMISATION)
    patience: int | None = knob(None, "epochs without a better validation loss before stopping", OPTIMISATION, 1)

    checkpoint_dir: Path = knob(Path("checkpoints"), "folder for checkpoints, config.json and train.log", RUN)
    save_every: int = knob(1, "epochs between saves of last.pt", RUN, 1)
    resume: str | None = knob(None, "checkpoint to go on from, or auto: CHECKPOINT_DIR/last.pt if there", RUN)
    seed: int = knob(0, "seed of weights, order of pairs, dropout and crops", RUN, 0)

    world_size: int | None = knob(None, "ranks on this machine; default: all GPUs, else 1", RANKS, 1)
    nnodes: str = knob("1", "machines, N or MIN:MAX", RANKS)
    rdzv_endpoint: str = knob("", "HOST:PORT of the rendezvous, for several machines", RANKS)
    max_restarts: int = knob(0, "times that failed workers are started again, from last.pt", RANKS, 0)

    mlflow_uri: str = knob("sqlite:///mlflow.db", "MLflow tracking server or store", TRACKING)
    experiment: str = knob("encore", "MLflow experiment", TRACKING)
    run_name: str | None = knob(None, "name of the MLflow run", TRACKING)
    artifact_every: int = knob(5, "epochs between validation examples (audio and picture) in MLflow", TRACKING, 1)

    def resolved(self) -> TrainConfig:
        """The same with what follows from other settings: objective, generation, and a weight if none is given."""
        objective = self.objective or ("regression" if self.unity_test else "energy")
        generation = self.generation or ("blocks" if objective == "energy" else "whole")
        if any(self.loss_weights.values()):
            return replace(self, objective=objective, generation=generation)
        if objective == "energy":
            return replace(self, objective=objective, generation=generation, loss_weight_spectral_energy=1.0)
        return replace(self, objective=objective, generation=generation, loss_weight_target=1.0)

    @property
    def latent_folder(self) -> Path:
        assert self.dataset_folder is not None
        return self.cache_dir or self.dataset_folder / ".latents"

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of every component, by its name, in order."""
        flags = (name.removeprefix(WEIGHT) for name, _, _ in knobs() if name.startswith(WEIGHT))
        return {COMPONENT_NAMES.get(name, name): getattr(self, WEIGHT + name) for name in flags}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(listed(self.metrics))

    @property
    def loss_names(self) -> set[str]:
        """The registered names of the losses that a run is trained on or measured by, but for the adversary's."""
        components = {name for name, weight in self.loss_weights.items() if weight} | set(self.metric_names)
        return {registered_name(name) for name in components - {*ADVERSARIAL}}

    def flag_of(self, component: str) -> str:
        """The flag, with its value, because of which a component is computed."""
        flags = {name: flag for flag, name in COMPONENT_NAMES.items()}
        weight = self.loss_weights.get(component)
        return f"--{WEIGHT}{flags.get(component, component)} {weight:g}" if weight else f"--metrics {component}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The opposite of `to_dict`; a name that is no field is left out, a field without value has its default."""
        known = {name: kind for name, kind, _ in knobs()}
        typed: dict[str, Any] = {
            name: Path(value) if known[name] is Path and value is not None else value
            for name, value in values.items()
            if name in known
        }
        return cls(**typed)

    def to_argv(self) -> list[str]:
        """Flags that give this configuration again."""
        argv = []
        for name, value in self.to_dict().items():
            if value is not None:
                argv += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
        return argv


def listed(names: str) -> list[str]:
    """The names of a list a,b,c."""
    return [name.strip() for name in names.split(",") if name.strip()]


def registered_name(component: str) -> str:
    """The name under which a component's loss is registered."""
    return "rms" if component in COMPONENT_NAMES.values() else component


def knobs() -> list[tuple[str, type, Field]]:
    """Name, type (without `None`) and field of every setting, in order."""
    hints = get_type_hints(TrainConfig)
    return [(entry.name, _plain(hints[entry.name]), entry) for entry in fields(TrainConfig)]


def _plain(hint: Any) -> type:
    if get_origin(hint) in (types.UnionType, Union):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint
