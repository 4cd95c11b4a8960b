"""Properties of every registered loss."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import losses
from losses.base import Loss
from losses.pesq import _measure
from tests.signals import loss_named, music, noise, shape_for

pytestmark = pytest.mark.parametrize("name", list(losses.REGISTRY))
LEAST = {"rms": None, "mrstft": None, "mel": 513, "spectral": 1025, "multi_mel": 2049, "pesq": 7871}  # at 24 kHz
SAME_CODE = dict.fromkeys(("multi_resolution_stft", "spectral", "mrstft", "smooth_mrstft"), "sum_and_difference_stft")
SAME_CODE |= {"multi_mel": "mel", "multi_complex_spec": "complex_spec", "stft": "mel_stft", "chroma_stft": "mel_stft"}
# One resolution each, as the compiler goes through every one.
ONE_SIZE: dict[str, dict[str, object]] = {
    "sum_and_difference_stft": {"fft_sizes": (512,), "hop_sizes": (128,), "win_lengths": (512,)},
    "spectral_optimal_transport": {"fft_sizes": (512,), "hop_lengths": (128,)},
    **dict.fromkeys(("audible_energy", "spectral_energy", "loudness", "complex_stft"), {"n_ffts": (512,)}),
}
# One draws its sizes, the others are networks and recursive filters, which the compiler would unroll step by step.
LEFT_EAGER = ("random_resolution_stft", "pesq", "embedding")
HARD = ("silence", "same", "to silence", "from silence", "DC", "to DC", "clipping", "impulse", "to impulse")


def value_and_gradient(loss: Callable[..., Tensor], prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.detach().clone().requires_grad_()
    values = loss(prediction, target)
    (gradient,) = torch.autograd.grad(values.sum(), prediction)
    return values.detach(), gradient


def hard_signals(kind: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    sound = music(shape, 5)[0]
    silence, impulse = torch.zeros(shape), torch.zeros(shape)
    impulse[..., shape[-1] // 2] = 1
    return {
        "silence": (silence, silence),
        "same": (sound, sound),
        "to silence": (sound, silence),
        "from silence": (silence, sound),
        "DC": (silence + 0.5, sound),
        "to DC": (sound, silence + 0.5),
        "clipping": ((1000 * sound).clamp(-1, 1), sound),
        "impulse": (impulse, sound),
        "to impulse": (sound, impulse),
    }[kind]


def test_identity_is_the_minimum(name: str) -> None:
    shape = shape_for(name, 2)
    prediction, target = noise(shape, 2)
    loss, minimum = loss_named(name), losses.REGISTRY[name].minimum
    best = loss(target, target.clone())
    if minimum is not None:
        assert best.tolist() == pytest.approx([minimum] * 2, abs=1e-12)
    for other in (prediction, music(shape, 2)[0], torch.zeros(shape), 0.9 * target + 0.1 * prediction):
        assert (loss(other, target) > best).all()
    # An error 40 dB below may count as none, as in PESQ, which has a threshold of what can be heard; never as a gain.
    assert (loss(0.99 * target + 0.01 * prediction, target) >= best - 1e-12).all()


def test_a_value_per_item_that_is_independent_of_the_others(name: str) -> None:
    shape = shape_for(name, 1)
    other, tune = music(shape, 3)
    near = tune + 0.1 * other  # 20 dB, where every loss has a gradient; further away some are flat
    pairs = [noise(shape, 3), (near, tune), hard_signals("from silence", shape), hard_signals("clipping", shape)]
    prediction, target = (torch.cat(signals) for signals in zip(*pairs, strict=True))
    loss = loss_named(name)
    prediction.requires_grad_()
    values = loss(prediction, target)
    assert values.shape == (4,) and values.dtype == torch.float32
    (gradient,) = torch.autograd.grad(values[1], prediction)
    assert gradient[1].any() and not gradient[[0, 2, 3]].any()
    loss = loss_named(name)  # a fresh one, as losses may count their calls
    for item in range(4):
        with torch.no_grad():
            alone = loss(prediction[item : item + 1], target[item : item + 1])
        assert alone.item() == pytest.approx(values[item].item(), rel=1e-5, abs=1e-7)
    loss.reduction = "mean"
    assert loss(prediction, target).item() == pytest.approx(values.mean().item(), rel=1e-6)


def test_gradient_equals_finite_differences(name: str) -> None:
    prediction, target = (signal.double() for signal in noise(shape_for(name, 1), 4))
    loss = loss_named(name).double()
    values, gradient = value_and_gradient(loss, prediction, target)
    assert values.dtype == gradient.dtype == torch.float64
    step, generator = 1e-8, torch.Generator().manual_seed(0)
    loss = loss_named(name).double()
    for _ in range(2):
        direction = torch.randn(prediction.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            above, below = (loss(prediction + sign * step * direction, target).sum() for sign in (1, -1))
        slope = ((above - below) / (2 * step)).item()
        # The gradient's norm is the slope's typical size; a direction may happen to have hardly any.
        assert abs((gradient * direction).sum().item() - slope) <= 1e-3 * gradient.norm().item()


@pytest.mark.parametrize("kind", HARD)
def test_finite_with_gradient_on_hard_signals(name: str, kind: str) -> None:
    prediction, target = hard_signals(kind, shape_for(name, 2))
    values, gradient = value_and_gradient(loss_named(name), prediction, target)
    assert values.isfinite().all() and gradient.isfinite().all()
    # Against a silent target nothing may outweigh all the rest by orders of magnitude.
    assert values.max() < 1000


def test_bfloat16_under_autocast_is_near_float32(name: str) -> None:
    prediction, target = (signal.bfloat16() for signal in noise(shape_for(name, 2), 6))
    expected, reference = value_and_gradient(loss_named(name), prediction.float(), target.float())
    with torch.autocast("cpu", torch.bfloat16):
        values, gradient = value_and_gradient(loss_named(name), prediction, target)
        full, _ = value_and_gradient(loss_named(name), prediction.float(), target.float())
    assert values.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert values.tolist() == pytest.approx(expected.tolist(), rel=2e-2)
    assert (gradient.float() - reference).norm() <= 2e-2 * reference.norm()
    assert full.tolist() == pytest.approx(expected.tolist(), rel=2e-2)


def test_second_derivatives_and_the_transforms_of_torch_func(name: str) -> None:
    if name in SAME_CODE or name in LEFT_EAGER:
        pytest.skip("the code of another loss, or not a pure function of torch's operations")
    prediction, target = (signal.double() for signal in noise(shape_for(name, 2), 13))
    loss = loss_named(name, **ONE_SIZE.get(name, {})).double()

    def total(signal: Tensor) -> Tensor:
        value: Tensor = loss(signal, target).sum()
        return value

    values, gradient = value_and_gradient(loss, prediction, target)
    direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    signal = prediction.clone().requires_grad_()
    (again,) = torch.autograd.grad(loss(signal, target).sum(), signal, create_graph=True)
    assert (again - gradient).norm() <= 1e-10 * gradient.norm()
    (curvature,) = torch.autograd.grad((again * direction).sum(), signal)
    step = 1e-6
    above, below = (value_and_gradient(loss, prediction + sign * step * direction, target)[1] for sign in (1, -1))
    difference = (above - below) / (2 * step)
    assert (curvature - difference).norm() <= 1e-3 * difference.norm()

    assert (torch.func.grad(total)(prediction) - gradient).norm() <= 1e-10 * gradient.norm()
    value, slope = torch.func.jvp(total, (prediction,), (direction,))[:2]
    assert torch.allclose(value, values.sum()) and torch.allclose(slope, (gradient * direction).sum(), rtol=1e-8)
    each = torch.func.vmap(lambda one, other: loss(one[None], other[None])[0])(prediction, target)
    assert torch.allclose(each, values)


@pytest.mark.slow
def test_compiled_equals_eager(name: str) -> None:
    if name in SAME_CODE:
        pytest.skip(f"the code of {SAME_CODE[name]}, with other sizes; takes seconds")
    prediction, target = noise(shape_for(name, 2), 7)
    torch._dynamo.reset()
    eager, compiled = (loss_named(name, **ONE_SIZE.get(name, {})) for _ in range(2))  # they may draw random numbers
    module = torch.compile(compiled, backend="aot_eager", fullgraph=name not in LEFT_EAGER)
    values, gradient = value_and_gradient(module, prediction, target)
    expected, reference = value_and_gradient(eager, prediction, target)
    assert torch.allclose(values, expected, rtol=1e-6)
    assert (gradient - reference).norm() <= 1e-5 * reference.norm()


def test_all_of_it_moves_to_another_device(name: str) -> None:
    if name == "pesq":  # torchaudio filters sample by sample there, which takes 10 s
        assert all(tensor.is_meta for tensor in _measure(torch.device("meta")).state_dict().values())
        return
    loss = loss_named(name).to("meta")
    assert all(tensor.is_meta for tensor in (*loss.parameters(), *loss.buffers()))
    prediction, target = (signal.to("meta") for signal in noise(shape_for(name, 2), 8))
    prediction.requires_grad_()
    values = loss.reduced(loss.function(prediction, target))  # autocast does not support this device
    (gradient,) = torch.autograd.grad(values.sum(), prediction)
    assert values.is_meta and values.shape == (2,) and gradient.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    prediction, target = noise(shape_for(name, 2), 9)
    # Values in float32; gradients in float64, as that of a logarithm is ill-conditioned in float32.
    expected = loss_named(name)(prediction, target)
    values = loss_named(name).cuda()(prediction.cuda(), target.cuda())
    assert values.is_cuda and values.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    _, reference = value_and_gradient(loss_named(name).double(), prediction.double(), target.double())
    moved = loss_named(name).double().cuda()
    _, gradient = value_and_gradient(moved, prediction.double().cuda(), target.double().cuda())
    assert (gradient.cpu() - reference).norm() <= 1e-4 * reference.norm()


def test_state_is_restored(name: str) -> None:
    prediction, target = noise(shape_for(name, 2), 10)
    loss, resumed = loss_named(name), loss_named(name)
    assert type(loss).__name__ in repr(loss) and "reduction='none'" in repr(loss)
    for _ in range(2):
        value_and_gradient(loss, prediction, target)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for _ in range(2):
        results = (value_and_gradient(one, prediction, target) for one in (loss, resumed))
        assert all(map(torch.equal, *results))


def test_input_need_not_be_contiguous(name: str) -> None:
    (items, _, samples), channels = shape_for(name, 2), 2
    turned = [signal.transpose(0, 2) for signal in noise((samples, channels, items), 11)]
    strided = [signal[..., ::2] for signal in noise((items, channels, 2 * samples), 11)]
    for prediction, target in (turned, strided):
        assert not prediction.is_contiguous()
        expected, reference = value_and_gradient(loss_named(name), prediction.contiguous(), target.contiguous())
        values, gradient = value_and_gradient(loss_named(name), prediction, target)
        assert torch.allclose(values, expected, rtol=1e-5)
        assert (gradient - reference).norm() <= 1e-4 * reference.norm()


def test_shapes_that_do_not_fit_are_named(name: str) -> None:
    loss = loss_named(name)
    items, channels, samples = shape = shape_for(name, 3)
    short, mono, one = (items, channels, samples - 1), (items, 3, samples), (1, channels, samples)
    for other in (short, mono, one, (items, samples)):
        for pair in ((shape, other), (other, shape)):
            message = " and ".join(str(list(size)) for size in pair)
            with pytest.raises(ValueError, match=re.escape(message)):
                loss(*map(torch.zeros, pair))
    with pytest.raises(ValueError, match=re.escape(f"{[items, samples]} and {[items, samples]}")):
        loss(torch.zeros(items, samples), torch.zeros(items, samples))


def least_samples(loss: Loss, samples: int, channels: int) -> int | None:
    """The number of samples that the error for so short a signal names; None if there is no error."""
    try:
        assert loss(*noise((1, channels, samples), 12)).isfinite().all()
    except ValueError as error:
        (least,) = re.findall(r"at least (\d+) samples", str(error))
        return int(least)
    return None


def test_a_signal_that_is_too_short_is_refused_with_the_length_it_needs(name: str) -> None:
    _, channels, _ = shape_for(name, 1)
    loss = loss_named(name)
    least = least_samples(loss, 1, channels)
    assert least == LEAST.get(name, least)
    if least is not None:
        assert least_samples(loss, least - 1, channels) == least
        assert least_samples(loss, least, channels) is None
        assert math.isfinite(value_and_gradient(loss, *noise((1, channels, least), 12))[1].sum().item())
