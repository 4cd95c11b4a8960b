"""STFT losses against auraloss and korvax: values and gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import auraloss
import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

import losses
from losses.dsp.filterbanks import mel_filters
from losses.dsp.norms import mean_abs, norm_along_bins
from losses.dsp.stft import (
    Resolution,
    absolute,
    anti_wrapped_distance,
    log_ratio,
    magnitude,
    phase,
    spectrum,
    spectrum_parts,
    window_values,
)
from losses.stft import STFTTerms
from tests.signals import assert_same, gradient_of, music, noise

RATE = 24000
RESOLUTION: dict[str, Any] = {"fft_size": 1024, "hop_size": 120, "win_length": 600}


def assert_auraloss(
    ours: torch.nn.Module, theirs: torch.nn.Module, prediction: Tensor, target: Tensor, window: str = "hann_window"
) -> None:
    """Equal to a loss of auraloss, in float32 and in float64."""
    exact = copy.deepcopy(theirs).double()
    for module in exact.modules():
        if isinstance(module, auraloss.freq.STFTLoss):
            module.window = getattr(torch, window)(module.win_length, dtype=torch.float64)  # it is not a buffer
    assert_same(ours, theirs, prediction, target, exact)


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(512, 128, 512), (1024, 120, 600), (64, 17, 33), (16, 16, 4)])
@pytest.mark.parametrize("window", ["hann", "hann_window", ("kaiser", 5.0)])
def test_spectra_are_those_of_torch_with_their_gradients(n_fft: int, hop: int, win: int, window: Any) -> None:
    signal = noise((2, 3, 1500), 0)[0].double()
    weight = torch.randn(6, (1500 // hop) + 1, n_fft // 2 + 1, dtype=torch.complex128)
    values = window_values(window, win, signal.device, signal.dtype)

    def ours(x: Tensor) -> Tensor:
        return (spectrum(x, Resolution(n_fft, hop, win, window)).flatten(0, 1) * weight).real.sum()

    def theirs(x: Tensor) -> Tensor:
        transformed = torch.stft(x.flatten(0, 1), n_fft, hop, win, values, return_complex=True)
        return (transformed.transpose(1, 2) * weight).real.sum()

    (a, b), (c, d) = gradient_of(ours, signal), gradient_of(theirs, signal)
    assert torch.allclose(a, c) and torch.allclose(b, d)


def test_a_padding_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_mode must be one of reflect, constant, got 'circular'"):
        losses.STFTLoss(pad_mode="circular")(*noise((1, 1, 2000), 0))


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
@pytest.mark.parametrize("n_fft", [32, 33])
@pytest.mark.slow
def test_gradients_of_spectra_are_those_of_finite_differences(pad_mode: str, n_fft: int) -> None:
    signal = noise((1, 1, 40), 1)[0].double().requires_grad_()
    resolution = Resolution(n_fft, 7, 20, "hann", pad_mode)
    # The angles of a frame at a reflected end are 0 or, by rounding, π or −π.
    for function in (spectrum, magnitude, *[phase] * (pad_mode == "constant")):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, resolution), signal)
    other = noise((1, 1, 40), 2)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: log_ratio(magnitude(x, resolution), magnitude(y, resolution)), (signal, other)
    )
    for comparison in (mean_abs, norm_along_bins):
        assert torch.autograd.gradcheck(
            lambda x, y, f=comparison: f(magnitude(x, resolution), magnitude(y, resolution)), (signal, other)
        )
    assert torch.autograd.gradcheck(
        lambda x, y: absolute(spectrum_parts(x, resolution), spectrum_parts(y, resolution)), (signal, other)
    )
    if pad_mode == "constant":
        assert torch.autograd.gradcheck(lambda x, y: anti_wrapped_distance(x, y, resolution), (signal, other))


def test_windows_have_the_names_of_scipy_and_torch() -> None:
    device = torch.device("cpu")
    assert torch.allclose(window_values("hann", 64, device, torch.float32), torch.hann_window(64), atol=1e-6)
    assert torch.equal(
        window_values("blackman_window", 64, device, torch.float64), torch.blackman_window(64, dtype=torch.float64)
    )
    assert window_values("flattop", 67, device, torch.float32).shape == (67,)
    with pytest.raises(ValueError, match="no window 'hann_windo'"):
        window_values("hann_windo", 64, device, torch.float32)
    with pytest.raises(ValueError, match="600 samples does not fit into an FFT of 512"):
        spectrum(torch.zeros(1, 1, 2000), Resolution(512, 128, 600))


AURALOSS_SETTINGS = [
    {},
    {"w_lin_mag": 0.7, "w_sc": 0.3, "w_log_mag": 2.0},
    {"mag_distance": "L2", "w_lin_mag": 1.0},
    {"window": "blackman_window", "eps": 1e-6},
    {"scale": "mel", "sample_rate": RATE, "n_bins": 64},
    {"perceptual_weighting": True, "sample_rate": 44100},
]


@pytest.mark.parametrize("signals", [noise, music])
@pytest.mark.parametrize("settings", AURALOSS_SETTINGS, ids=str)
def test_stft_equals_auraloss(signals: Callable[..., tuple[Tensor, Tensor]], settings: dict[str, Any]) -> None:
    prediction, target = signals((3, 2, 6000), 2)
    theirs = auraloss.freq.STFTLoss(**RESOLUTION, **settings)
    ours = losses.STFTLoss(**RESOLUTION, **settings, reduction="batch")
    assert_auraloss(ours, theirs, prediction, target, settings.get("window", "hann_window"))
    # Item by item auraloss agrees with the values per item.
    single = losses.STFTLoss(**RESOLUTION, **settings, reduction="none")(prediction, target)
    for item in range(3):
        alone = slice(item, item + 1)
        assert single[item].item() == pytest.approx(theirs(prediction[alone], target[alone]).item(), rel=1e-5)


def test_full_output_has_the_terms_of_auraloss() -> None:
    prediction, target = noise((2, 1, 5000), 3)
    settings: dict[str, Any] = {"w_sc": 0.5, "w_log_mag": 2.0, "w_lin_mag": 1.0, "w_phs": 0.1, "output": "full"}
    # The frames at the ends are symmetric: their angles are 0 or, by rounding, π or −π.
    ours = losses.STFTLoss(**settings, reduction="batch")(prediction, target)
    theirs = auraloss.freq.STFTLoss(**settings)(prediction, target)
    assert isinstance(ours, STFTTerms)
    assert torch.tensor(ours[1:4]).tolist() == pytest.approx(torch.tensor(theirs[1:4]).tolist(), rel=1e-5)
    assert ours.phs_loss.item() == pytest.approx(theirs[4].item(), rel=0.02)
    several = losses.MultiResolutionSTFTLoss(**settings, reduction="none")(prediction, target)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.1])[:, None]
    terms = torch.stack([torch.stack(values).mean(0) for values in several[1:]])
    assert torch.allclose(several.loss, (weights * terms).sum(0))


def test_the_phase_term_is_the_mean_square_difference_of_angles() -> None:
    prediction, target = (signal.double() for signal in noise((2, 2, 5000), 15))
    window = torch.hann_window(600, dtype=torch.float64)

    def theirs(predicted: Tensor, wanted: Tensor) -> Tensor:
        settings: Any = {"window": window, "pad_mode": "constant", "return_complex": True}
        angles = [
            torch.stft(signal.flatten(0, 1), 1024, 120, 600, **settings).angle() for signal in (predicted, wanted)
        ]
        return (angles[0] - angles[1]).square().mean()

    ours = losses.STFTLoss(**RESOLUTION, w_sc=0.0, w_log_mag=0.0, w_phs=1.0, pad_mode="constant")
    assert_same(ours, theirs, prediction, target)


@pytest.mark.parametrize("signals", [noise, music])
@pytest.mark.slow
def test_multi_resolution_equals_auraloss(signals: Callable[..., tuple[Tensor, Tensor]]) -> None:
    prediction, target = signals((2, 2, 9000), 4)
    assert_auraloss(
        losses.MultiResolutionSTFTLoss(reduction="batch"), auraloss.freq.MultiResolutionSTFTLoss(), prediction, target
    )
    settings: dict[str, Any] = {"scale": "mel", "n_bins": 64, "sample_rate": 44100, "perceptual_weighting": True}
    sizes: dict[str, Any] = {"fft_sizes": [1024, 2048], "hop_sizes": [256, 512], "win_lengths": [1024, 2048]}
    theirs = auraloss.freq.MultiResolutionSTFTLoss(**sizes, **settings)
    assert_auraloss(losses.MultiResolutionSTFTLoss(**sizes, **settings, reduction="batch"), theirs, prediction, target)
    each = losses.MultiResolutionSTFTLoss(**sizes, **settings | {"n_bins": (32, 64)}, reduction="none")
    parts = [
        losses.MelSTFTLoss(
            44100, n_mels=bins, fft_size=size, hop_size=size // 4, win_length=size, perceptual_weighting=True
        )
        for size, bins in ((1024, 32), (2048, 64))
    ]
    mean = sum(part(prediction, target) for part in parts) / 2
    assert each(prediction, target).mean().item() == pytest.approx(float(mean), rel=1e-5)


def test_the_spectral_preset_is_auralosss_with_its_sizes() -> None:
    prediction, target = music((2, 1, 9000), 5)
    theirs = auraloss.freq.MultiResolutionSTFTLoss([512, 1024, 2048], [128, 256, 512], [512, 1024, 2048])
    assert_auraloss(losses.SpectralLoss(reduction="batch"), theirs, prediction, target)


def test_mel_and_chroma_scales_equal_auraloss() -> None:
    prediction, target = noise((2, 1, 6000), 6)
    assert_auraloss(losses.MelSTFTLoss(RATE, reduction="batch"), auraloss.freq.MelSTFTLoss(RATE), prediction, target)

    def chroma(predicted: Tensor, wanted: Tensor) -> Tensor:
        """Auraloss fails to register librosa's filters, so they are set here."""
        loss = auraloss.freq.STFTLoss()
        loss.scale, loss.fb = "chroma", torch.from_numpy(librosa.filters.chroma(sr=RATE, n_fft=1024, n_chroma=12))
        return loss(predicted, wanted)

    assert_same(losses.ChromaSTFTLoss(RATE, reduction="batch"), chroma, prediction, target)


