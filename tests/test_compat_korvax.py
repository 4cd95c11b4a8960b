"""`losses.compat.korvax` against korvax: names, arguments, values, gradients; the examples of its documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from losses.compat import korvax as ours
from tests.signals import korvax

RATE = 16000
WRITTEN_OTHERWISE = ("pad_kwargs",)  # {} there, None here


def a_weighted(k: Any, x: Any, y: Any) -> Any:
    """The first example of `time_frequency_loss`'s documentation."""
    loss = partial(
        k.loss.time_frequency_loss,
        transform_fn=partial(k.spectrogram, win_length=2048, power=1),
        loss_fn=partial(k.loss.elementwise_loss, metric="L1"),
        scale_fn=lambda S: k.amplitude_to_db(S) + k.A_weighting(k.fft_frequencies(sr=RATE, n_fft=2048))[:, None],
    )
    return loss(x, y)


def transport_and_levels(k: Any, x: Any, y: Any) -> Any:
    """The second example."""
    loss = partial(
        k.loss.time_frequency_loss,
        transform_fn=partial(k.spectrogram, win_length=2048, power=2),
        loss_fn=[k.loss.spectral_optimal_transport_loss, partial(k.loss.elementwise_loss, metric="L1")],
        scale_fn=[lambda S: S, k.power_to_db],
        weights=[1.0, 0.1],
    )
    return loss(x, y)


def several_resolutions(k: Any, x: Any, y: Any) -> Any:
    """The third example."""
    loss_fn = partial(k.loss.elementwise_loss, metric="L1")
    loss = 0.0
    for hop, win in zip([128, 256], [512, 1024], strict=True):
        transform = partial(k.spectrogram, win_length=win, hop_length=hop, power=1)
        loss += k.loss.time_frequency_loss(x, y, transform_fn=transform, loss_fn=loss_fn, scale_fn=k.amplitude_to_db)
    return loss / 2


def mel_convergence(k: Any, x: Any, y: Any) -> Any:
    settings = {"sr": float(RATE), "n_fft": 512, "n_mels": 30, "fmin": 50.0, "fmax": 7000.0, "win_length": 400}
    transform = partial(k.mel_spectrogram, **settings, hop_length=100, power=1.0)
    return k.loss.time_frequency_loss(x, y, transform_fn=transform, loss_fn=k.loss.spectral_convergence_loss)


def uncentred(k: Any, x: Any, y: Any) -> Any:
    settings = {"n_fft": 256, "win_length": 200, "window": ("kaiser", 8.0), "center": False}
    return k.loss.elementwise_loss(k.spectrogram(x, **settings), k.spectrogram(y, **settings), metric="L2")


def reflected(k: Any, x: Any, y: Any) -> Any:
    bins = [k.stft(signal, 255, 64, pad_kwargs={"mode": "reflect"}) for signal in (x, y)]
    edges = [k.spectrogram(signal, 256, 64, power=1.5, pad_kwargs={"mode": "edge"}) for signal in (x, y)]
    return k.loss.elementwise_loss(bins[0].real, bins[1].imag) + k.loss.elementwise_loss(*edges, metric="L2")


def unbalanced(k: Any, x: Any, y: Any) -> Any:
    spectra = (k.spectrogram(signal, 128) for signal in (x, y))
    return k.loss.spectral_optimal_transport_loss(*spectra, p=1, balanced=False, normalize=False)


def preset(k: Any, x: Any, y: Any) -> Any:
    sizes = (64, 120), (256, 400), (256, 512)
    return k.loss.mrstft_loss(x, y, *sizes, w_lin=0.3, lin_dist="L2", log_fac=10.0, log_eps=1e-3, power=2)


def constant_q(k: Any, x: Any, y: Any) -> Any:
    settings = {"sr": RATE, "fmin": 500.0, "n_bins": 24, "power": 1.0}
    return k.loss.elementwise_loss(k.cqt(x[0, 0], **settings), k.cqt(y[0, 0], **settings))


CASES: dict[str, Callable[[Any, Any, Any], Any]] = (
    {
        case.__name__: case
        for case in (
            a_weighted,
            transport_and_levels,
            several_resolutions,
            mel_convergence,
            uncentred,
            reflected,
            unbalanced,
            preset,
            constant_q,
        )
    }
    | {"mrstft_loss": lambda k, x, y: k.loss.mrstft_loss(x, y)}
    | {"smooth_mrstft_loss": lambda k, x, y: k.loss.smooth_mrstft_loss(x, y)}
)


# By korvax 0.3.0 in float64 on `signals()`; `test_gradients_are_equal` makes them anew.
VALUES = {
    "a_weighted": 6.072575423870778,
    "transport_and_levels": 0.6083758071407418,
    "several_resolutions": 6.04446128024116,
    "mel_convergence": 0.40127453352847453,
    "uncentred": 1251281312.8354058,
    "reflected": 10563350.608075807,
    "unbalanced": 148545.48410435676,
    "preset": 1456204710.89955,
    "constant_q": 10.812926680099277,
    "mrstft_loss": 134.8022022388999,
    "smooth_mrstft_loss": 0.801621061359378,
}


