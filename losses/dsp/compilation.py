"""Functions that `torch.compile` leaves alone, and constant tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, cast

import torch
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., object])


def eager(function: Function) -> Function:
    """`torch.compiler.disable`, but the compiler, which takes a second to import, is not imported by mere calls."""
    disabled = _disable_dynamo(function)

    @wraps(function)
    def called(*arguments: object, **named: object) -> object:
        return (disabled if torch.compiler.is_compiling() else function)(*arguments, **named)

    return cast(Function, called)


def constant(function: Function) -> Function:
    """Caches a function that makes constant tensors from hashable arguments.

    Its tensors can be used in training and in compiled code even if the first call is in inference mode.
    """

    @lru_cache(maxsize=64)
    @wraps(function)
    def made(*arguments: object, **named: object) -> object:
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments, **named)

    return cast(Function, eager(made))
