"""What is checked of a configuration before anything begins."""

from __future__ import annotations

from pathlib import Path

from encore.config.schema import ADVERSARIAL, TrainConfig, knobs
from encore.errors import EncoreError, make_folder


def validate(config: TrainConfig) -> None:
    """Checks a resolved configuration as far as it can be without reading data.

    Raises:
        EncoreError: all problems together, a line each, with flag, value and remedy.
    """
    problems = []
    for name, _, entry in knobs():
        value, minimum, choices = getattr(config, name), entry.metadata["minimum"], entry.metadata["choices"]
        # Written so that NaN, which is neither above nor below, is refused too.
        if minimum is not None and value is not None and not minimum <= value < float("inf"):
            problems.append(f"--{name} {value}: must be a finite number of at least {minimum:g}")
        if choices and value not in choices:
            problems.append(f"--{name} {value}: must be one of {', '.join(choices)}")
    problems += _losses(config) + _generation(config) + _relations(config) + _folders(config)
    if problems:
        raise EncoreError("\n".join(problems))


def _losses(config: TrainConfig) -> list[str]:
    problems = []
    weights = config.loss_weights
    measurable = {name: value for name, value in weights.items() if name not in ADVERSARIAL}
    if not any(measurable.values()):
        flag = next(config.flag_of(name) for name in ADVERSARIAL if weights[name])
        problems.append(f"{flag}: needs another loss beside it, by which the best epoch is known; give one a weight")
    if config.balancer_shrink and not config.loss_balancer:
        problems.append("--balancer_shrink true: is a setting of the balancer's; add --loss_balancer true")
    unknown = [name for name in config.metric_names if name not in measurable]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(measurable)}")
    if config.embedding_weights is not None and not config.embedding_weights.is_file():
        problems.append(f"--embedding_weights {config.embedding_weights}: no such file")
    return problems


def _generation(config: TrainConfig) -> list[str]:
    problems = []
    for name in ("block_seconds", "context_seconds"):
        if getattr(config, name) == 0:
            problems.append(f"--{name} 0: must be above 0")
    if config.unity_test and config.objective == "energy":
        problems.append(
            "--unity_test true --objective energy: there is one right answer, so use --objective regression"
        )
    if config.rollout_blocks and config.generation == "whole":
        problems.append(f"--rollout_blocks {config.rollout_blocks} --generation whole: has no blocks; leave one out")
    return problems


def _relations(config: TrainConfig) -> list[str]:
    problems = []
    if config.nhead > 0 and (config.d_model % config.nhead or config.d_model // config.nhead % 2):
        problems.append(
            f"--d_model {config.d_model} --nhead {config.nhead}: every head needs the same even number of channels; "
            f"d_model must be a multiple of {2 * config.nhead}"
        )
    for name in ("dropout", "ema_decay"):
        if getattr(config, name) >= 1:
            problems.append(f"--{name} {getattr(config, name)}: must be below 1")
    for name in ("lr", "disc_lr", "clip_norm", "encodec_bandwidth"):
        if getattr(config, name) == 0:
            problems.append(f"--{name} 0: must be above 0")
    if config.unity_test and config.shuffle_targets:
        problems.append("--unity_test true --shuffle_targets true: contradict each other; choose one")
    counts = config.nnodes.split(":")
    if not (len(counts) <= 2 and all(count.isdigit() and int(count) > 0 for count in counts)):
        problems.append(f"--nnodes {config.nnodes}: must be a number of machines N or a range MIN:MAX")
    elif int(counts[-1]) > 1 and not config.rdzv_endpoint:
        problems.append(f"--nnodes {config.nnodes}: several machines need --rdzv_endpoint HOST:PORT")
    return problems


def _folders(config: TrainConfig) -> list[str]:
    problems = []
    folder = config.dataset_folder
    if folder is None:
        problems.append("--dataset_folder: missing; name a folder that prepare_data.py made")
    elif not folder.is_dir():
        problems.append(f"--dataset_folder {folder}: no such folder; python prepare_data.py MUSIC --output {folder}")
    if config.codec_repository is not None and not config.codec_repository.is_dir():
        problems.append(f"--codec_repository {config.codec_repository}: no such folder")
    if config.resume not in (None, "auto") and not Path(str(config.resume)).is_file():
        problems.append(f"--resume {config.resume}: no such file; give a checkpoint or auto")
    try:  # here, before hours of training find out that it can't be
        make_folder(config.checkpoint_dir, "--checkpoint_dir")
    except EncoreError as error:
        problems.append(str(error))
    return problems