def test_scale_invariance_equals_auraloss_for_one_signal_and_ignores_the_level() -> None:
    prediction, target = noise((1, 1, 6000), 7)
    settings: dict[str, Any] = {"scale_invariance": True, "w_lin_mag": 1.0}
    assert_auraloss(losses.STFTLoss(**settings), auraloss.freq.STFTLoss(**settings), prediction, target)
    prediction, target = noise((3, 2, 6000), 8)
    quiet = target * torch.tensor([0.1, 1.0, 3.0])[:, None, None]
    loss = losses.STFTLoss(**settings, w_sc=0.0, reduction="none")
    assert torch.allclose(loss(prediction, target), loss(prediction, quiet), rtol=1e-4)


@pytest.mark.parametrize("signals", [noise, music])
def test_sum_and_difference_equals_auraloss(signals: Callable[..., tuple[Tensor, Tensor]]) -> None:
    prediction, target = signals((2, 2, 9000), 9)
    sizes: dict[str, Any] = {"fft_sizes": [1024, 512], "hop_sizes": [256, 128], "win_lengths": [1024, 512]}
    theirs = auraloss.freq.SumAndDifferenceSTFTLoss(**sizes, w_sum=0.3, w_diff=2.0)
    ours = losses.SumAndDifferenceSTFTLoss(**sizes, w_sum=0.3, w_diff=2.0, batch=True)
    assert_auraloss(ours, theirs, prediction, target)
    with pytest.raises(ValueError, match="stereo"):
        ours(prediction[:, :1], target[:, :1])


