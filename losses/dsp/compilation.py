"""What `torch.compile` and `torch.func` need: plain operations, constant tensors, functions that stay uncompiled."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., object])


def plain_only() -> bool:
    """Whether only operations of torch itself will do, not hand-written gradients or results that are kept.

    So it is within `torch.compile` and the transforms of `torch.func` (`grad`, `vmap`, `jvp`, …), and with
    forward-mode derivatives.
    """
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def eager(function: Function) -> Function:
    """`torch.compiler.disable`, but the compiler, which takes a second to import, is not imported by mere calls."""
    disabled = _disable_dynamo(function)

    @wraps(function)
    def called(*arguments: object, **named: object) -> object:
        return (disabled if torch.compiler.is_compiling() else function)(*arguments, **named)

    return cast(Function, called)


def constant(function: Function) -> Function:
    """Caches a function of hashable arguments, which the compiler calls when it compiles; see `constant_tensor`."""

    @lru_cache(maxsize=64)
    def made(*arguments: object, **named: object) -> object:
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments, **named)

    @wraps(function)
    def called(*arguments: object, **named: object) -> object:
        if torch._C._are_functorch_transforms_active():  # what is made here must not outlive the transform
            return function(*arguments, **named)
        return made(*arguments, **named)

    # As torch.compiler.assume_constant_result does, which imports the compiler.
    called._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return cast(Function, called)


_constants: dict[str, Callable[..., Tensor]] = {}


def constant_tensor(function: Function) -> Function:
    """Caches a function that makes a constant tensor from `(…, device, dtype)`, with literals for the others.

    The tensor can be used in training even if the first call is in inference mode. In compiled code it is the result of
    an operation that calls this function: the compiler must not look into NumPy's and SciPy's code, and can take no
    more than one tensor of a function as a constant.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    made = constant(function)
    _constants[name] = cast(Callable[..., Tensor], made)

    @wraps(function)
    def called(*arguments: object) -> object:
        if not torch.compiler.is_compiling():
            return made(*arguments)
        *settings, device, dtype = arguments
        literals = _literal(tuple(settings))
        return torch.ops.losses.constant(name, literals, _shape(name, literals), device, dtype)

    return cast(Function, called)


def _literal(value: object) -> str:
    """`repr`, in a form that makes the compiler take numbers that change from call to call as constants too."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{_literal(part)}, " for part in value) + ")"
    return repr(value) if isinstance(value, str) else f"{value}"


@constant
def _shape(name: str, literals: str) -> tuple[int, ...]:
    return tuple(_constants[name](*literal_eval(literals), torch.device("cpu"), torch.float32).shape)


@torch.library.custom_op("losses::constant", mutates_args=())
def _constant(name: str, literals: str, shape: list[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    return _constants[name](*literal_eval(literals), device, dtype).clone()


@_constant.register_fake
def _(name: str, literals: str, shape: list[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype)
