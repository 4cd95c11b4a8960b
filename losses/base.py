"""What every loss is: a module over a pure function of `(prediction, target)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from losses.dsp.bank import shared
from losses.weighted_sum import Summand

Function = Callable[[Tensor, Tensor], Any]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
REDUCTIONS = ("mean", "sum", "none")


def check_signals(prediction: Tensor, target: Tensor) -> None:
    """Checks that both are signals of one shape.

    Raises:
        TypeError: not a tensor, or one of integers or complex numbers.
        ValueError: shapes that differ or are not `[B, C, N]`, both of which it names, or an empty signal.
    """
    for signal, name in ((prediction, "prediction"), (target, "target")):
        if not isinstance(signal, Tensor):
            raise TypeError(f"the {name} must be a tensor, got {type(signal).__name__}; use torch.as_tensor(…)")
        if not signal.is_floating_point():
            raise TypeError(
                f"the {name} must be a tensor of floating-point numbers with full scale ±1, got {signal.dtype}; "
                "samples of 16-bit audio become that by samples.float() / 32768"
            )
    if prediction.shape != target.shape or prediction.dim() != 3:
        raise ValueError(
            "prediction and target must both be [B, C, N] and equal in shape, got "
            f"{list(prediction.shape)} and {list(target.shape)}"
        )
    if not prediction.numel():
        raise ValueError(f"a signal of shape {list(prediction.shape)} is empty: at least 1 samples are needed")


def full_precision(function: AnyFunction) -> AnyFunction:
    """Decorates a function of `(prediction, target, …)`, which gets signals that were checked, in full precision.

    They are at least float32, and autocast is off: a sum over an audio file needs more than half precision.
    """

    @wraps(function)
    def called(prediction: Tensor, target: Tensor, *settings: Any, **named: Any) -> Any:
        return _in_full_precision(function, prediction, target, *settings, **named)

    return cast(AnyFunction, called)


def _in_full_precision(
    function: Callable[..., Any], prediction: Tensor, target: Tensor, *settings: Any, **named: Any
) -> Any:
    check_signals(prediction, target)
    prediction, target = _widened(prediction), _widened(target)
    if target.dtype != prediction.dtype:
        target = target.to(prediction.dtype)
    with _without_autocast(prediction):
        return function(prediction, target, *settings, **named)


def _copied(function: AnyFunction) -> AnyFunction:
    """A copy with a code object of its own."""
    code = cast(FunctionType, function)
    copy = FunctionType(code.__code__.replace(), code.__globals__, code.__name__, code.__defaults__, code.__closure__)
    return cast(AnyFunction, wraps(function)(copy))


def _widened(signal: Tensor) -> Tensor:
    if signal.dtype not in (torch.float16, torch.bfloat16):
        return signal
    return shared(("float",), (signal,), signal.float)  # once for all losses, so that they share its spectra


def _without_autocast(signal: Tensor) -> AbstractContextManager[Any]:
    kind = signal.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class Loss(Summand):
    """A loss of `(prediction, target)`, both `[B, C, N]`; lower is better.

    Computed in float32 or float64, also of half precision and under autocast. Losses can be added:
    `0.5 * RMSLoss() + 0.25 * SpectralLoss()` is a `WeightedSum`.

    Args:
        function: `function(prediction, target)` gives one value per item, `[B]`.
        reduction: "mean" or "sum" over the items, or "none" for one value per item.

    Raises:
        ValueError: an unknown reduction; at the call, shapes that differ or are not `[B, C, N]`.
        TypeError: at the call, integers or complex numbers.
    """

    def __init__(self, function: Function, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.function, self.reduction = function, reduction

    def __init_subclass__(cls, **named: Any):
        super().__init_subclass__(**named)
        # The compiler allows eight versions of one code, which must not be shared by all kinds of losses.
        if "forward" not in vars(cls):
            cls.forward = _copied(cls.forward)  # type: ignore[method-assign]

    def forward(self, prediction: Tensor, target: Tensor) -> Any:
        return self.reduced(_in_full_precision(self.function, prediction, target))

    def reduced(self, values: Any) -> Any:
        """Applies the reduction to the function's values."""
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def settings(self) -> Mapping[str, Any]:
        """The settings that differ from their defaults, for `repr`."""
        if not isinstance(self.function, partial):
            return {}
        defaults = {name: known.default for name, known in signature(self.function.func).parameters.items()}
        return {name: value for name, value in self.function.keywords.items() if value != defaults.get(name)}

    def extra_repr(self) -> str:
        parts = [f"{name}={value!r}" for name, value in {**self.settings(), "reduction": self.reduction}.items()]
        if type(self) is Loss:  # of a function without a class of its own
            function = self.function.func if isinstance(self.function, partial) else self.function
            parts.insert(0, getattr(function, "__name__", repr(function)))
        return ", ".join(parts)


class FunctionLoss(Loss):
    """Base of the losses that are a pure function and its settings; a subclass names the function::

        class MelLoss(FunctionLoss):
            compare = staticmethod(mel)     # MelLoss(sample_rate=24000, n_mels=40)(prediction, target)

    A subclass may have a typed `__init__` of its own that passes all settings on by name. `losses.create` builds the
    first subclass of the registered function.

    Args:
        *positional: settings of the function, in the order of its parameters after prediction and target.
        reduction: "mean" or "sum" over the items, or "none".
        **settings: settings of the function by name.

    Raises:
        TypeError: settings that the function does not take, or that it lacks.
    """

    compare: Callable[..., Tensor]
    classes: ClassVar[dict[Callable[..., Any], type[FunctionLoss]]] = {}

    def __init_subclass__(cls, **named: Any):
        super().__init_subclass__(**named)
        if "compare" in vars(cls):
            FunctionLoss.classes.setdefault(cls.compare, cls)

    def __init__(self, *positional: Any, reduction: str = "mean", **settings: Any):
        bound = bind(self.compare, type(self).__name__, *positional, **settings)
        super().__init__(partial(self.compare, **bound), reduction)


def bind(function: Callable[..., Any], loss: str, *positional: Any, **settings: Any) -> dict[str, Any]:
    """The settings of a function of `(prediction, target, …settings)` by name, checked.

    Raises:
        TypeError: settings that the function does not take, or that it lacks; `loss` names it in the message.
    """
    accepted = signature(function)
    known = list(accepted.parameters.values())[2:]
    free = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known)
    names = [parameter.name for parameter in known if parameter.kind is not Parameter.VAR_KEYWORD]
    if not free and (unknown := sorted(settings.keys() - set(names))):
        raise TypeError(f"{loss} takes no {', '.join(unknown)}; it takes {', '.join([*names, 'reduction'])}")
    try:
        accepted.bind(None, None, *positional, **settings)
    except TypeError as error:
        raise TypeError(f"{loss}: {error}") from None
    return {**dict(zip(names, positional, strict=False)), **settings}
