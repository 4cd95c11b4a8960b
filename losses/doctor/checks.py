"""The checks of the loss doctor: values on noise, music, silence and clipping, shortest input, time and memory."""

from __future__ import annotations

import ctypes
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from losses.doctor.cases import NEEDS_ENCODEC, Material, noise
from losses.registry import REGISTRY, Entry
from losses.weighted_sum import WeightedSum

TOLERANCE = 1e-6  # of the value at identity
REPEATS, PATIENCE = 5, 1.0  # a step is timed so many times, or until so many seconds have passed
SAFETY = ("silence against silence", "silence against music", "clipping")
# The losses of the basic training recipe, with their weights.
GUIDE = {"RMS": ("rms", 0.5), "STFT": ("spectral", 0.25), "Mel": ("mel", 0.25)}
GUIDE_SAMPLES = 12000

Step = Callable[[Tensor, Tensor], Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Report:
    """The findings on one loss.

    Unknown numbers are NaN, `at_minimum` is None if the loss has no minimum, and any of `problems` fails the loss.
    """

    name: str
    note: str = ""
    values: dict[str, float] = field(default_factory=dict)
    identity: float = math.nan
    at_minimum: bool | None = None
    safe: list[bool] = field(default_factory=list)
    shortest: int | None = None
    channels: str = ""
    milliseconds: float = math.nan
    megabytes: float = math.nan
    gradient: float = math.nan
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    step: Callable[[], None] | None = None

    def trial(self, what: str, loss: Step, prediction: Tensor, target: Tensor) -> tuple[float, Tensor] | None:
        """The value and the norms of the items' gradients; None, with a problem noted, unless all are finite."""
        try:
            value, gradient = value_and_gradient(loss, prediction, target)
        except Exception as error:  # any error of the loss is a finding
            self.problems.append(f"{what}: {type(error).__name__}: {_line(error)}")
            return None
        norms = gradient.flatten(1).norm(dim=1) * len(gradient)  # of an item's own loss
        if math.isfinite(value) and norms.isfinite().all():
            return value, norms
        self.problems.append(f"{what}: the value is {value:.3g}, the gradient's norm {norms.mean().item():.3g}")
        return None


def value_and_gradient(loss: Step, prediction: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """The mean over items and its gradient at the prediction."""
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target).mean()
    (gradient,) = torch.autograd.grad(value, prediction)
    return value.item(), gradient


def shortest(loss: Step, channels: int, device: torch.device) -> int:
    """The shortest input that the loss accepts, in samples: parsed from its own error, and verified.

    Raises:
        AssertionError: the error names no minimum, or a larger one than is needed.
    """
    least = 1
    while (refusal := _refusal(loss, channels, least, device)) is not None:
        found = re.search(r"at least (\d+)\s+samples", refusal)
        if found is None or int(found[1]) <= least:
            raise AssertionError(f"{least} samples are too few, but the error names no larger minimum: {refusal}")
        least = int(found[1])
    if least > 1 and _refusal(loss, channels, least - 1, device) is None:
        raise AssertionError(f"fewer than the {least} samples that its error asks for are enough")
    return least


def examine(name: str, entry: Entry, material: Material, device: torch.device) -> Report:
    """Runs all checks but that of the memory."""
    report = Report(name)
    if entry.channels and entry.channels > material.shape[1]:
        report.note = "needs stereo"
        return report
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loss = entry.build(material.sample_rate).to(device)
        except ImportError as error:
            package = entry.package or ("encodec" if name in NEEDS_ENCODEC else None)
            report.note = f"needs {package}" if package else "✗"
            (report.warnings if package else report.problems).append(_line(error))
            return report
        if name in NEEDS_ENCODEC:
            report.note = "(random network)"
        _examine(report, loss, entry, material.with_channels(entry.channels or material.channels), device)
    # Deprecations inside torch (of weight norm) do not concern the user.
    texts = [_line(w.message) for w in caught if not issubclass(w.category, FutureWarning | DeprecationWarning)]
    report.warnings += dict.fromkeys(texts)
    return report


def _examine(report: Report, loss: nn.Module, entry: Entry, pairs: Pairs, device: torch.device) -> None:
    for what, (prediction, target) in pairs.items():
        found = report.trial(what, loss, prediction, target)
        if found:
            report.values[what] = found[0]
            report.gradient = found[1].mean().item() if math.isnan(report.gradient) else report.gradient
            flat = (found[1] == 0) & (prediction != target).flatten(1).any(1)
            if flat.any():
                items = f"{int(flat.sum())} of {len(flat)} items"
                report.warnings.append(f"{what}: the gradient of {items} is 0: training would learn nothing there")
    prediction, target = next(iter(pairs.values()))
    _identity(report, loss, entry, target)

    silence, (_, tune) = torch.zeros_like(target), list(pairs.values())[-1]
    clipped = (prediction * (4 / prediction.abs().max().clamp_min(1e-9))).clamp(-1, 1)
    cases = (silence, silence), (silence, tune), (clipped, target)
    report.safe = [report.trial(what, loss, *case) is not None for what, case in zip(SAFETY, cases, strict=True)]

    try:
        report.shortest = shortest(loss, target.shape[1], device)
    except Exception as error:
        report.problems.append(f"shortest input: {_line(error)}")
    report.channels = _channels(report, loss, entry, target.shape[-1], device)

    if not report.problems:
        report.step = lambda: _step(loss, prediction, target)
        report.milliseconds = 1000 * _seconds(report.step)


def _identity(report: Report, loss: Step, entry: Entry, target: Tensor) -> None:
    found = report.trial("identity", loss, target, target)
    if found is None:
        report.at_minimum = False
        return
    report.identity = found[0]
    if entry.minimum is not None:
        report.at_minimum = abs(found[0] - entry.minimum) <= TOLERANCE
        wanted = f"{entry.minimum:g}"
        for what, value in report.values.items():
            if value < entry.minimum - TOLERANCE:
                report.problems.append(f"{what}: the value is {value:.3g}, below the minimum of {wanted}")
    elif report.name == "gan":  # a discriminator may take even the target for fake
        return
    else:  # a ratio in dB has no lower bound
        report.at_minimum = found[0] <= min(report.values.values(), default=math.inf)
        wanted = "lower than for other predictions"
    if not report.at_minimum:
        report.problems.append(f"identity: the value is {found[0]:.3g}, but should be {wanted}")


def _channels(report: Report, loss: Step, entry: Entry, samples: int, device: torch.device) -> str:
    taken = []
    for channels, name in ((1, "mono"), (2, "stereo")):
        refusal = _refusal(loss, channels, samples, device)
        if refusal is None:
            taken.append(str(channels))
        elif entry.channels in (None, channels):
            report.problems.append(f"{name}: {refusal}")
    return ",".join(taken)


def _refusal(loss: Step, channels: int, samples: int, device: torch.device) -> str | None:
    """The message of the ValueError raised for so short or so wide a signal; None if the loss has a finite value."""
    pair = [noise((1, channels, samples), seed).to(device) for seed in (4, 5)]
    try:
        value = loss(*pair).mean().item()
    except ValueError as error:
        return _line(error)
    except Exception as error:
        return f"{type(error).__name__} instead of a ValueError: {_line(error)}"
    return None if math.isfinite(value) else f"the value of {samples} sample(s) is {value}"


def _step(loss: Step, prediction: Tensor, target: Tensor) -> None:
    value_and_gradient(loss, prediction, target)  # .item() waits for a GPU
    if prediction.is_cuda:
        torch.cuda.synchronize()


def _seconds(step: Callable[[], None]) -> float:
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < PATIENCE:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def peak_memory(step: Callable[[], None], device: torch.device) -> float:
    """Peak memory of a step beyond what was in use before, in bytes; NaN where the system does not tell.

    On a GPU the memory that torch allocates, else the growth of the process's resident set (Linux only).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        library = ctypes.CDLL(None)
        library.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: blocks above it go back to the system at once
        library.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except (OSError, AttributeError, TypeError):
        return math.nan
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def guide(sample_rate: int, device: torch.device) -> dict[str, str | None]:
    """Checks the basic training recipe: a line for each check, with the problem, or None if it passes."""
    prediction, target = (noise((2, 1, GUIDE_SAMPLES), seed).to(device) for seed in (6, 7))

    def loss(name: str) -> nn.Module:
        return REGISTRY[name].build(sample_rate).to(device)

    def combined() -> WeightedSum:
        return WeightedSum({name: (loss(name), weight) for name, weight in GUIDE.values()})

    checks: dict[str, Callable[[], str | None]] = {
        f"{title} loss: works": partial(lambda name: _falls(loss(name), prediction, target), name)
        for title, (name, _) in GUIDE.items()
    }
    checks["Combined loss: works"] = lambda: _falls(combined(), prediction, target)
    checks["Gradients: flow correctly"] = lambda: _flows(combined(), prediction, target)
    found: dict[str, str | None] = {}
    for text, check in checks.items():
        try:
            found[text] = check()
        except Exception as error:
            found[text] = f"{type(error).__name__}: {_line(error)}"
    return found


def _falls(loss: Step, prediction: Tensor, target: Tensor) -> str | None:
    """Checks that the loss falls to 0 as the prediction becomes the target; returns the problem, or None."""
    values = [loss(target + share * (prediction - target), target).mean().item() for share in (1, 0.1, 0)]
    if values[0] > values[1] > values[2] and math.isfinite(values[0]) and abs(values[2]) <= TOLERANCE:
        return None
    return "on noise, at a tenth of its distance and at the target, the value is {:.3g}, {:.3g} and {:.3g}".format(
        *values
    )


def _flows(loss: WeightedSum, prediction: Tensor, target: Tensor) -> str | None:
    """Checks that each term has a gradient at every item and that a small step against their sum lowers the loss.

    Returns the problem, or None.
    """
    for name, term in loss.losses.items():
        norms = value_and_gradient(term, prediction, target)[1].flatten(1).norm(dim=1)
        if not (norms.isfinite().all() and (norms > 0).all()):
            return f"the gradient of {name} has norms {[float(f'{norm:.3g}') for norm in norms]}"
    value, gradient = value_and_gradient(loss, prediction, target)
    after = loss(prediction - 0.01 * prediction.norm() / gradient.norm() * gradient, target).mean().item()
    return None if after < value else f"a step against the gradient takes the loss from {value:.4g} to {after:.4g}"


def _line(error: object) -> str:
    return " ".join(str(error).split())
