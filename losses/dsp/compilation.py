"""What `torch.compile` and `torch.func` need: plain operations, constant tensors, functions that stay uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, cast

import torch
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
    """Caches a function that makes constant tensors from hashable arguments; the compiler takes its result as given.

    Its tensors can be used in training and in compiled code even if the first call is in inference mode.
    """

    @lru_cache(maxsize=64)
    def made(*arguments: object, **named: object) -> object:
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments, **named)

    @wraps(function)
    def called(*arguments: object, **named: object) -> object:
        if torch._C._are_functorch_transforms_active():  # what is made here must not outlive the transform
            return function(*arguments, **named)
        return made(*arguments, **named)

    called._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result imports it
    return cast(Function, called)