def signals() -> tuple[np.ndarray, np.ndarray]:
    """Noise of RMS 20, so that no magnitude comes near the least that the constant-Q transform has."""
    prediction, target = np.random.default_rng(1).normal(0, 20, (2, 2, 2, 2600))
    return prediction, target


@pytest.mark.parametrize("name", CASES)
def test_values_are_equal(name: str) -> None:
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        prediction, target = (torch.tensor(signal, dtype=dtype) for signal in signals())
        result = CASES[name](ours, prediction, target)
        assert result.shape == () and result.dtype == dtype
        assert result.item() == pytest.approx(VALUES[name], rel=limit)


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_equal(name: str) -> None:
    package = korvax()
    import jax

    prediction, target = signals()
    with jax.enable_x64(True):
        results = jax.jit(jax.value_and_grad(partial(CASES[name], package)))(prediction, target)
    value, reference = (np.asarray(result) for result in results)
    assert VALUES[name] == pytest.approx(value.item(), rel=1e-9)
    parameter = torch.tensor(prediction, requires_grad=True)
    (slope,) = torch.autograd.grad(CASES[name](ours, parameter, torch.tensor(target)), parameter)
    assert np.linalg.norm(slope.numpy() - reference) <= 1e-6 * np.linalg.norm(reference)


def test_every_function_has_korvax_arguments_in_their_order_with_their_defaults() -> None:
    package = korvax()
    for mine, theirs in ((ours, package), (ours.loss, package.loss)):
        names = [name for name in dir(mine) if inspect.isfunction(getattr(theirs, name, None))]
        assert {"mrstft_loss", "time_frequency_loss"} <= set(names) or {"stft", "power_to_db"} <= set(names)
        for name in names:
            own, reference = (inspect.signature(getattr(module, name)).parameters for module in (mine, theirs))
            assert list(own) == list(reference), name
            for argument, parameter in own.items():
                if argument not in WRITTEN_OTHERWISE:
                    assert parameter.default == reference[argument].default, (name, argument)
    assert set(dir(package.loss)) - set(dir(ours.loss)) <= {name for name in dir(package.loss) if "loss" not in name}


def test_arrays_give_arrays_of_their_package_and_conversions_are_right() -> None:
    power: Any = np.array([[1.0, 1e-3], [1e-20, 10.0]])
    level: Any = ours.power_to_db(power, ref=lambda values: values.max(), top_db=50.0)
    assert isinstance(level, np.ndarray)
    np.testing.assert_allclose(level, [[-10, -40], [-50, 0]])
    amplitude = ours.amplitude_to_db(torch.tensor([1.0, 0.1, 0.0]), ref=0.1)
    assert amplitude.tolist() == pytest.approx([20, 0, -60])
    assert ours.db_to_power(torch.tensor([20.0])) == pytest.approx([100]) == ours.db_to_amplitude(torch.tensor([40.0]))
    bins = torch.rand(257, 3)
    filters = ours.mel_filterbank(sr=RATE, n_fft=512, n_mels=20, fmax=6000.0)
    assert torch.allclose(filters @ bins, ours.to_mel_scale(bins, RATE, 512, 20, 0.0, 6000.0), atol=1e-6)
    assert ours.cqt_frequencies(13, fmin=55.0)[-1].item() == pytest.approx(110)


def test_what_is_missing_says_what_to_use() -> None:
    with pytest.raises(AttributeError, match=r"no 'resample': use torchaudio\.functional\.resample"):
        ours.resample  # noqa: B018
    with pytest.raises(AttributeError, match="but no 'chirp'"):
        ours.chirp  # noqa: B018
    signal = torch.zeros(1, 4000)
    with pytest.raises(ValueError, match="only the defaults of filter_scale"):
        ours.vqt(signal, RATE, fmin=500.0, n_bins=12, filter_scale=2.0)
    with pytest.raises(ValueError, match="pad_kwargs takes a mode of constant, reflect, edge, wrap"):
        ours.stft(signal, pad_kwargs={"mode": "mirror"})
    with pytest.raises(ValueError, match="torchaudio.functional.melscale_fbanks"):
        ours.mel_filterbank(sr=RATE, n_fft=512, htk=True)
    with pytest.raises(ValueError, match="must be one of L1, L2, got 'L3'"):
        ours.loss.elementwise_loss(signal, signal, metric="L3")
    with pytest.raises(ValueError, match="must be equally long, got 1, 6 and 6"):
        ours.loss.mrstft_loss(signal, signal, hop_lengths=(64,))
