"""What a loss says of itself and refuses: signatures, repr, options, reductions, input, sums of losses."""

from __future__ import annotations

import inspect
import re
from typing import Any

import auraloss
import pytest
import torch

import encore.losses
import losses
from losses import FunctionLoss, functional
from losses.stft_settings import STFTSettings
from tests.signals import RATE, loss_named, noise, shape_for

CLASSES = [kind for kind in vars(losses).values() if isinstance(kind, type) and issubclass(kind, losses.Loss)]
FUNCTION_CLASSES = [kind for kind in CLASSES if issubclass(kind, FunctionLoss) and kind is not FunctionLoss]


@pytest.mark.parametrize("kind", FUNCTION_CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_takes_what_its_function_takes(kind: type[FunctionLoss]) -> None:
    _, _, *wanted = inspect.signature(kind.compare).parameters.values()
    *taken, reduction = inspect.signature(kind).parameters.values()
    assert [(one.name, one.default, one.annotation) for one in taken] == [
        (one.name, one.default, one.annotation) for one in wanted
    ]
    assert (reduction.name, reduction.kind, reduction.default) == ("reduction", reduction.KEYWORD_ONLY, "mean")


def test_signatures_show_every_option_with_its_default() -> None:
    for kind in CLASSES:
        kinds = {one.kind for one in inspect.signature(kind).parameters.values()}
        assert kind is FunctionLoss or kinds <= {
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        }
    for shown in (losses.STFTLoss, functional.stft):
        defaults = {name: one.default for name, one in inspect.signature(shown).parameters.items()}
        assert {name: default for name, default in vars(STFTSettings()).items() if defaults[name] != default} == {}
    assert inspect.signature(losses.MRSTFTLoss).parameters["log_eps"].default == 1e-7
    prediction, target = noise((1, 1, 3000), 0)
    given = {
        name: one.default
        for name, one in inspect.signature(losses.MRSTFTLoss).parameters.items()
        if name != "reduction"
    }
    assert losses.MRSTFTLoss(**given)(prediction, target) == losses.MRSTFTLoss()(prediction, target)


def test_the_order_of_positional_settings_is_that_of_auraloss() -> None:
    for ours, theirs in (
        (losses.STFTLoss, auraloss.freq.STFTLoss),
        (losses.MelSTFTLoss, auraloss.freq.MelSTFTLoss),
        (losses.ChromaSTFTLoss, auraloss.freq.ChromaSTFTLoss),
        (losses.MultiResolutionSTFTLoss, auraloss.freq.MultiResolutionSTFTLoss),
        (losses.SumAndDifferenceSTFTLoss, auraloss.freq.SumAndDifferenceSTFTLoss),
        (losses.SNRLoss, auraloss.time.SNRLoss),
        (losses.ESRLoss, auraloss.time.ESRLoss),
        (losses.LogCoshLoss, auraloss.time.LogCoshLoss),
    ):
        positional = [
            name
            for name, one in inspect.signature(ours).parameters.items()
            if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == list(inspect.signature(theirs).parameters)[: len(positional)]
    assert losses.MelSTFTLoss(44100, 2048).stft_settings == STFTSettings(
        2048, sample_rate=44100, scale="mel", n_bins=128
    )
    with pytest.raises(TypeError, match="positional"):
        losses.MelLoss(24000, 1024, 1024)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", list(losses.REGISTRY))
def test_an_unknown_option_is_refused_when_the_loss_is_made(name: str) -> None:
    with pytest.raises(TypeError, match="n_fish"):
        loss_named(name, n_fish=3)
    with pytest.raises(ValueError, match="reduction must be"):
        loss_named(name, reduction="max")


def test_settings_of_no_such_value_are_refused_when_the_loss_is_made() -> None:
    settings: dict[str, Any] = {"ffts": [3]}
    with pytest.raises(TypeError, match=r"MultiResolutionSTFTLoss takes no ffts; it takes fft_sizes, hop_sizes"):
        losses.MultiResolutionSTFTLoss(**settings)
    with pytest.raises(ValueError, match="no window 'hann_windo'"):
        losses.STFTLoss(window="hann_windo")
    with pytest.raises(ValueError, match="2048 samples does not fit into an FFT of 1024"):
        losses.STFTLoss(win_length=2048)
    with pytest.raises(ValueError, match="a above 0"):
        losses.LogCoshLoss(a=-1)
    with pytest.raises(TypeError, match="stft takes no n_mels"):
        functional.stft(*noise((1, 1, 3000), 1), n_mels=3)  # type: ignore[call-arg]


def test_repr_says_what_a_loss_is() -> None:
    assert repr(losses.create("mel", RATE, n_mels=40)) == "MelLoss(sample_rate=24000, n_mels=40, reduction='mean')"
    assert repr(losses.RMSLoss(reduction="sum")) == "RMSLoss(reduction='sum')"
    sizes = "fft_sizes=(512, 1024, 2048), hop_sizes=(128, 256, 512), win_lengths=(512, 1024, 2048)"
    assert repr(losses.SpectralLoss(w_sc=0)) == f"SpectralLoss({sizes}, w_sc=0, reduction='mean')"
    assert repr(losses.MelSTFTLoss(RATE, output="full")) == (
        "MelSTFTLoss(sample_rate=24000, scale='mel', n_bins=128, output='full', reduction='mean')"
    )
    assert "functools" not in "".join(repr(loss_named(name)) for name in losses.REGISTRY)


def test_what_create_gives_is_what_the_class_gives() -> None:
    prediction, target = noise((2, 1, 5000), 2)
    for name, kind in (("mel", losses.MelLoss), ("spectral", losses.SpectralLoss), ("rms", losses.RMSLoss)):
        loss = losses.create(name, RATE)
        assert type(loss) is kind and loss(prediction, target).shape == ()
    each = losses.create("mel", RATE, reduction="none")(prediction, target)
    assert losses.create("mel", RATE)(prediction, target) == each.mean()
    assert losses.create("mel", RATE, reduction="sum")(prediction, target) == each.sum()


def test_full_output_has_the_form_of_auralosss() -> None:
    prediction, target = noise((2, 2, 5000), 3)
    sizes: dict[str, Any] = {"fft_sizes": [512, 256], "hop_sizes": [128, 64], "win_lengths": [512, 256]}
    ours = losses.MultiResolutionSTFTLoss(**sizes, w_lin_mag=1.0, output="full", reduction="batch")(prediction, target)
    theirs = auraloss.freq.MultiResolutionSTFTLoss(**sizes, w_lin_mag=1.0, output="full")(prediction, target)
    assert ours.loss.item() == pytest.approx(theirs[0].item(), rel=1e-5)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert [float(value) for value in mine] == pytest.approx([float(value) for value in other], rel=1e-5)
    both = losses.SumAndDifferenceSTFTLoss(**sizes, output="full", reduction="batch")(prediction, target)
    expected = auraloss.freq.SumAndDifferenceSTFTLoss(**sizes, output="full")(prediction, target)
    assert [value.item() for value in both] == pytest.approx([value.item() for value in expected], rel=1e-5)


@pytest.mark.parametrize("name", list(losses.REGISTRY))
def test_what_is_no_signal_of_real_numbers_is_refused(name: str) -> None:
    prediction, target = noise(shape_for(name, 1), 4)
    loss = loss_named(name)
    for wrong, what in ((prediction.to(torch.int16), "torch.int16"), (prediction.to(torch.cfloat), "torch.complex64")):
        for pair, which in (((wrong, target), "prediction"), ((target, wrong), "target")):
            with pytest.raises(TypeError, match=rf"the {which} must be .* floating-point .* got {what}"):
                loss(*pair)
    with pytest.raises(TypeError, match="the prediction must be a tensor, got ndarray"):
        loss(prediction.numpy(), target)
    with pytest.raises(TypeError, match=r"got torch\.int16; .* samples\.float\(\) / 32768"):
        functional.rms(prediction.to(torch.int16), target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_functions_take_half_precision_and_compute_in_float32(dtype: torch.dtype) -> None:
    prediction, target = (signal.to(dtype) for signal in noise((2, 2, 2500), 5))
    for name in functional.__all__:
        function = getattr(functional, name)
        if name in ("embedding", "pesq", "time_frequency_loss"):  # these need more than a rate
            continue
        rate: dict[str, Any] = {"sample_rate": RATE} if "sample_rate" in inspect.signature(function).parameters else {}
        rate = {} if rate and inspect.signature(function).parameters["sample_rate"].default is None else rate
        values = function(prediction, target, **rate)
        assert values.dtype == torch.float32, name
        assert torch.equal(values, function(prediction.float(), target.float(), **rate)), name
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(values, function(prediction, target, **rate)), name


def test_losses_can_be_scaled_and_added() -> None:
    prediction, target = noise((2, 1, 5000), 6)
    mel, rms, other = losses.create("mel", RATE), losses.RMSLoss(), losses.RMSLoss()
    m, r = mel(prediction, target), rms(prediction, target)
    total = 0.5 * mel + rms / 4
    assert total(prediction, target).item() == pytest.approx((0.5 * m + r / 4).item())
    assert total.weights == {"MelLoss": 0.5, "RMSLoss": 0.25} and "0.5 MelLoss + 0.25 RMSLoss" in repr(total)
    assert (2 * total + other).weights == {"MelLoss": 1, "RMSLoss": 0.5, "RMSLoss_2": 1}
    assert (total + rms).weights == {"MelLoss": 0.5, "RMSLoss": 1.25}
    assert sum((mel, rms), 0)(prediction, target).item() == pytest.approx((m + r).item())  # type: ignore[operator]
    each = 2 * losses.MelLoss(RATE, reduction="none") + losses.RMSLoss(reduction="none")
    assert each(prediction, target).shape == (2,)


def test_sums_that_make_no_sense_explain_themselves() -> None:
    with pytest.raises(ValueError, match=r"all give one value, .* 'mean' of RMSLoss, 'none' of MelLoss"):
        losses.RMSLoss() + losses.MelLoss(RATE, reduction="none")
    with pytest.raises(ValueError, match="STFTLoss has output='full'"):
        2 * losses.STFTLoss(output="full")
    with pytest.raises(ValueError, match="weight of 'RMSLoss' must be a finite number of at least 0, got -1"):
        -1 * losses.RMSLoss()
    with pytest.raises(TypeError, match="unsupported operand"):
        losses.RMSLoss() + 3  # type: ignore[operator]

    class Odd(torch.nn.Module):
        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return prediction

    mixed = losses.WeightedSum({"odd": (Odd(), 1.0), "rms": (losses.RMSLoss(), 1.0)})
    with pytest.raises(ValueError, match=re.escape("got {'odd': [2, 1, 50], 'rms': []}")):
        mixed(*noise((2, 1, 50), 7))


def test_encore_losses_is_the_same_package() -> None:
    assert encore.losses.SpectralLoss is losses.SpectralLoss and encore.losses.functional is functional
    assert {*losses.__all__} <= vars(encore.losses).keys()
