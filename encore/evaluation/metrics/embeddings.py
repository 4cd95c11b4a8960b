"""Feature spaces in which continuations are compared: log-mel patches, codec latents, pretrained networks."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks, resample

from encore.errors import EncoreError
from losses.embedding.networks import PANNS_FILE, Panns, load_state

PATCH_SECONDS = 0.5
BANDS = 40
FRAMES = 16  # of a log-mel patch
WINDOW_SECONDS = 0.085  # of the spectra: long enough for a bass, short enough for a drum
FLOOR = 1e-10  # of a band's power, −100 dB: anything quieter counts as silence

Embedding = Callable[[Tensor, int], Tensor]  # audio [B, C, S] and its sample rate in Hz to features [B, P, F]
NETWORK_SECONDS = 1.0  # windows of the pretrained networks
# File of the weights and where to get it.
WEIGHTS = {
    "panns": (PANNS_FILE, "https://zenodo.org/records/3987831"),
    "clap": ("music_audioset_epoch_15_esc_90.14.pt", "https://huggingface.co/lukewys/laion_clap"),
}


@torch.no_grad()
def log_mel_patches(audio: Tensor, sample_rate: int, hop_seconds: float = PATCH_SECONDS) -> Tensor:
    """Audio `[B, C, S]` to log-mel patches of half a second, `[B, P, 40 · 16]`, in nepers.

    A patch has 16 frames of 40 bands: `½ ln max(mean power of the band's bins, 1e-10)`, mel bands from 0 Hz to half of
    the sample rate (weights of sum 1), power averaged over the channels, Hann windows (scaled to a sum of 1) spread
    evenly within the patch, so that it does not depend on its neighbours. An incomplete last patch is left out.

    Args:
        sample_rate: Hz.
        hop_seconds: from patch to patch.

    Raises:
        ValueError: audio shorter than half a second.
    """
    size, step = round(PATCH_SECONDS * sample_rate), max(1, round(hop_seconds * sample_rate))
    if audio.shape[-1] < size:
        raise ValueError(f"audio of shape {list(audio.shape)} is shorter than a patch of {size} samples")
    n_fft = 2 ** round(math.log2(WINDOW_SECONDS * sample_rate))
    hop = (size - n_fft) // (FRAMES - 1)
    window = torch.hann_window(n_fft, device=audio.device)
    patches = audio.float().unfold(-1, size, step)[..., : n_fft + (FRAMES - 1) * hop]  # [B, C, P, samples]
    spectra = torch.stft(
        patches.flatten(0, 2), n_fft, hop, window=window / window.sum(), center=False, return_complex=True
    )
    power = spectra.abs().square().unflatten(0, patches.shape[:3]).mean(1)  # [B, P, bins, 16]
    banks = melscale_fbanks(n_fft // 2 + 1, 0, sample_rate / 2, BANDS, sample_rate).to(audio.device)
    bands = (banks / banks.sum(0)).T @ power
    return bands.clamp_min(FLOOR).log().flatten(2) / 2


def pooled(patches: Tensor) -> Tensor:
    """Mean and deviation of each band over the 16 frames of log-mel patches `[B, P, 40 · 16]`: `[B, P, 80]`, in nepers.

    For too few samples for 640 features (the Fréchet distance), or where the position of a note within the patch must
    not matter (the search for copies).
    """
    bands = patches.unflatten(-1, (BANDS, FRAMES))
    return torch.cat([bands.mean(-1), bands.std(-1, correction=0)], -1)


def latent_deviation(latents: Tensor) -> Tensor:
    """Standard deviation of every latent channel over items and frames, `[B, D, T]` to `[D]`: the codec's units.

    A channel that hardly varies gets a thousandth of the mean deviation, so that dividing by it is safe.

    Raises:
        ValueError: all latents are the same.
    """
    deviation = latents.double().std((0, 2), correction=0)
    if not deviation.mean() > 0:
        raise ValueError(f"latents {list(latents.shape)} do not vary, so they cannot be normalised")
    return deviation.clamp_min(1e-3 * deviation.mean()).to(latents.dtype)


@torch.no_grad()
def latent_distance(prediction: Tensor, target: Tensor, deviation: Tensor) -> Tensor:
    """Distance between latents, `mean_t ‖(P_t − T_t) / σ‖ / √D`, in deviations; `[R, D, T]` twice to `[R]`.

    The norm is not squared, so it can be the `d` of an energy score.

    Args:
        deviation: σ of each channel, `[D]` (`latent_deviation` of real music).
    """
    difference = (prediction - target) / deviation[:, None]
    return difference.square().mean(1).sqrt().mean(1)


@torch.no_grad()
def latent_patches(latents: Tensor, frame_rate: float, deviation: Tensor, hop_seconds: float = PATCH_SECONDS) -> Tensor:
    """Mean and deviation of each latent channel over half a second, `[B, D, T]` to `[B, P, 2 D]`, in deviations.

    Args:
        frame_rate: latent frames per second.
        deviation: unit of each channel, `[D]` (`latent_deviation` of real music).
        hop_seconds: from patch to patch.

    Raises:
        ValueError: fewer frames than a patch has.
    """
    size, hop = max(1, int(PATCH_SECONDS * frame_rate)), max(1, int(hop_seconds * frame_rate))
    if latents.shape[-1] < size:
        raise ValueError(f"latents of shape {list(latents.shape)} are shorter than a patch of {size} frames")
    patches = (latents / deviation[:, None]).unfold(-1, size, hop)  # [B, D, P, frames]
    return torch.cat([patches.mean(-1), patches.std(-1, correction=0)], 1).transpose(1, 2)


def load_embedding(name: str, weights: Path | None = None, device: str = "cpu") -> Embedding:
    """A pretrained network's embedding of audio, for `--embedding panns|clap`.

    `panns` is the audio tagger Cnn14 (Kong et al. 2020; panns-inference; 32 kHz, F = 2048), `clap` LAION's
    language-audio model trained on music (Wu et al. 2023; laion-clap; 48 kHz, F = 512). Both take mono.

    Args:
        weights: file of the weights; None takes it from `checkpoints/` in torch.hub's folder. Nothing is downloaded,
            except for the text model's tokenizer, which laion-clap takes from Hugging Face's cache or hub.

    Returns:
        `embedding(audio [B, C, S], sample_rate)` to `[B, P, F]`, one vector for each second; an incomplete last second
        is left out, and audio shorter than a second is a ValueError.

    Raises:
        EncoreError: no such embedding, the package is not installed, or the weights are missing or not the right ones.
    """
    if name not in WEIGHTS:
        raise EncoreError(f"--embedding {name}: no such embedding; use {' or '.join(WEIGHTS)}")
    file, address = WEIGHTS[name]
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        option = "use another path" if weights else "name it with --embedding_weights"
        raise EncoreError(
            f"--embedding {name}: no weights at {path}; get {file} from {address} and put it there, or {option}"
        )
    try:
        rate, embed = (_panns if name == "panns" else _clap)(path, device)
    except ImportError as error:
        raise EncoreError(f"--embedding {name}: {error}") from error
    except (OSError, ValueError) as error:
        raise EncoreError(
            f"--embedding {name}: {path} does not hold the weights of {file}; get them from {address} ({error})"
        ) from error

    @torch.no_grad()
    def embedding(audio: Tensor, sample_rate: int) -> Tensor:
        mono = resample(audio.float().mean(1).to(device), sample_rate, rate)
        size = int(NETWORK_SECONDS * rate)
        if mono.shape[-1] < size:
            raise ValueError(f"audio of shape {list(audio.shape)} is shorter than a window of {NETWORK_SECONDS:g} s")
        windows = mono.unfold(-1, size, size)
        return embed(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])

    return embedding


def _panns(path: Path, device: str) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Sample rate in Hz and embedding of windows `[n, samples]`."""
    network = Panns(path).to(device)
    assert network.rate is not None
    return network.rate, lambda windows: network(windows[:, None])[-1]


def _clap(path: Path, device: str) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Sample rate in Hz and embedding of windows `[n, samples]`."""
    try:
        package = importlib.import_module("laion_clap")
    except ImportError as error:
        raise ImportError(f"needs the package laion-clap ({error}): pip install laion-clap") from error
    try:
        module: Any = package.CLAP_Module(enable_fusion=False, amodel="HTSAT-base", device=device)
    except OSError as error:
        raise EncoreError(
            f"--embedding clap: laion-clap cannot load the text model roberta-base ({str(error):.200}); fetch it into "
            "Hugging Face's cache once, with a network"
        ) from error
    # The checkpoint holds a buffer of the text model that transformers 4.31 no longer has.
    load_state(module.model, path, {"text_branch.embeddings.position_ids"})
    module.eval()
    return 48000, lambda windows: module.get_audio_embedding_from_data(x=windows, use_tensor=True)
