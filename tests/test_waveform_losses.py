"""Time-domain losses and filters: hand-computed values, auraloss, torchmetrics, safety on silence."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import auraloss
import pytest
import torch
from auraloss.perceptual import FIRFilter as AuralossFIRFilter
from auraloss.perceptual import SumAndDifference as AuralossSumAndDifference
from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

import losses
from losses import base, waveform
from losses.dsp import filters
from tests.signals import seeded

SHAPES = [(1, 1, 333), (3, 2, 4000), (2, 5, 12000)]
RATIOS = (waveform.snr, waveform.si_sdr, waveform.sd_sdr)

AURALOSS: list[tuple[base.Function, nn.Module]] = [
    (waveform.esr, auraloss.time.ESRLoss()),
    (waveform.dc, auraloss.time.DCLoss()),
    (waveform.log_cosh, auraloss.time.LogCoshLoss()),
    (waveform.snr, auraloss.time.SNRLoss()),
    (waveform.si_sdr, auraloss.time.SISDRLoss()),
    (waveform.sd_sdr, auraloss.time.SDSDRLoss()),
]
CLASSES: dict[str, type[base.FunctionLoss]] = {
    "rms": losses.RMSLoss,
    "waveform_l1": losses.WaveformL1Loss,
    "waveform_mse": losses.WaveformMSELoss,
    "esr": losses.ESRLoss,
    "dc": losses.DCLoss,
    "log_cosh": losses.LogCoshLoss,
    "snr": losses.SNRLoss,
    "si_sdr": losses.SISDRLoss,
    "sd_sdr": losses.SDSDRLoss,
}
NAMES = list(CLASSES)


def signals(seed: int = 0, shape: tuple[int, ...] = (3, 2, 4000), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A prediction and its target: noise with an offset, alike enough for ratios around 0 dB."""
    generator = torch.Generator().manual_seed(seeded(seed))
    target, noise = (0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.01 for _ in range(2))
    return [(0.7 * target + 0.5 * noise).to(dtype), target.to(dtype)]


def value_and_gradient(loss: Callable[..., Tensor], prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target).mean()
    value.backward()
    assert prediction.grad is not None
    return value.detach(), prediction.grad


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], prediction: Tensor, target: Tensor) -> None:
    (value, gradient), (expected, slope) = (value_and_gradient(loss, prediction, target) for loss in (ours, theirs))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - slope).norm() <= 1e-4 * slope.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "theirs"), AURALOSS)
