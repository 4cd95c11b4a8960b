"""`losses.compat.auraloss` against auraloss: names, arguments, outputs, values, gradients."""

from __future__ import annotations

import ast
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import auraloss
import auraloss.utils
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import losses
from losses.compat import auraloss as ours
from tests.signals import music, noise

RATE = 24000
SMALL: dict[str, Any] = {"fft_size": 256, "hop_size": 60, "win_length": 150}
SIZES: dict[str, Any] = {"fft_sizes": [256, 512], "hop_sizes": [64, 120], "win_lengths": [256, 300]}
MODULES = {"freq": ours.freq, "time": ours.time, "perceptual": ours.perceptual, "utils": ours.utils}
TIME_LOSSES = ("ESRLoss", "DCLoss", "LogCoshLoss", "SNRLoss", "SISDRLoss", "SDSDRLoss")


def pair(seed: int, shape: tuple[int, ...] = (2, 2, 2000)) -> tuple[Tensor, Tensor]:
    return music(shape, seed)


def values_in(output: Any) -> Iterator[Tensor]:
    """The numbers of an output, which may be nested in tuples and lists."""
    if isinstance(output, (tuple, list)):
        for part in output:
            yield from values_in(part)
    else:
        yield torch.as_tensor(output, dtype=torch.float64).detach()


def output_and_gradients(loss: Callable[..., Any], *signals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """All numbers of the output, and the gradients of a sum of the first with weights of different sizes."""
    parameters = [signal.clone().requires_grad_() for signal in signals]
    output = loss(*parameters)
    first = output[0] if isinstance(output, tuple) else output
    weights = torch.linspace(0.5, 1.5, first.numel()).view(first.shape)
    return list(values_in(output)), list(torch.autograd.grad((first * weights).sum(), parameters))


def assert_same(mine: Callable[..., Any], theirs: Callable[..., Any], *signals: Tensor, rel: float = 1e-6) -> None:
    """Equal outputs and gradients to both signals: `rel` of the largest number, and of the gradient's norm."""
    (got, slopes), (expected, references) = (output_and_gradients(loss, *signals) for loss in (mine, theirs))
    assert [value.shape for value in got] == [value.shape for value in expected]
    for value, reference in zip(got, expected, strict=True):
        assert (value - reference).abs().max() <= rel * reference.abs().max()
    for slope, reference in zip(slopes, references, strict=True):
        assert (slope - reference).norm() <= 3 * rel * reference.norm()


def in_float64(loss: nn.Module, window: str = "hann_window") -> nn.Module:
    """A loss of auraloss that takes float64: its window is not a buffer."""
    loss.double()
    for module in loss.modules():
        if isinstance(module, auraloss.freq.STFTLoss):
            module.window = getattr(torch, window)(module.win_length, dtype=torch.float64)
    return loss


def classes_of(module: ModuleType) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("auraloss")
    }


