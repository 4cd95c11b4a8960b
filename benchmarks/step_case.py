"""Measures the training steps of one run; started by `benchmarks.bench_step`, once per case.

python step_case.py RESULT.json WARMUP STEPS COUNT_FLOPS train_worker.py [flags of train_worker.py]

Runs `train_worker.py` of the current folder, of whatever version, and looks at it only through PyTorch's global hooks:
a step lasts from the end of one optimiser step to the end of the next. After the steps it ends the run with SIGTERM, as
a user would. This file imports nothing of Encore, so that it measures the version in the current folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

TRANSFORMER, DECODERS = "ContinuationTransformer", ("SEANetDecoder", "StarterDecoder")  # told apart by class
SPECTRA = ("Transform", "Magnitude")  # autograd functions of losses/dsp/stft.py
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
Measures = dict[str, float]


def now() -> Measures:
    """Processor seconds and page faults of this process, and seconds by the clock once the GPU has caught up."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": usage.ru_utime,
        "kernel": usage.ru_stime,
        "faults": usage.ru_minflt,
        "wall": time.perf_counter(),
    }


def peak_memory() -> float:
    """Bytes: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.partition("VmHWM:")[2].split()[0])


def reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


class FFTBytes(TorchDispatchMode):
    """Counts what Fourier transforms read and write."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "aten::_fft" in function.name():
            self.total += args[0].nbytes + result.nbytes
        return result


def attention_flops(q: Any, k: Any, v: Any, *unused: Any, **ignored: Any) -> int:
    """Of PyTorch's attention on CPUs, which its counter does not know; without regard to masks."""
    return sdpa_flop_count(q, k, v)


def attention_backward_flops(gradient: Any, q: Any, k: Any, v: Any, *unused: Any, **ignored: Any) -> int:
    return 5 * sdpa_flop_count(q, k, v) // 2  # five matrix products where the forward pass has two


class StepMeter:
    """Attributes what is used between marks to the part of the step that runs there.

    Args:
        result: JSON file that is written after the last step.
        warmup: steps that are not measured.
        steps: measured steps; with `count_flops` one more, in which operations are counted.
        count_flops: whether to count them.
    """

    def __init__(self, result: Path, warmup: int, steps: int, count_flops: bool):
        self.result, self.warmup, self.steps, self.count_flops = result, warmup, steps, count_flops
        self.part, self.last, self.done = "rest", now(), 0
        self.current: dict[str, Measures] = {}
        self.finished: list[dict[str, Measures]] = []
        self.decoded: list[list[int]] = []  # shapes of the decoder's inputs while operations are counted
        self.counting = contextlib.ExitStack()
        self.count: Callable[[], Measures] = lambda: {}

    def listen(self) -> None:
        """Puts the marks."""
        register_module_forward_pre_hook(self._before)
        register_module_forward_hook(self._after)
        register_optimizer_step_pre_hook(lambda *unused: self.enter("optimiser"))
        register_optimizer_step_post_hook(lambda *unused: self.end_step())

    def enter(self, part: str) -> None:
        """What follows belongs to `part`."""
        measures = now() | self.count()
        used = self.current.setdefault(self.part, defaultdict(float))
        for name, value in measures.items():
            used[name] += value - self.last.get(name, 0.0)
        self.part, self.last = part, measures

    def _part_targets(self) -> None:
        """Makes the spectra of signals without a gradient, which are the targets', a part of their own."""
        spectra = sys.modules.get("losses.dsp.stft")
        for name in SPECTRA:
            function = getattr(spectra, name, None)  # None in other versions, a namespace once replaced
            if function is not None and not isinstance(function, SimpleNamespace):
                ways = {way: getattr(function, way) for way in ("apply", "compute") if hasattr(function, way)}
                timed = {way: partial(self._of_target, call) for way, call in ways.items()}
                setattr(spectra, name, SimpleNamespace(**timed))

    def _of_target(self, function: Callable[..., Tensor], first: Tensor, *arguments: Any) -> Tensor:
        before = self.part
        if before != "losses" or first.requires_grad:
            return function(first, *arguments)
        self.enter("targets' spectra")
        result = function(first, *arguments)
        self.enter(before)
        return result

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kind = type(module).__name__
        if kind == TRANSFORMER:
            self.enter("transformer forward")
        elif kind in DECODERS:
            self._part_targets()
            self.enter("decoder forward")
            if self.done == self.warmup + self.steps:
                self.decoded.append(list(inputs[0].shape))
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda gradient: self.enter("transformer backward"))

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        kind = type(module).__name__
        if kind == TRANSFORMER:
            self.enter("rest")
        elif kind in DECODERS:
            self.enter("losses")
            if output.requires_grad:
                output.register_hook(lambda gradient: self.enter("decoder backward"))

    def end_step(self) -> None:
        """An optimiser step is done."""
        self.enter("rest")
        self.done += 1
        if self.done > self.warmup:
            self.finished.append(self.current)
        self.current = {}
        if self.done == self.warmup:
            reset_peak_memory()
        if self.done == self.warmup + self.steps:
            self.peak = peak_memory()
            if self.count_flops:
                self._start_counting()
        if self.done == self.warmup + self.steps + self.count_flops:
            self._finish()
        self.last = now() | self.count()

    def _start_counting(self) -> None:
        mapping: dict[Any, Any] = {ATTENTION: attention_flops}
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        mapping[backward] = attention_backward_flops
        flops = self.counting.enter_context(FlopCounterMode(display=False, custom_mapping=mapping))
        moved = self.counting.enter_context(FFTBytes())
        self.count = lambda: {"flops": flops.get_total_flops(), "fft_bytes": moved.total}

    def _finish(self) -> None:
        self.counting.close()
        counted = self.finished.pop() if self.count_flops else {}  # slowed down by the counting
        content = {"steps": self.finished, "counted": counted, "decoded": self.decoded, "peak": self.peak}
        self.result.write_text(json.dumps(content))
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    result, warmup, steps, count_flops, script = sys.argv[1:6]
    StepMeter(Path(result), int(warmup), int(steps), bool(int(count_flops))).listen()
    sys.argv = [script, *sys.argv[6:]]
    sys.path[0] = os.getcwd()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
