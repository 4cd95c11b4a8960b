"""The transformer, its optimiser, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encore.codecs.bands import BANDS
from encore.models import attention
from encore.models.attention import rotate, window_attention
from encore.models.band_levels import FEATURES
from encore.models.transformer import (
    FADE_FRAMES,
    MATCH_RATE,
    NOISE_CHANNELS,
    RESIDUAL_RATE,
    ContinuationTransformer,
    KVCache,
)
from encore.training.optim import Schedule, adamw, averaged

D, STEPS = 6, 4


def new_model(
    window: int = 20, layers: int = 2, start_at_prior: bool = False, lively: bool = True
) -> ContinuationTransformer:
    """In evaluation mode; `lively`: with weights large enough for attention to distinguish frames."""
    torch.manual_seed(0)
    model = ContinuationTransformer(D, 16, 2, layers, dropout=0.0, window=window, start_at_prior=start_at_prior)
    if lively:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.set_statistics(torch.rand(D) + 0.5)
    return model.eval()


@pytest.fixture
def model() -> ContinuationTransformer:
    return new_model()


def inputs(blocks: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Noise and a prior for so many blocks."""
    generator = torch.Generator().manual_seed(blocks)
    noise, prior = (torch.randn(rows, d, blocks * STEPS, generator=generator) for d in (NOISE_CHANNELS, D))
    return noise, prior


def block(values: Tensor, number: int) -> Tensor:
    return values[..., number * STEPS : (number + 1) * STEPS]


@torch.no_grad()
def one_by_one(
    model: ContinuationTransformer, context: Tensor, following: Tensor, noise: Tensor, prior: Tensor
) -> tuple[Tensor, KVCache]:
    """Blocks generated one by one, with the true frames appended to the cache after each; and the cache."""
    cache, made = model.prefill(context), list[Tensor]()
    for number in range(noise.shape[-1] // STEPS):
        made.append(model.decode_block(cache, STEPS, block(noise, number), block(prior, number)))
        cache = model.prefill(block(following, number), cache)
    return torch.cat(made, -1), cache


def test_shapes(model: ContinuationTransformer) -> None:
    context = torch.randn(3, D, 20)
    noise, prior = inputs(1)
    assert model(context, 7).shape == (3, D, 7)
    assert model(context, STEPS, noise, prior).shape == (3, D, STEPS)
    both = torch.cat([noise, noise], -1)
    assert model(context, STEPS, both, torch.cat([prior, prior], -1), starts=[8, 16]).shape == (3, D, 2 * STEPS)
    assert model(context[:1], STEPS, noise, prior).shape == (3, D, STEPS)  # three rows of one context


@pytest.mark.parametrize("window", [9, 20, 500])
def test_blocks_in_one_pass_equal_those_generated_one_by_one(window: int) -> None:
    """Also where the window is shorter than the past, and over many blocks."""
    model, count = new_model(window, layers=3), 30
    context, following = torch.randn(3, D, 20), torch.randn(3, D, count * STEPS)
    noise, prior = inputs(count)
    expected, cache = one_by_one(model, context, following, noise, prior)
    starts = [20 + STEPS * number for number in range(count)]
    with torch.no_grad():
        made = model(torch.cat([context, following], -1), STEPS, noise, prior, starts)
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert cache.end == 20 + count * STEPS
    kept = min(window, cache.end)
    assert {part.shape[2] for part in cache.keys + cache.values} == {kept}
    # Any number of blocks in any order.
    chosen = [number for number in (7, 2, 29)]
    parts = [torch.cat([block(values, number) for number in chosen], -1) for values in (noise, prior)]
    with torch.no_grad():
        some = model(
            torch.cat([context, following], -1), STEPS, *parts, [starts[number] for number in chosen], None, 20
        )
    for place, number in enumerate(chosen):
        assert (block(some, place) - block(expected, number)).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_of_one_item_share_its_context(model: ContinuationTransformer) -> None:
    contexts = torch.randn(2, D, 20)
    noise, prior = inputs(1, rows=6)
    with torch.no_grad():
        made = model(contexts, STEPS, noise, prior)
        assert torch.allclose(made, model(contexts.repeat_interleave(3, 0), STEPS, noise, prior), atol=1e-5)
        assert not torch.allclose(made[0], made[1], atol=1e-2)  # the noise has an effect


@pytest.mark.parametrize(("window", "layers"), [(5, 1), (5, 3), (100, 2)])
def test_a_block_attends_to_the_past_as_far_as_its_layers_reach(window: int, layers: int) -> None:
    """Gradients of a block: to no frame of its own or later, and through every layer to `window` frames more."""
    model, begin = new_model(window, layers), 30
    history = torch.randn(1, D, 50, requires_grad=True)
    noise, prior = inputs(2, rows=1)
    made = model(history, STEPS, noise, prior, starts=[begin, begin + 10], context_frames=4)
    (gradient,) = torch.autograd.grad(block(made, 0).square().sum(), history)
    seen = gradient.abs().sum((0, 1)) > 0
    # A block attends to `window` past frames; each further layer adds the `window − 1` frames that these attend to.
    reach = window + (layers - 1) * (window - 1)
    # All latents are normalised with the context's statistics, so the first four frames have a gradient in any case.
    assert seen.tolist()[4:] == [begin - reach <= frame < begin for frame in range(4, 50)]


def test_a_frame_attends_to_its_whole_block_and_to_no_other(model: ContinuationTransformer) -> None:
    noise, prior = inputs(2, rows=1)
    noise.requires_grad_()
    made = model(torch.randn(1, D, 30), STEPS, noise, prior, starts=[20, 30])
    for frame in (0, STEPS - 1):
        (gradient,) = torch.autograd.grad(made[..., frame].square().sum(), noise, retain_graph=True)
        assert (gradient.abs().sum((0, 1)) > 0).tolist() == [True] * STEPS + [False] * STEPS


@pytest.mark.parametrize(
    ("window", "queries", "frames"), [(9, 30, 30), (9, 7, 30), (40, 30, 30), (40, 13, 30), (1, 5, 5)]
)
def test_attention_in_chunks_equals_attention_with_a_dense_mask(
    window: int, queries: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)
    q, k, v = (torch.randn(2, 3, frames, 8, dtype=torch.float64) for _ in range(3))
    query, key = torch.arange(frames)[:, None], torch.arange(frames)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=(key <= query) & (key > query - window))
    last = frames - queries
    assert torch.allclose(window_attention(q[:, :, last:], k, v, window), dense[:, :, last:], atol=1e-12)


