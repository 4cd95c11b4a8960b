"""The audible distances against NumPy in float64, what they hear and what they don't, and how they rank music."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import losses
from losses.dsp.scales import SpecificLoudness, hearing_threshold
from losses.dsp.transforms import ERB
from tests.signals import RATE, loss_named, music, noise
from tests.test_spectrograms import Pair, magnitudes

SECOND = RATE


def bands_of_hearing(n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres in Hz and triangles `[bands, bins]`, one ERB or bin apart."""
    edges = [0.0]
    while edges[-1] < RATE / 2:
        edges.append(edges[-1] + max(24.7 * (4.37 * edges[-1] / 1000 + 1), RATE / n_fft))
    hertz = np.arange(n_fft // 2 + 1) * RATE / n_fft
    heights = [np.interp(hertz, edges[k - 1 : k + 2], [0, 1, 0]) for k in range(1, len(edges) - 1)]
    return np.array(edges[1:-1]), np.stack(heights)


def terhardt(hertz: np.ndarray) -> np.ndarray:
    khz = np.maximum(hertz, 20) / 1000
    return 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 0.001 * khz**4


def audible_energy(pair: Pair) -> float:
    def sones(spectra: np.ndarray, n_fft: int) -> np.ndarray:
        hertz, triangles = bands_of_hearing(n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        power = 10**9 * spectra**2 @ triangles.T / (n_fft / 4 * (window**2).sum())
        weighting = librosa.A_weighting(hertz)
        power *= 10 ** (weighting / 10)
        floor = 10 ** ((weighting + terhardt(hertz)) / 10) + 10**-6.5 * power.sum(-1).mean()
        return 0.047 * ((power + floor) ** 0.2 - floor**0.2)

    values = []
    for n_fft in (512, 1024, 2048):
        p, t = (sones(spectra, n_fft) for spectra in magnitudes(pair, n_fft, n_fft // 4))
        values.append(np.abs(p - t).sum(-1).mean())
    return float(np.mean(values))


def floored_mel(pair: Pair) -> float:
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, norm=None, dtype=np.float64)
    floor = 10**-7.5 * 3 * 1024**2 / 32
    p, t = (np.log(values**2 @ filters.T + floor) / 2 for values in magnitudes(pair, 1024, 256))
    return np.abs(p - t).mean()


@pytest.mark.parametrize("signals", [noise, music])
@pytest.mark.parametrize("shape", [(2, 2, 5000), (1, 1, 2049)])
@pytest.mark.parametrize("reference", [audible_energy, floored_mel], ids=lambda function: function.__name__)
def test_values_are_those_of_numpy(
    reference: Callable[[Pair], float], shape: tuple[int, ...], signals: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    prediction, target = signals(shape, 0)
    expected = [reference((p.double().numpy(), t.double().numpy())) for p, t in zip(prediction, target, strict=True)]
    loss = loss_named(reference.__name__)
    assert loss(prediction.double(), target.double()).tolist() == pytest.approx(expected, rel=1e-6)
    assert loss(prediction, target).tolist() == pytest.approx(expected, rel=1e-4)


def sine(hertz: float, level_db: float, seconds: float = 1.0) -> Tensor:
    """`level_db` dB relative to full scale, `[1, 1, N]`, float64."""
    clock = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    return 10 ** (level_db / 20) * torch.sin(2 * math.pi * hertz * clock)[None, None]


@pytest.mark.parametrize("n_fft", [512, 1024, 2048])
@pytest.mark.parametrize("hertz", [400.0, 3000.0, 9000.0])
def test_a_sine_of_full_scale_has_full_power_wherever_it_lies(n_fft: int, hertz: float) -> None:
    transform = ERB(n_fft, power=2, sample_rate=RATE)
    power = transform(sine(hertz, 0))[..., 8:-8, :] / (3 * n_fft**2 / 32)
    assert power.sum(-1) == pytest.approx(1.0, rel=1e-3)
    loudest = transform.frequencies[int(power.mean((0, 1, 2)).argmax())]
    assert abs(loudest - hertz) <= max(RATE / n_fft, 24.7 * (1 + 4.37e-3 * hertz))


def test_the_threshold_of_hearing_is_terhardts() -> None:
    hertz = torch.tensor([0.0, 20.0, 100.0, 1000.0, 3300.0, 10000.0], dtype=torch.float64)
    assert hearing_threshold(hertz).tolist() == pytest.approx([83.2, 83.2, 23.0, 3.4, -4.9, 10.6], abs=0.1)


def sones(signal: Tensor, n_fft: int = 2048, **settings: float) -> float:
    transform = ERB(n_fft, power=2, sample_rate=RATE)
    scale = SpecificLoudness(transform.frequencies, 3 * n_fft**2 / 32, **settings)
    return float(scale(transform(signal)).sum(-1).mean())


def test_loudness_doubles_every_15_db_and_is_greatest_where_the_ear_is_sensitive() -> None:
    levels = [sones(sine(1000, level)) for level in (0, -15, -30)]
    assert levels[0] / levels[1] == pytest.approx(2, rel=0.06) and levels[1] / levels[2] == pytest.approx(2, rel=0.06)
    bass, middle, treble = (sones(sine(hertz, -40)) for hertz in (60, 3000, 11000))
    assert bass < treble < middle
    assert sones(sine(60, -80)) < 0.02 * sones(sine(3000, -80)), "60 Hz at 10 dB SPL is below the threshold"


def test_what_lies_below_the_floor_of_an_item_hardly_counts() -> None:
    """The same hiss: alone, beside a tone 50 dB above it, and beside one 85 dB above."""
    hiss = noise((1, 1, SECOND), 3, 10 ** (-85 / 20))[0].double()
    loss = loss_named("audible_energy")
    alone = loss(hiss, 0 * hiss).item()
    soft, loud = (loss(sine(500, level) + hiss, sine(500, level)).item() for level in (-35, 0))
    assert soft > 0.3 * alone
    assert loud < 0.2 * soft
    # The paper's distance does not know what is audible.
    tone, plain = sine(500, 0), loss_named("spectral_energy")
    other = noise((1, 1, SECOND), 4, 0.1)[0].double()
    assert plain(tone + hiss, tone) > 0.1 * plain(other, tone)
    assert loss(tone + hiss, tone) < 0.02 * loss(other, tone)
    mel = loss_named("floored_mel")
    assert mel(tone + hiss, tone) < 0.2 * loss_named("mel")(tone + hiss, tone)


def varied_signals() -> Tensor:
    """Music and noise of several levels, mixtures, silence, a click: `[R, 1, N]`."""
    tunes = [tune for seed in (1, 2, 3) for tune in music((1, 1, 6000), seed)]
    sounds = [*tunes, *noise((1, 1, 6000), 5), *noise((1, 1, 6000), 6, 0.01)]
    sounds += [0.02 * tunes[0], 3 * tunes[1], tunes[0] + sounds[7], 0.5 * (tunes[2] + tunes[3]), 0 * tunes[0]]
    click = torch.zeros(1, 1, 6000)
    click[..., 3000] = 1
    return torch.cat([*sounds, click]).double()


@pytest.mark.parametrize("name", [name for name, entry in losses.REGISTRY.items() if entry.distance])
def test_a_distance_is_symmetric_and_of_negative_type(name: str) -> None:
    """`−½ J D J` has no negative eigenvalue, D the distances of any signals, J the projection off the mean."""
    signals, loss = varied_signals(), loss_named(name)
    first, second = torch.cartesian_prod(*[torch.arange(len(signals))] * 2).T
    with torch.no_grad(), losses.shared_spectra():
        distances = loss(losses.shared_rows(signals, first), losses.shared_rows(signals, second))
    table = distances.unflatten(0, (len(signals), len(signals)))
    assert torch.allclose(table, table.T, rtol=1e-9)
    centre = torch.eye(len(signals)).double() - 1 / len(signals)
    values = torch.linalg.eigvalsh(-0.5 * centre @ table @ centre)
    assert values.min() > -1e-9 * values.max()


def piece(seed: int, seconds: float, level: float) -> Tensor:
    """Plucked notes of the piece's own four pitches, four a second, over the two lowest, `[N]`; RMS `level`."""
    random = np.random.default_rng(seed)
    pitches = 110 * 2 ** random.uniform(0, 3, 4)
    clock = np.arange(RATE // 4) / RATE
    notes = []
    for pitch in random.choice(pitches, round(4 * seconds)):
        partials = [np.sin(2 * np.pi * pitch * k * clock) / k for k in range(1, 12) if pitch * k < RATE / 2]
        notes.append(sum(partials) * np.exp(-random.uniform(4, 9) * clock) * random.uniform(0.5, 1))
    clock = np.arange(len(notes) * len(clock)) / RATE
    drone = sum(np.sin(2 * np.pi * pitch * k * clock) / k for pitch in sorted(pitches)[:2] for k in range(1, 7))
    sound = np.concatenate(notes) + drone + random.normal(0, 1e-3, len(clock))
    return torch.from_numpy(level * sound / np.sqrt(np.mean(sound**2)))


def through_mp3(sound: Tensor) -> Tensor:
    """At 128 kb/s, `[N]`: a compression level of 0.21 is the nearest to it at 24 kHz."""
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", RATE, 1, format="MP3", compression_level=0.21, bitrate_mode="CONSTANT"
    ) as coded:
        coded.write(sound.numpy())
    assert 8 * file.tell() / (len(sound) / RATE) == pytest.approx(128e3, rel=0.05)
    file.seek(0)
    return torch.from_numpy(soundfile.read(file)[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["audible_energy", "floored_mel"])
def test_what_sounds_the_same_is_nearer_than_any_replay_and_that_than_other_music(name: str, seed: int) -> None:
    sound, other = piece(2 * seed, 6, 0.1), piece(2 * seed + 1, 3, 0.1)
    context, truth = sound[: 3 * RATE], sound[3 * RATE :]
    hiss = noise(truth.shape, seed, 0.1)[0].double()
    like = {
        "noise at 30 dB": truth + 10**-1.5 * hiss,
        "louder": truth * 10 ** (1 / 20),
        "softer": truth * 10 ** (-1 / 20),
        "late": sound[3 * RATE - 240 : -240],
        "mp3": through_mp3(truth),
    }
    replays = {f"replay {lag / RATE} s": context.roll(lag) for lag in range(0, 3 * RATE, RATE // 8)}
    different = {"other music": other, "noise": hiss, "silence": 0 * truth}
    if name == "floored_mel":
        del like["noise at 30 dB"]  # where no note is, it is far above −75 dBFS
    loss = loss_named(name)
    distances = {
        kind: {key: loss(value[None, None], truth[None, None]).item() for key, value in sounds.items()}
        for kind, sounds in {"like": like, "replays": replays, "different": different}.items()
    }
    assert max(distances["like"].values()) < min(distances["replays"].values()), distances
    assert np.mean([*distances["replays"].values()]) < min(distances["different"].values()), distances


def variogram(pair: Pair) -> float:
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=40, norm=None, dtype=np.float64)
    curves = []
    for spectra in magnitudes(pair, 1024, 480):
        levels = np.log(spectra**2 @ filters.T + 10**-7.5 * 3 * 1024**2 / 32) / 2
        onsets = np.maximum(np.diff(levels, axis=1), 0).mean(-1)
        longest = min(100, onsets.shape[1] // 2)
        starts = onsets.shape[1] - longest
        gamma = np.stack(
            [np.abs(onsets[:, lag : lag + starts] - onsets[:, :starts]).mean(1) for lag in range(2, longest + 1)], 1
        )
        curves.append(gamma / (0.02 + gamma.mean(1, keepdims=True)))
    return np.abs(curves[0] - curves[1]).mean()


@pytest.mark.parametrize("shape", [(2, 1, 30000), (1, 2, 2400), (1, 1, 5 * RATE)])
def test_the_variogram_is_that_of_numpy(shape: tuple[int, ...]) -> None:
    prediction, target = music(shape, 0)
    expected = [variogram((p.double().numpy(), t.double().numpy())) for p, t in zip(prediction, target, strict=True)]
    loss = loss_named("variogram")
    assert loss(prediction.double(), target.double()).tolist() == pytest.approx(expected, rel=1e-9)


def beat(seed: int, seconds: float, spacing: float) -> Tensor:
    """Bursts of noise, a loud one and three soft ones in turn, `spacing` seconds apart, `[1, 1, N]`."""
    random = np.random.default_rng(seed)
    sound, each = random.normal(0, 1e-3, round(seconds * RATE)), round(spacing * RATE)
    for number, start in enumerate(range(0, len(sound) - each, each)):
        burst = random.normal(0, 0.3 if number % 4 == 0 else 0.1, each)
        sound[start : start + each] += burst * np.exp(-np.arange(each) / (0.03 * RATE))
    return torch.from_numpy(sound)[None, None]


def test_the_variogram_alone_hears_order() -> None:
    """Against the truth: a replay of the context, the context's shards of 100 ms, another tempo, the truth later."""
    sound = beat(0, 8, 0.25)
    context, truth = sound.chunk(2, dim=-1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    sounds = {
        "replay": context.roll(33_000, -1),
        "shards": context.unflatten(-1, (40, -1))[:, :, order].flatten(2),
        "tempo": beat(1, 4, 0.19),
        "late": sound[..., 4 * RATE - 1000 : -1000],
    }
    heard, mean = (
        {key: loss_named(name)(value, truth).item() for key, value in sounds.items()}
        for name in ("variogram", "audible_energy")
    )
    assert 3 * max(heard["replay"], heard["late"]) < min(heard["shards"], heard["tempo"]), heard
    assert mean["shards"] < 1.2 * mean["replay"], mean


@pytest.mark.parametrize("level", [1e-3, 0.1])
def test_gradients_lead_from_noise_to_music(level: float) -> None:
    """From far below the music's level and from the same; down to a fifth of the distance."""
    target = music((1, 1, 6000), 7)[0]
    signal = noise((1, 1, 6000), 8, level)[0].requires_grad_()
    loss = loss_named("audible_energy")
    optimiser = torch.optim.Adam([signal], 0.01)
    values = []
    for _ in range(80):
        optimiser.zero_grad()
        value = loss(signal, target).sum()
        value.backward()
        assert signal.grad is not None and signal.grad.isfinite().all()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0], values
