"""What is checked of a training configuration before anything begins."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from encore.config.components import ADVERSARIAL
from encore.config.knobs import problems_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError, make_folder
from encore.registry import TRACKERS

NODES = re.compile("[1-9][0-9]{0,3}")


def validate(config: TrainConfig) -> None:
    """Checks a resolved configuration as far as that is possible without reading data.

    Raises:
        EncoreError: all problems together, a line each, with flag, value and remedy.
    """
    problems = problems_of(config) + _losses(config) + _generation(config) + _optimisation(config)
    problems += _paths(config) + _tracking(config)
    if problems:
        raise EncoreError("\n".join(problems))


def _losses(config: TrainConfig) -> list[str]:
    problems = []
    objective = config.objective
    measurable = {name: value for name, value in objective.weights.items() if name not in ADVERSARIAL}
    if not any(measurable.values()):
        flag = next(objective.flag_of(name) for name in ADVERSARIAL if objective.weights[name])
        problems.append(f"{flag}: needs another loss as well, by which the best epoch is chosen; give one a weight")
    if objective.balancer_shrink and not objective.loss_balancer:
        problems.append("--balancer_shrink true: is a setting of the balancer; add --loss_balancer true")
    unknown = [name for name in objective.metric_names if name not in measurable]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(measurable)}")
    weights = objective.embedding_weights
    if weights is not None and not weights.is_file():
        problems.append(f"--embedding_weights {weights}: no such file")
    return problems


def _generation(config: TrainConfig) -> list[str]:
    problems = []
    model, objective = config.model, config.objective
    if model.nhead > 0 and (model.d_model % model.nhead or model.d_model // model.nhead % 2):
        problems.append(
            f"--d_model {model.d_model} --nhead {model.nhead}: every head needs the same even number of channels; "
            f"d_model must be a multiple of {2 * model.nhead}"
        )
    if config.data.unity_test and objective.kind == "energy":
        problems.append(
            "--unity_test true --objective energy: there is one right answer, so use --objective regression"
        )
    if objective.rollout_blocks and model.generation == "whole":
        problems.append(f"--rollout_blocks {objective.rollout_blocks} --generation whole: has no blocks; leave one out")
    return problems


def _optimisation(config: TrainConfig) -> list[str]:
    problems = []
    if config.data.unity_test and config.data.shuffle_targets:
        problems.append("--unity_test true --shuffle_targets true: contradict each other; choose one")
    if config.run.parallel == "fsdp" and config.optim.compile:
        problems.append("--parallel fsdp --compile true: do not go together; leave one out")
    together, accumulation = config.data.global_batch_size, config.optim.grad_accumulation
    if together is not None and accumulation > 1:
        problems.append(
            f"--global_batch_size {together} --grad_accumulation {accumulation}: one follows from the other "
            "and the number of ranks; leave one out"
        )
    counts = config.run.nnodes.split(":")
    if not (len(counts) <= 2 and all(NODES.fullmatch(count) for count in counts)):
        problems.append(
            f"--nnodes {config.run.nnodes}: must be a number of machines N or a range MIN:MAX, each from 1 to 9999"
        )
    elif int(counts[0]) > int(counts[-1]):
        problems.append(f"--nnodes {config.run.nnodes}: the first number must not be above the second")
    elif int(counts[-1]) > 1 and not config.run.rdzv_endpoint and "SLURM_JOB_ID" not in os.environ:
        problems.append(f"--nnodes {config.run.nnodes}: several machines need --rdzv_endpoint HOST:PORT")
    return problems


def _paths(config: TrainConfig) -> list[str]:
    problems = []
    folder, repository, resume = config.data.dataset_folder, config.codec.repository, config.run.resume
    if folder is None:
        problems.append("--dataset_folder: missing; name a folder that prepare_data.py made")
    elif not folder.exists():
        problems.append(
            f"--dataset_folder {folder}: no such folder or manifest; python prepare_data.py MUSIC --output {folder}"
        )
    if repository is not None and not repository.is_dir():
        problems.append(f"--codec_repository {repository}: no such folder")
    if resume not in (None, "auto") and not Path(str(resume)).is_file():
        problems.append(f"--resume {resume}: no such file; give a checkpoint or auto")
    try:  # now, rather than after hours of training
        make_folder(config.run.checkpoint_dir, "--checkpoint_dir")
    except EncoreError as error:
        problems.append(str(error))
    return problems


def _tracking(config: TrainConfig) -> list[str]:
    name = config.tracking.tracker
    needed = getattr(TRACKERS.get(name), "requires", ())  # a factory of trackers may be a function
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    how = "pip install -r requirements-trackers.txt"
    return [f"--tracker {name}: needs {', '.join(missing)}, which is not installed: {how}"] if missing else []