def test_the_work_grows_linearly_with_the_context() -> None:
    """Of 1024, 2048 and 4096 frames; with the kernel whose multiplications the counter knows."""
    model, flops = new_model(window=256, layers=3), []
    for frames in (1024, 2048, 4096):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.prefill(torch.randn(1, D, frames), first=0)
        flops.append(counter.get_total_flops())
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=0.01)


def test_what_no_block_attends_to_is_not_computed() -> None:
    """A block at frame 4096 sees 2 · 100 frames through two layers, however long the context is."""
    model, flops = new_model(window=100, layers=2), []
    for frames in (300, 4096):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, D, frames), STEPS, starts=[frames])
        flops.append(counter.get_total_flops())
    assert flops[1] == flops[0]


def test_recomputing_activations_changes_no_gradient_and_keeps_less() -> None:
    gradients, kept = [], []
    for recompute in (False, True):
        model = new_model().train()
        model.recompute = recompute
        for layer in model.layers:
            layer.drop.p = 0.5  # dropout is the same when it is computed again
        noise, prior = inputs(2)
        torch.manual_seed(1)
        sizes = dict[int, int]()

        def pack(value: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            made = model(torch.randn(3, D, 60), STEPS, noise, prior, starts=[40, 60])
        gradients.append(torch.autograd.grad(made.square().sum(), [*model.parameters()], materialize_grads=True))
        kept.append(sum(sizes.values()))
    assert all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(*gradients, strict=True))
    assert kept[1] < 0.6 * kept[0]


def test_an_output_projection_of_zeros_gives_the_prior() -> None:
    model = new_model(start_at_prior=True, lively=False)
    noise, prior = inputs(1)
    context = torch.randn(3, D, 20)
    assert torch.equal(model(context, STEPS, noise, prior), prior)
    silent = model(context, STEPS, noise)
    assert torch.allclose(silent, context.mean(-1, keepdim=True).expand_as(silent), atol=1e-6)
    elsewhere = new_model(lively=False)(torch.randn(3, D, 20), STEPS, noise, prior)
    assert not torch.allclose(elsewhere, prior, atol=1e-3)


@torch.no_grad()
def test_gate_and_residual_act_on_normalised_latents() -> None:
    model = new_model(start_at_prior=True, lively=False)
    context, (noise, prior), gate, residual = torch.randn(3, D, 20), inputs(1), torch.randn(D), torch.randn(D)
    mean, std = context.mean(-1, keepdim=True), context.std(-1, correction=0, keepdim=True)
    guess = (prior - mean) / std
    nn.init.zeros_(model.out_proj.weight)
    model.out_proj.bias.copy_(torch.cat([gate, residual]))
    model.scale.fill_(0.25 / RESIDUAL_RATE)
    expected = ((1 + 0.25 * gate[:, None]) * guess + 0.25 * residual[:, None]) * std + mean
    assert torch.allclose(model(context, STEPS, noise, prior), expected, atol=1e-5)


