"""Counts the Fourier transforms that PyTorch really computes, forward and inverse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class CountedTransforms(TorchDispatchMode):
    """Within this context each real transform is counted on its way to PyTorch's kernels.

    Attributes:
        seen: how often each `(n_fft, frames)` was transformed, frames as bytes.
        rows: rows `[rows, frames, n_fft]` that were transformed, by FFT size.
        inverse: number of inverse transforms, by FFT size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, bytes]] = Counter()
        self.rows: Counter[int] = Counter()
        self.inverse: Counter[int] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = function
        name = function.name()
        if name == "aten::_fft_r2c":
            frames = args[0]
            self.seen[frames.shape[-1], frames.detach().numpy().tobytes()] += 1
            self.rows[frames.shape[-1]] += len(frames)
        elif name == "aten::_fft_c2r":
            self.inverse[args[3]] += 1
        return call(*args, **(kwargs or {}))

    def sizes(self) -> list[int]:
        """FFT sizes of all forward transforms since the last call."""
        sizes = sorted(n_fft for n_fft, _ in self.seen.elements())
        self.seen.clear()
        return sizes
