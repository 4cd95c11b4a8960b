"""How the ranks share a model: each holds all of it (DDP), or a part of every weight (FSDP2, Zhao et al. 2023).

With FSDP weights, gradients, the optimiser's moments and averaged weights are DTensors, split along their first
dimension. The layers' weights are gathered for their forward and backward pass one layer after the other. Checkpoints
hold whole tensors either way, so that they do not depend on it, nor on the number of ranks.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from encore.models.transformer import ContinuationTransformer

DDP, FSDP = "ddp", "fsdp"


def shard(model: nn.Module) -> None:
    """Leaves each rank its part of every weight, but for the pointer's; all ranks must hold equal weights before."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # half a second, of these runs only

    assert isinstance(model, ContinuationTransformer)
    # Of views that are returned: nothing here changes an output in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for layer in model.layers:
        fully_shard(layer)
        register_fsdp_forward_method(layer, "project")
    ignored = set() if model.pointer is None else {*model.pointer.parameters()}
    fully_shard(model, ignored_params=ignored)
    for name in ("prefill", "decode_block"):
        register_fsdp_forward_method(model, name)


def wrap(model: nn.Module) -> nn.Module:
    """The model as it is called in training, so that the ranks' gradients are averaged."""
    return model if is_sharded(model) else DistributedDataParallel(model, gradient_as_bucket_view=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return hasattr(model, "unshard")  # of `torch.distributed.fsdp.FSDPModule`


def is_split(value: Any) -> bool:
    """Whether a value is a tensor of which each rank has a part, a `torch.distributed.tensor.DTensor`."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


@contextmanager
def accumulating(model: Any) -> Iterator[None]:
    """A forward and backward pass whose gradient stays on its rank, to be averaged with that of a later one."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif is_sharded(model):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def clip_gradient(model: nn.Module, most: float) -> Tensor:
    """Scales the gradient down to a norm of `most`; the norm that it had, the same on all ranks."""
    norm: Any = nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if is_split(norm) else norm


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Every rank holds all weights, so that each may call the model as often as it likes; entered by all together."""
    parts: list[Any] = [part for part in model.modules() if is_sharded(part)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def gathered(value: Any) -> Any:
    """Nested mappings and lists of tensors with whole tensors, in the computer's memory, for parts; called by all."""
    if is_split(value):
        with torch.no_grad():
            return value.full_tensor().cpu()
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update({name: gathered(part) for name, part in value.items()})
        return result
    return [gathered(part) for part in value] if isinstance(value, list) else value


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads whole tensors, of which each rank takes its part."""
    own = module.state_dict()
    module.load_state_dict({name: part_of(weights[name], own.get(name)) for name in weights})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the state of an optimiser whose moments are whole tensors, of which each rank takes its part."""
    optimizer.load_state_dict(state)
    for weights, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weights.shape:
                values[name] = part_of(value, weights)


def part_of(value: Tensor, like: Any) -> Tensor:
    """This rank's part of a whole tensor, split as `like` is."""
    if not is_split(like) or is_split(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