def gains_of(shares: list[list[float]], spread: float, noise: Tensor, bands: Tensor) -> Tensor:
    """Of blocks of 40 frames after any context."""
    model = new_model(start_at_prior=True, lively=False)
    assert model.gains is not None
    model.gains.shares.copy_(torch.tensor(shares) / MATCH_RATE)
    model.gains.spread.bias.fill_(spread)
    rows, count = bands.shape[:2]
    prior = torch.randn(rows, D, 40 * count)
    made = model(torch.randn(1, D, 20), 40, noise, prior, [20] * count, bands=bands)
    assert made.shape == (rows, D + BANDS, 40 * count) and torch.equal(made[:, :D], prior)
    return made[:, D:].unflatten(-1, (count, 40))


@torch.no_grad()
def test_gains_take_their_shares_of_each_blocks_mismatches() -> None:
    bands = torch.zeros(2, 3, BANDS, FEATURES)
    bands[..., :2] = torch.rand(2, 3, BANDS, 2) - 0.5
    gains = gains_of([[0.3, 0.1], [0.2, 0.0]], 0.0, torch.randn(2, NOISE_CHANNELS, 120), bands)
    mismatch = bands.permute(3, 0, 2, 1)
    decay = (-torch.arange(40) / FADE_FRAMES).exp()
    expected = (0.3 * mismatch[0] + 0.1 * mismatch[1])[..., None] + 0.2 * mismatch[0][..., None] * decay
    assert torch.allclose(gains, expected, atol=1e-6)


@torch.no_grad()
def test_a_drawn_gain_sets_in_and_stays() -> None:
    """As large as the noise of its band says, in the first block and in one that goes on with the same excerpt."""
    noise = torch.randn(1, NOISE_CHANNELS, 1).expand(-1, -1, 40)
    bands = torch.zeros(1, 1, BANDS, FEATURES)
    bands[..., -2], bands[..., -1] = 0.5, 1.0
    shares, spread = [[0.3, 0.1], [0.2, 0.0]], 0.2
    drawn = spread * 0.5 * noise[0, :BANDS, 0] - (spread * 0.5) ** 2 / 2
    first = gains_of(shares, spread, noise, bands)[0, :, 0]
    assert first[:, 0].abs().max() == 0
    assert torch.allclose(first[:, -1], drawn, atol=0.1 * float(drawn.abs().max()))
    bands[..., :2], bands[..., -1] = drawn[:, None], 0.0  # what is played is louder by it already
    assert torch.allclose(gains_of(shares, spread, noise, bands)[0, :, 0], drawn[:, None].expand(-1, 40), atol=1e-6)


@torch.no_grad()
def test_gains_are_bounded() -> None:
    bands = torch.ones(1, 1, BANDS, FEATURES)
    gains = gains_of([[100.0, 100.0], [0.0, 0.0]], 100.0, torch.randn(1, NOISE_CHANNELS, 40), bands)
    assert gains.abs().max() <= 1.5


@torch.no_grad()
def test_a_continuation_is_as_loud_as_its_context(model: ContinuationTransformer) -> None:
    """20 dB quieter in one item and 20 dB louder in another, both off centre: the same of the continuation."""
    context, following, gain, mean = (
        torch.randn(2, D, 9),
        torch.randn(2, D, 5 * STEPS),
        [0.1, 10.0],
        torch.randn(2, D, 1),
    )
    noise, prior = inputs(5, rows=2)

    def changed(values: Tensor) -> Tensor:
        return values * torch.tensor(gain)[:, None, None] + mean

    plain, cache = one_by_one(model, context, following, noise, prior)
    other, later = one_by_one(model, changed(context), changed(following), noise, changed(prior))
    assert torch.allclose(other, changed(plain), atol=1e-4)
    # Blocks within the past, in one pass: statistics are of the context alone, not of what has followed it.
    whole = torch.cat([changed(context), changed(following)], -1)
    starts = [9 + STEPS * number for number in range(1, 5)]
    noise, prior = noise[..., STEPS:], changed(prior)[..., STEPS:]
    together = model(whole, STEPS, noise, prior, starts, context_frames=9)
    assert torch.allclose(together, other[..., STEPS:], atol=1e-4)
    assert not torch.allclose(model(whole, STEPS, noise, prior, starts), together, atol=1e-2)
    assert torch.equal(later.std, model.statistics(changed(context))[1]) and later.std.shape == (2, D, 1)