class TestRandomResolution:
    def test_a_draw_is_auralosss_loss_at_those_sizes(self) -> None:
        prediction, target = noise((2, 1, 6000), 10)
        loss = losses.RandomResolutionSTFTLoss(batch=True)
        (drawn, *others) = (loss.draw(6000, call) for call in range(20))
        assert all(16 <= size["fft_size"] <= 8192 for draw in others for size in draw)
        assert len({size["fft_size"] for draw in others for size in draw}) > 5
        value = loss(prediction.clone().requires_grad_(), target).item()
        theirs = [auraloss.freq.STFTLoss(**size)(prediction, target).item() for size in drawn]
        assert value == pytest.approx(np.mean(theirs), rel=1e-5)

    def test_draws_follow_the_training_calls_alone_and_the_state(self) -> None:
        prediction, target = noise((1, 1, 6000), 11)
        prediction.requires_grad_()
        one, other = losses.RandomResolutionSTFTLoss(), losses.RandomResolutionSTFTLoss()
        values = [one(prediction, target).item() for _ in range(3)]
        torch.manual_seed(1)
        for expected in values[:2]:
            assert other(prediction, target).item() == expected
            assert other(prediction.detach(), target).item() == values[0]  # validation: always the first
        resumed = losses.RandomResolutionSTFTLoss()
        resumed.load_state_dict(other.state_dict())
        assert resumed(prediction, target).item() == values[2]
        assert len(set(values)) == 3

    def test_short_signals_get_short_transforms(self) -> None:
        loss = losses.RandomResolutionSTFTLoss()
        assert loss(*noise((1, 1, 40), 12)).isfinite()
        with pytest.raises(ValueError, match="at least 9 samples"):
            loss(*noise((1, 1, 8), 12))