def arguments(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the arguments that may be given by position."""
    if getattr(function, "__init__", None) is nn.Module.__init__:
        return []
    known = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    return [(p.name, list(p.default) if isinstance(p.default, tuple) else p.default) for p in known]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_has_its_arguments_in_their_order_with_their_defaults(module: str) -> None:
    for name, theirs in classes_of(getattr(auraloss, module)).items():
        mine = getattr(MODULES[module], name)
        assert arguments(mine) == arguments(theirs), name
        if hasattr(theirs, "forward"):
            assert arguments(mine.forward) == arguments(theirs.forward), name


@pytest.mark.parametrize("name", TIME_LOSSES)
def test_time_losses_are_equal(name: str) -> None:
    prediction, target = pair(0)
    for reduction in ("mean", "sum", "none"):
        for options in ({}, {"eps": 1e-3}):
            mine, theirs = (getattr(module.time, name)(reduction=reduction, **options) for module in (ours, auraloss))
            assert_same(mine, theirs, prediction, target, rel=1e-5)
            assert_same(mine, theirs, prediction.double(), target.double())
    # Ratios far above 1, signals of −60 dBFS, signals without channels, and one target for several predictions.
    mine, theirs = (getattr(module.time, name)() for module in (ours, auraloss))
    prediction, target = prediction.double(), target.double()
    for signals in ((50 * prediction, target), (1e-2 * prediction, 1e-2 * target), (prediction[0, 0], target[0, 0])):
        assert_same(mine, theirs, *signals, rel=1e-5)
    assert_same(mine, theirs, prediction, target[:1, :1])


def test_log_cosh_and_the_decibels_have_their_other_options() -> None:
    prediction, target = (signal.double() + 0.1 for signal in pair(1))
    for options in ({"a": 3.0}, {"a": 0.2, "eps": 0.5, "reduction": "none"}):
        assert_same(ours.time.LogCoshLoss(**options), auraloss.time.LogCoshLoss(**options), prediction, target)
    for name in ("SNRLoss", "SISDRLoss", "SDSDRLoss"):
        mine, theirs = (getattr(module.time, name)(False) for module in (ours, auraloss))
        assert_same(mine, theirs, prediction, target)


def test_log_cosh_is_finite_where_a_hyperbolic_cosine_is_not() -> None:
    silence, loud = torch.zeros(1, 1, 8), torch.full((1, 1, 8), 100.0)
    assert ours.time.LogCoshLoss()(loud, silence).item() == pytest.approx(100 - np.log(2))
    assert auraloss.time.LogCoshLoss()(loud, silence).item() == float("inf")
    assert ours.time.LogCoshLoss()(loud, loud).item() == 0


STFT_OPTIONS: list[dict[str, Any]] = [
    {},
    {"w_lin_mag": 0.7, "w_sc": 0.3, "w_log_mag": 2.0},
    {"mag_distance": "L2", "w_lin_mag": 1.0, "w_sc": 0.0},
    {"w_log_mag": 0.0, "w_phs": 0.1},
    {"window": "blackman_window", "eps": 1e-5},
    {"scale": "mel", "sample_rate": RATE, "n_bins": 20},
    {"perceptual_weighting": True, "sample_rate": 44100},
    {"fft_size": 255, "win_length": 255, "hop_size": 100, "w_phs": 0.1},
]


@pytest.mark.parametrize("options", STFT_OPTIONS, ids=str)
def test_stft_losses_are_equal(options: dict[str, Any]) -> None:
    prediction, target = (signal.double() for signal in pair(2))
    settings = SMALL | options
    for reduction, output in (("mean", "full"), ("mean", "loss"), ("sum", "full"), ("none", "full")):
        mine, theirs = (
            module.freq.STFTLoss(**settings, reduction=reduction, output=output) for module in (ours, auraloss)
        )
        assert_same(mine, in_float64(theirs, settings.get("window", "hann_window")), prediction, target)


def test_stft_losses_are_equal_in_float32_and_at_any_level() -> None:
    prediction, target = pair(3)
    for levels in ((1.0, 1.0), (1e-5, 1e-4), (1.0, 0.0)):
        signals = prediction * levels[0], target * levels[1]
        value, reference = (module.freq.MultiResolutionSTFTLoss()(*signals) for module in (ours, auraloss))
        assert value.item() == pytest.approx(reference.item(), rel=1e-4)


@pytest.mark.parametrize("output", ["loss", "full"])
def test_losses_of_several_resolutions_are_equal(output: str) -> None:
    prediction, target = (signal.double() for signal in pair(4))
    options: dict[str, Any] = {"output": output, "w_lin_mag": 0.5}
    weighted = {"perceptual_weighting": True, "sample_rate": RATE, "scale": "mel", "n_bins": 16}
    for extra in ({}, weighted):
        mine, theirs = (module.freq.MultiResolutionSTFTLoss(**SIZES, **options, **extra) for module in (ours, auraloss))
        assert_same(mine, in_float64(theirs), prediction, target)
    mine, theirs = (module.freq.MelSTFTLoss(RATE, 512, 128, 300, n_mels=24, **options) for module in (ours, auraloss))
    assert_same(mine, in_float64(theirs), prediction, target)
    mine, theirs = (
        module.freq.SumAndDifferenceSTFTLoss(*SIZES.values(), w_sum=0.3, output=output) for module in (ours, auraloss)
    )
    assert_same(mine, in_float64(theirs), prediction, target)


def test_random_resolutions_are_those_that_auraloss_draws() -> None:
    prediction, target = pair(5)
    values = []
    for module in (ours, auraloss):
        np.random.seed(3)
        loss = module.freq.RandomResolutionSTFTLoss(max_fft_size=1024, randomize_rate=2)
        values.append([loss(prediction, target).item() for _ in range(4)])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0][0] == values[0][1] != values[0][2]
    with pytest.raises(ValueError, match="must be longer than max_fft_size, 2048"):
        ours.freq.RandomResolutionSTFTLoss(max_fft_size=2048)(prediction, target)


def test_magnitude_losses_and_spectra_are_equal() -> None:
    signals = pair(6)
    mine, theirs = (module.freq.STFTLoss(**SMALL) for module in (ours, auraloss))
    spectra = [loss.stft(signals[0].flatten(0, 1)) for loss in (mine, theirs)]
    assert torch.allclose(spectra[0][0], spectra[1][0], atol=1e-6) and spectra[0][1].shape == spectra[1][1].shape
    magnitudes = [theirs.stft(signal.flatten(0, 1))[0] for signal in signals]
    for options in ({}, {"log": False, "distance": "L2", "reduction": "sum"}, {"reduction": "none"}):
        assert_same(*(m.freq.STFTMagnitudeLoss(**options) for m in (ours, auraloss)), *magnitudes, rel=1e-5)
    assert_same(*(module.freq.SpectralConvergenceLoss() for module in (ours, auraloss)), *magnitudes, rel=1e-5)


def test_filters_and_sum_and_difference_are_equal() -> None:
    prediction, target = noise((2, 1, 400), 7)
    for filter_type in ("hp", "fd", "aw"):
        mine, theirs = (module.perceptual.FIRFilter(filter_type, 0.9, fs=RATE) for module in (ours, auraloss))
        for filtered, reference in zip(mine(prediction, target), theirs(prediction, target), strict=True):
            assert filtered.shape == reference.shape and torch.allclose(filtered, reference, atol=1e-6)
    stereo = noise((2, 2, 50), 8)[0]
    for module in (ours, auraloss):
        split = module.perceptual.SumAndDifference()
        assert torch.equal(split(stereo)[0].squeeze(1), split.sum(stereo))
        assert torch.equal(split.diff(stereo), stereo[:, 0] - stereo[:, 1])


def test_the_state_of_a_model_with_a_loss_of_auraloss_can_be_loaded() -> None:
    options = {"scale": "mel", "sample_rate": RATE, "n_bins": 16, "perceptual_weighting": True}
    mine, theirs = (module.freq.MultiResolutionSTFTLoss(**SIZES, **options) for module in (ours, auraloss))
    state = theirs.state_dict()
    for name, value in mine.state_dict().items():
        assert torch.allclose(value, state[name], atol=1e-6)
    mine.load_state_dict(state)


def test_what_fails_in_auraloss_works() -> None:
    prediction, target = pair(9)
    chroma = ours.freq.ChromaSTFTLoss(RATE, output="full")(prediction, target)
    assert all(torch.as_tensor(value).isfinite() for value in chroma)
    invariant = ours.freq.STFTLoss(**SMALL, scale_invariance=True, w_log_mag=0.0, w_lin_mag=1.0, reduction="none")
    single = auraloss.freq.STFTLoss(**SMALL, scale_invariance=True, w_log_mag=0.0, w_lin_mag=1.0)
    channel = prediction[:1, :1], target[:1, :1]
    assert invariant(*channel).mean().item() == pytest.approx(single(*channel).item(), rel=1e-4)
    assert invariant(prediction, target).shape == (4, 129, 34)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mel filters without bins
        assert ours.freq.MelSTFTLoss(RATE, 256, 64, 256)(prediction, target).isfinite()
    assert ours.freq.STFTLoss()(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="need the sample_rate"):
        ours.freq.STFTLoss(scale="mel", n_bins=20)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ffts'"):
        ours.freq.MultiResolutionSTFTLoss(ffts=[3])


def test_the_examples_of_its_readme_run() -> None:
    prediction, target = torch.rand(2, 1, 9000), torch.rand(2, 1, 9000)
    assert ours.freq.MultiResolutionSTFTLoss()(prediction, target).item() > 0
    sizes: dict[str, Any] = {
        "fft_sizes": [1024, 2048, 8192],
        "hop_sizes": [256, 512, 2048],
        "win_lengths": [1024, 2048, 8192],
    }
    mel: dict[str, Any] = {"scale": "mel", "n_bins": 128, "sample_rate": 44100, "perceptual_weighting": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mel filters without bins
        assert ours.freq.MultiResolutionSTFTLoss(**sizes, **mel)(prediction, target).item() > 0
        assert ours.freq.MelSTFTLoss(44100, device="cpu")(prediction, target).item() > 0
        stereo = ours.freq.SumAndDifferenceSTFTLoss(**sizes, **mel)
    assert ours.freq.STFTLoss(w_log_mag=1.0, w_lin_mag=1.0, w_sc=0.0)(prediction, target).item() > 0
    assert stereo(prediction.expand(-1, 2, -1), target.expand(-1, 2, -1)).item() > 0


def imported_by(path: Path) -> Iterator[str]:
    """The modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_nothing_of_other_packages_is_imported_and_losses_alone_do_not_import_compat() -> None:
    allowed = {"__future__", "losses", "torch", "numpy", "encodec", *sys.stdlib_module_names}
    for path in Path(losses.__file__).parent.rglob("*.py"):
        imported = set(imported_by(path))
        if "compat" in path.parts:
            assert {name.split(".")[0] for name in imported} <= allowed, path
        else:
            assert not [name for name in imported if name.startswith("losses.compat")], path