@torch.no_grad()
def test_silence_in_a_channel_has_a_deviation_of_a_thousandth_of_the_corpus(model: ContinuationTransformer) -> None:
    context, (noise, prior) = torch.randn(3, D, 20), inputs(1)
    context[:, 2:] = 0
    std = model.statistics(context)[1]
    assert torch.equal(std[:, 2:], (1e-3 * model.std[2:]).expand(3, -1, 1))
    assert torch.allclose(std[:, :2], context[:, :2].std(-1, correction=0, keepdim=True))
    made = model(context, STEPS, noise, 100 * prior)
    assert made.isfinite().all()
    model.set_statistics(torch.zeros(D))
    assert model.statistics(context)[1][0, 2] == 1e-3  # a channel that is constant in the corpus too


def test_the_model_is_given_the_level_of_the_noise_on_its_context(model: ContinuationTransformer) -> None:
    context, (noise, prior) = torch.randn(3, D, 20), inputs(1)
    with torch.no_grad():
        none = model(context, STEPS, noise, prior)
        assert torch.equal(model(context, STEPS, noise, prior, level=torch.zeros(3)), none)
        other = model(context, STEPS, noise, prior, level=torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(other[0], none[0], atol=1e-5)
    assert not torch.allclose(other[1], none[1], atol=1e-3) and not torch.allclose(other[2], other[1], atol=1e-3)


def test_rotary_attention_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    frequencies = 10000.0 ** (-torch.arange(4) / 4)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, torch.tensor([[position]]) * frequencies) for x, position in ((query, at), (key, other))]
        return (turned[0] * turned[1]).sum().item()

    assert score(3, 10) == pytest.approx(score(103, 110), rel=1e-4)
    assert score(3, 10) != pytest.approx(score(3, 11), rel=1e-2)


def test_positions_stay_exact_after_days_of_music(model: ContinuationTransformer) -> None:
    """Ten million frames (37 hours) later the same blocks must follow, as attention depends on distances only."""
    context, following = torch.randn(3, D, 20), torch.randn(3, D, 5 * STEPS)
    noise, prior = inputs(5)
    expected, _ = one_by_one(model, context, following, noise, prior)
    with torch.no_grad():
        nothing = [part[:, :, :0] for part in model.prefill(context).keys]
        later = KVCache(nothing, nothing, *model.statistics(context), 10_000_000)
        cache, made = model.prefill(context, later), list[Tensor]()
        for number in range(5):
            made.append(model.decode_block(cache, STEPS, block(noise, number), block(prior, number)))
            cache = model.prefill(block(following, number), cache)
    assert cache.end == 10_000_020 + 5 * STEPS
    assert (torch.cat(made, -1) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_order_matters_to_the_model(model: ContinuationTransformer) -> None:
    context, (noise, prior) = torch.randn(1, D, 8), inputs(1, rows=1)
    swapped = context[..., [1, 0, *range(2, 8)]]
    assert not torch.allclose(model(context, STEPS, noise, prior), model(swapped, STEPS, noise, prior), atol=1e-3)


def test_weight_decay_is_for_matrices_only(model: ContinuationTransformer) -> None:
    groups = adamw(model, 1e-3, 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"]) and all(p.dim() == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_warm_up_then_cosine_to_zero() -> None:
    schedule = Schedule("cosine", peak=2.0, warmup=4, total=24)
    assert [schedule.lr(step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert schedule.lr(14) == pytest.approx(1.0)
    assert schedule.lr(24) == pytest.approx(0.0, abs=1e-12)
    assert schedule.lr(9) == pytest.approx(1 + math.cos(math.pi / 4))


def test_constant_and_plateau() -> None:
    assert Schedule("constant", 2.0, 0, 10).lr(9) == 2.0
    plateau = Schedule("plateau", 2.0, 0, 100)
    for loss in (1.0, *[1.0] * 6):
        plateau.epoch_ended(loss)
    assert plateau.lr(50) == 1.0
    other = Schedule("plateau", 2.0, 0, 100)
    other.load_state_dict(plateau.state_dict())
    for schedule in (plateau, other):
        for _ in range(6):
            schedule.epoch_ended(1.0)
    assert plateau.lr(50) == other.lr(50) == 0.5


def test_averaged_weights_follow_the_formula(model: ContinuationTransformer) -> None:
    ema = averaged(model, decay=0.15)
    expected = None
    for update in range(4):
        with torch.no_grad():
            model.in_proj.weight.fill_(float(update))
        ema.update_parameters(model)
        decay = min(0.15, (1 + update) / (10 + update))
        # The first update copies the weights.
        expected = float(update) if expected is None else decay * expected + (1 - decay) * update
    assert ema.module.get_parameter("in_proj.weight")[0, 0].item() == pytest.approx(expected)