def test_mel_filters_are_librosas_and_empty_ones_give_one_warning() -> None:
    device = torch.device("cpu")
    for settings in ((24000, 1024, 80, 0.0, 8000.0), (44100, 2048, 128, 30.0, None)):
        rate, n_fft, n_mels, low, high = settings
        expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=low, fmax=high)
        ours = mel_filters(rate, n_fft, n_mels, low, high, True, device, torch.float32)
        assert torch.allclose(ours, torch.from_numpy(expected), rtol=1e-5, atol=1e-8)
    prediction, target = noise((1, 1, 4000), 13)
    loss = losses.MelLoss(24000, n_fft=512, n_mels=128)
    with pytest.warns(
        UserWarning, match=r"of 128 mel filters contain no bin .* use n_fft=(\d+) or n_mels=(\d+)"
    ) as said:
        assert loss(prediction, target).isfinite()
    words = str(said[0].message).split("n_fft=")[1].split(" or n_mels=")
    n_fft, n_mels = int(words[0]), int(words[1].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(prediction, target)
        mel_filters(24000, n_fft, 128, 0.0, 8000.0, True, device, torch.float32)
        mel_filters(24000, 512, n_mels, 0.0, 8000.0, True, device, torch.float32)


def test_settings_that_do_not_fit_are_refused() -> None:
    pair = noise((1, 1, 6000), 14)
    for settings, message in (
        ({"scale": "bark"}, "scale must be"),
        ({"scale": "mel"}, "sample_rate"),
        ({"perceptual_weighting": True}, "sample_rate"),
        ({"mag_distance": "L3"}, "distance must be one of L1, L2, got 'L3'"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.STFTLoss(**settings)(*pair)
    with pytest.raises(ValueError, match="equally long, got 3, 2, 3 and 3"):
        losses.MultiResolutionSTFTLoss(hop_sizes=(1, 2))(*pair)
    with pytest.raises(ValueError, match="output must be"):
        losses.STFTLoss(output="all")
