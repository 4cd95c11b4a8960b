"""Arrays of NumPy and JAX as arguments of functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_arrays(function: Function) -> Function:
    """Lets a function of tensors take other arrays.

    If a positional argument is one, the result is an array of the same package, found by Python's array API standard.
    """

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        arrays = [argument for argument in arguments if hasattr(argument, "__array_namespace__")]
        tensors = {name: as_tensor(argument) for name, argument in named.items()}
        result = function(*(as_tensor(argument) for argument in arguments), **tensors)
        if not arrays:
            return result
        return arrays[0].__array_namespace__().asarray(result.detach().numpy())

    return cast(Function, called)


def as_tensor(value: Any) -> Any:
    """An array as a tensor; anything else as it is."""
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return value
    return torch.tensor(np.asarray(value))
