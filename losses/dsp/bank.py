"""Results that several losses share within one step, such as spectra, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from losses.dsp.compilation import plain_only

Function = TypeVar("Function", bound=Callable[..., Any])

_bank: ContextVar[dict[tuple[Any, ...], tuple[Any, Any]] | None] = ContextVar("bank", default=None)


def shared_spectra() -> AbstractContextManager[None]:
    """A context within which the spectrum of a tensor is computed once for all losses that ask for it.

    The bank of spectra is emptied at the end of the outermost context, which should contain the losses of one step.
    Losses that use one transform in several ways enter it themselves. Where `torch.compile` or `torch.func` needs plain
    operations it does nothing; the compiler finds equal transforms by itself.

    A signal must not be changed within the context in a way that torch does not record, which is through its `.data` or
    through a NumPy array that shares its memory: the spectra would be those from before. Changes in place that torch
    records, such as `signal.mul_(0.5)`, are noticed.
    """
    return nullcontext() if plain_only() else _bank_of_spectra()


def sharing_spectra(function: Function) -> Function:
    """Decorates a function whose calls are each within `shared_spectra()`."""

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        with shared_spectra():
            return function(*arguments, **named)

    return cast(Function, called)


@contextmanager
def _bank_of_spectra() -> Iterator[None]:
    token = _bank.set({} if _bank.get() is None else _bank.get())
    try:
        yield
    finally:
        _bank.reset(token)


def shared_rows(signal: Tensor, index: Tensor) -> Tensor:
    """`signal[index]`: items of a signal `[B, C, N]`, which share its spectra within `shared_spectra()`.

    So each item is transformed once, however many others it is compared with.
    """
    rows = signal.index_select(0, index)
    bank = _open_bank()
    if bank is not None:
        bank[("rows", _identity(rows))] = (rows, (signal, index))
    return rows


def origin(signal: Tensor) -> tuple[Tensor, Tensor] | None:
    """The signal of which this one is rows, and their indices; None if it is not made by `shared_rows`."""
    bank = _open_bank()
    held = None if bank is None else bank.get(("rows", _identity(signal)))
    return None if held is None else held[1]


def shared(key: tuple[Any, ...], tensors: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
    """The result of `compute`, or the one in the bank under `key` and the tensors from which it follows."""
    bank = _open_bank()
    if bank is None:
        return compute()
    whole = (key, *(_identity(tensor) for tensor in tensors))
    if whole not in bank:
        bank[whole] = (tensors, compute())  # they are kept alive, so that no other tensor gets their ids
    value: Tensor = bank[whole][1]
    return value


def _open_bank() -> dict[tuple[Any, ...], tuple[Any, Any]] | None:
    return None if plain_only() else _bank.get()


def _identity(signal: Tensor) -> tuple[int, int, bool, bool]:
    """Identifies a tensor; it changes with in-place changes and with whether a gradient is recorded."""
    version = 0 if signal.is_inference() else signal._version
    return id(signal), version, signal.requires_grad and torch.is_grad_enabled(), torch.is_inference_mode_enabled()