def test_equals_auraloss(ours: base.Function, theirs: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    prediction, target = signals(1, shape, dtype)
    assert_same(ours, theirs, prediction, target)
    if ours is not waveform.log_cosh:  # where auraloss's eps and rounding outweigh small errors
        assert_same(ours, theirs, 0.01 * prediction, 0.01 * target)  # −54 dBFS


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_ratios_are_minus_those_of_auraloss_and_torchmetrics(shape: tuple[int, ...], zero_mean: bool) -> None:
    prediction, target = signals(2, shape)
    metrics = {waveform.snr: signal_noise_ratio, waveform.si_sdr: scale_invariant_signal_distortion_ratio}
    references = (auraloss.time.SNRLoss, auraloss.time.SISDRLoss, auraloss.time.SDSDRLoss)
    for ours, reference in zip(RATIOS, references, strict=True):

        def loss(prediction: Tensor, target: Tensor, ours=ours) -> Tensor:
            return ours(prediction, target, zero_mean=zero_mean)

        assert_same(loss, reference(zero_mean=zero_mean), prediction, target)
        if ours in metrics:
            metric = metrics[ours]
            assert_same(loss, lambda p, t, metric=metric: -metric(p, t, zero_mean=zero_mean), prediction, target)


@pytest.mark.parametrize(("ours", "theirs"), AURALOSS[:2])
def test_ratios_of_energies_are_the_published_ones_however_large(ours: base.Function, theirs: nn.Module) -> None:
    prediction, target = signals(17)
    loud, quiet = 30 * prediction + 1, torch.cat([target[:1], 1e-3 * target[1:]])
    for pair in ((loud, target), (prediction, quiet)):
        assert ours(*pair).max() > 20
        assert_same(ours, theirs, *pair)
        assert_same(losses.ESRLoss() if ours is waveform.esr else losses.DCLoss(), theirs, *pair)
        assert (partial(ours, **{"bounded": True})(*pair) < ours(*pair)).any()


def test_rms_of_ten_minutes_is_exact_in_float32() -> None:
    prediction, target = (signal.repeat(1, 1, 600) for signal in signals(18, (1, 1, 24077)))
    expected = (prediction.double() - target.double()).square().mean().sqrt().item()
    assert waveform.rms(prediction, target).item() == pytest.approx(expected, rel=1e-6)
    values, gradient = value_and_gradient(waveform.rms, prediction[..., :500_000], target[..., :500_000])
    error = (prediction - target)[..., :500_000]
    assert torch.allclose(gradient, error / (500_000 * values), rtol=1e-5)


def test_log_cosh_equals_auraloss_for_other_a() -> None:
    for a in (0.5, 5.0):
        prediction, target = signals(3, dtype=torch.float64)
        reference = auraloss.time.LogCoshLoss(a=a, eps=0)  # its eps would outweigh float64's digits
        assert_same(lambda p, t, a=a: waveform.log_cosh(p, t, a), reference, prediction, target)


def test_values_by_hand() -> None:
    target = torch.tensor([[[3.0, -0.5, 2.0, 7.0]]]) / 8
    prediction = torch.tensor([[[2.5, 0.0, 2.0, 8.0]]]) / 8
    energy, error = 62.25 / 64, 1.5 / 64
    product = (7.5 + 4 + 56) / 64
    rest = (6.25 + 4 + 64) / 64 - product**2 / energy
    expected = {
        waveform.rms: (error / 4) ** 0.5,
        waveform.waveform_l1: 2 / 8 / 4,
        waveform.waveform_mse: error / 4,
        waveform.esr: error / energy,
        waveform.dc: (1 / 32) ** 2 / (energy / 4),
        waveform.log_cosh: (2 * math.log(math.cosh(1 / 16)) + math.log(math.cosh(1 / 8))) / 4,
    }
    for function, value in expected.items():
        assert function(prediction, target).item() == pytest.approx(value, rel=1e-5)
    ratios = (energy / error, product**2 / energy / rest, product**2 / energy / error)
    for ratio_loss, ratio in zip(RATIOS, ratios, strict=True):
        value = ratio_loss(prediction, target, zero_mean=False).item()
        assert value == pytest.approx(-10 * math.log10(ratio), rel=1e-5)


def test_levels_that_everybody_knows() -> None:
    target = signals(4)[1]
    silence = torch.zeros_like(target)
    assert torch.allclose(waveform.esr(silence, target), torch.ones(3))
    assert torch.allclose(waveform.snr(0.9 * target, target), torch.tensor(-20.0))  # a tenth is missing
    assert torch.allclose(waveform.snr(silence, target), torch.zeros(3), atol=1e-5)
    assert (waveform.si_sdr(0.9 * target, target) < -60).all()  # the level is no distortion
    assert torch.allclose(waveform.sd_sdr(0.9 * target, target), torch.tensor(-20 * math.log10(9)), rtol=1e-4)
    offset = waveform.dc(target + 0.1, target)
    assert torch.allclose(offset, (0.01 / target.square().mean(-1)).mean(1), rtol=1e-4)
    ones = torch.ones(1, 1, 10)
    assert waveform.log_cosh(200 * ones, 0 * ones).item() == pytest.approx(200 - math.log(2))
    # The square of a small error, to float32's digits.
    assert waveform.log_cosh(1e-3 * ones, 0 * ones).item() == pytest.approx(math.log(math.cosh(1e-3)), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_module_and_entry_are_the_function(self, name: str) -> None:
        prediction, target = signals(5)
        function = getattr(waveform, name)
        values = function(prediction, target)
        assert values.shape == (3,)
        entry = losses.REGISTRY[name]
        assert torch.equal(entry.build(24000, reduction="none")(prediction, target), values)
        assert torch.equal(CLASSES[name](reduction="none")(prediction, target), values)
        assert torch.equal(CLASSES[name]()(prediction, target), values.mean())
        ratio = function in RATIOS
        assert (entry.minimum, entry.metric) == ((None, f"{name}_db") if ratio else (0.0, None))

    def test_items_and_channels_do_not_touch(self, name: str) -> None:
        prediction, target = signals(6)
        function = getattr(waveform, name)
        values = function(prediction, target)
        for item in range(3):
            alone = function(prediction[item : item + 1], target[item : item + 1])
            assert torch.allclose(values[item], alone[0], rtol=1e-5)
        if name != "rms":  # the mean over the channels
            left, right = (function(prediction[:, c : c + 1], target[:, c : c + 1]) for c in range(2))
            assert torch.allclose(values, (left + right) / 2, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_identity_is_the_minimum_with_a_gradient_of_zero(self, name: str, dtype: torch.dtype) -> None:
        function = getattr(waveform, name)
        for target in (signals(7, dtype=dtype)[1], torch.zeros(2, 1, 500, dtype=dtype)):
            value, gradient = value_and_gradient(function, target, target)
            assert value.item() == pytest.approx(0, abs=1e-6) or (function in RATIOS and value < -60)
            assert gradient.isfinite().all()
            if name not in ("si_sdr", "sd_sdr"):  # a residue of rounding; and louder is better, by eps
                assert gradient.abs().max() == 0
            assert (function(target + signals(8, target.shape, dtype)[0], target) > value).all()

    def test_gradient_is_that_of_finite_differences(self, name: str) -> None:
        prediction, target = signals(9, (2, 2, 20), torch.float64)
        function = getattr(waveform, name)
        assert torch.autograd.gradcheck(lambda p: function(p, target), (prediction.requires_grad_(),))

    @pytest.mark.parametrize("level", [1e-6, 1e-3, 0.2, 4])
    def test_bounded_against_silence_and_falling_with_the_prediction(self, name: str, level: float) -> None:
        function = partial(getattr(waveform, name), **losses.REGISTRY[name].training)
        prediction = level * signals(10, (2, 1, 48000))[0]
        silence = torch.zeros_like(prediction)
        for guess, target in ((prediction, silence), (silence, prediction), (silence + level, silence)):
            value, gradient = value_and_gradient(function, guess, target)
            assert abs(value) < 500
            assert gradient.isfinite().all()
        assert (function(prediction, silence) >= function(prediction / 2, silence)).all()
        assert (function(prediction / 2, silence) >= function(silence, silence)).all()

    def test_hard_signals(self, name: str) -> None:
        function = partial(getattr(waveform, name), **losses.REGISTRY[name].training)
        noise = signals(11)[1]
        impulse = torch.zeros_like(noise)
        impulse[..., 2000] = 1
        for guess in (impulse, (1000 * noise).clamp(-1, 1), torch.ones_like(noise)):
            for pair in ((guess, noise), (noise, guess), (guess, guess)):
                value, gradient = value_and_gradient(function, *pair)
                assert abs(value) < 500
                assert gradient.isfinite().all()

    def test_input_need_not_be_contiguous_nor_float32(self, name: str) -> None:
        function = getattr(waveform, name)
        prediction, target = (signal.transpose(1, 2) for signal in signals(12, (2, 600, 2)))
        value = function(prediction, target)
        assert torch.allclose(value, function(prediction.contiguous(), target.contiguous()), rtol=1e-5)
        half = CLASSES[name](reduction="none")(prediction.bfloat16(), target.bfloat16())
        assert half.dtype == torch.float32 and torch.allclose(half, value, rtol=2e-2, atol=2e-2)

    def test_shapes_that_do_not_fit_are_named(self, name: str) -> None:
        function = getattr(waveform, name)
        with pytest.raises(ValueError, match=r"\[1, 1, 50\] and \[1, 1, 49\]"):
            function(torch.zeros(1, 1, 50), torch.zeros(1, 1, 49))
        with pytest.raises(ValueError, match=r"\[1, 50\]"):
            function(torch.zeros(1, 50), torch.zeros(1, 50))


def test_ratios_of_energies_bend_without_a_jump() -> None:
    target = torch.full((1, 1, 100), 0.1, dtype=torch.float64)
    for function in (partial(waveform.esr, bounded=True), partial(waveform.dc, bounded=True)):
        below, above = (target + 0.1 * (10 * factor) ** 0.5 for factor in (1 - 1e-6, 1 + 1e-6))
        (low, slope_below), (high, slope_above) = (value_and_gradient(function, p, target) for p in (below, above))
        assert low.item() == pytest.approx(10, rel=1e-5) and high.item() == pytest.approx(10, rel=1e-5)
        assert torch.allclose(slope_below, slope_above, rtol=1e-5)
        far = function(target + 10, target).item()  # a ratio of 10,000
        assert far == pytest.approx(10 * (1 + math.log(1000)), rel=1e-5)


def test_log_cosh_needs_a_positive_a() -> None:
    with pytest.raises(ValueError, match="a above 0, got 0"):
        waveform.LogCoshLoss(a=0)(*signals())


def test_sum_and_difference_equal_auraloss() -> None:
    signal = signals()[0]
    for ours, theirs in zip(filters.SumAndDifference()(signal), AuralossSumAndDifference()(signal), strict=True):
        assert ours.shape == (3, 1, 4000) and torch.equal(ours, theirs)
    for channels in (1, 3):
        with pytest.raises(ValueError, match=rf"got {channels} channel"):
            filters.sum_and_difference(torch.zeros(2, channels, 10))
    with pytest.raises(ValueError, match=r"got shape \[2, 10\]"):
        filters.sum_and_difference(torch.zeros(2, 10))


@pytest.mark.parametrize(
    ("filter_type", "coef", "sample_rate", "ntaps"),
    [("hp", 0.85, 44100, 101), ("fd", 0.95, 44100, 11), ("aw", 0.85, 16000, 101), ("aw", 0.85, 48000, 3)],
)
def test_filters_equal_auraloss(filter_type: str, coef: float, sample_rate: int, ntaps: int) -> None:
    signal = signals(14)[0].requires_grad_()
    weights = signals(15)[0]
    reference = AuralossFIRFilter(filter_type, coef, sample_rate, ntaps)
    expected = torch.cat([reference(channel, channel)[0] for channel in signal.split(1, dim=1)], dim=1)
    extra = (expected.shape[-1] - 4000) // 2  # auraloss pads 3 taps as if there were `ntaps`
    assert extra == (ntaps // 2 - 1 if filter_type != "aw" else 0)
    expected = expected[..., extra : extra + 4000]
    ours = filters.FIRFilter(filter_type, coef, sample_rate, ntaps)(signal)
    assert ours.shape == signal.shape and (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    (slope,) = torch.autograd.grad((ours * weights).sum(), signal)
    (expected_slope,) = torch.autograd.grad((expected * weights).sum(), signal)
    assert (slope - expected_slope).norm() <= 1e-5 * expected_slope.norm()


def test_a_weighting_is_0_db_at_1_khz_and_attenuates_the_bass() -> None:
    time = torch.arange(44100, dtype=torch.float64) / 44100
    levels = []
    for frequency in (1000, 100):
        sine = torch.sin(2 * torch.pi * frequency * time)[None, None]
        filtered = filters.FIRFilter("aw")(sine)[..., 1000:-1000]
        levels.append(10 * math.log10(filtered.square().mean().item() / 0.5))
    assert levels[0] == pytest.approx(0, abs=0.5) and levels[1] < -10


def test_filters_by_hand() -> None:
    signal = torch.tensor([[[1.0, 2, 4], [0, 1, 0]]])
    assert filters.FIRFilter("hp", 0.5)(signal).tolist() == [[[-0.5, 0, 0], [0, -0.5, 1]]]
    assert filters.FIRFilter("fd", 0.5)(signal).tolist() == [[[-1, -1, 2], [-0.5, 0, 1]]]
    ramp = torch.tensor([1.0, 2, 3, 4, 5])
    assert filters.fir_filter(torch.tensor([[[1.0]]]), ramp).tolist() == [[[3]]]  # any length


def test_filters_follow_the_input() -> None:
    filtering = filters.FIRFilter("aw")
    signal = signals(16, (2, 3, 2000), torch.float64)[0]
    exact = filtering(signal)
    assert exact.dtype == torch.float64 and filtering(signal.float()).dtype == torch.float32
    assert torch.allclose(exact.float(), filtering(signal.float()), atol=1e-6)
    turned = signal.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(filtering(turned), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert filtering(signal.float()).dtype == torch.float32


def test_filters_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="must be odd, got 100"):
        filters.FIRFilter("aw", ntaps=100)
    with pytest.raises(ValueError, match="must be odd, got 4"):
        filters.a_weighting_taps(44100, 4)
    with pytest.raises(ValueError, match="must be odd, got 2"):
        filters.fir_filter(torch.zeros(1, 1, 10), torch.ones(2))
    with pytest.raises(ValueError, match="one of hp, fd, aw, got 'lp'"):
        filters.FIRFilter("lp")
    with pytest.raises(ValueError, match=r"got \[1, 10\]"):
        filters.FIRFilter()(torch.zeros(1, 10))
