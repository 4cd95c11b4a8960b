"""Codecs made of SEANet networks (Défossez et al. 2022, "High Fidelity Neural Audio Compression").

`SEANetCodec` wraps an encoder and a decoder of the encodec package. The pretrained models `encodec_24khz` and
`encodec_48khz` are registered here; `encore.codecs.starter.weights` has Encore's own.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import urllib.error
from pathlib import Path

import torch
from encodec import EncodecModel
from encodec.model import ROOT_URL
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from torch import Tensor, nn

from encore.codecs.base import Codec, hash_tensors, register_codec
from encore.codecs.elu import replace_elu
from encore.codecs.padding import replace_padding
from encore.errors import EncoreError
from encore.tensor_files import load_tensors

PRETRAINED = {"encodec_24khz": "encodec_24khz-d7cc33bc.th", "encodec_48khz": "encodec_48khz-7e698e3e.th"}
CHECKSUM = re.compile("[0-9a-f]{8,64}")  # at the end of a file's name
MAX_FRAMES_ON_CPU = 1500  # decoded at once: larger batches are half as fast again, limited by cache and memory


class SEANetCodec(Codec):
    """A SEANet autoencoder, optionally with a residual vector quantiser.

    A model that normalises its input's volume (encodec_48khz) works on segments of one second, each with its own
    scale. The natural logarithm of the scale is then one more latent channel, constant over the segment's frames;
    decoding takes its mean over the segment. The segments do not overlap (the encodec package overlaps them by 1%),
    so that every second has the same number of frames.

    Args:
        encoder: of the encodec package; its weight norm is folded into the weights.
        decoder: likewise.
        sample_rate: Hz.
        channels: audio channels.
        quantizer: that the latents pass through, if `bandwidth` is given.
        bandwidth: kbit/s of the quantiser; None keeps the latents continuous.
        segment_seconds: length of independent segments; None: there are none.
    """

    def __init__(
        self,
        encoder: SEANetEncoder,
        decoder: SEANetDecoder,
        sample_rate: int,
        channels: int,
        quantizer: ResidualVectorQuantizer | None = None,
        bandwidth: float | None = None,
        segment_seconds: float | None = None,
    ):
        hop_length = int(encoder.hop_length)
        segment_frames = None if segment_seconds is None else round(segment_seconds * (sample_rate / hop_length))
        latent_dim = encoder.dimension + (segment_frames is not None)
        super().__init__(sample_rate, channels, hop_length, latent_dim, segment_frames)
        self.encoder, self.decoder = encoder, decoder
        self.quantizer: ResidualVectorQuantizer | None = quantizer
        self.bandwidth = bandwidth
        for module in self.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
        replace_elu(self)
        replace_padding(self)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> SEANetCodec:
        """Stays in evaluation mode, except for the decoder's LSTM: cuDNN's backward pass needs it in training mode.

        The LSTM has no dropout. Nothing else may be in training mode: the quantiser would update its codebooks.
        """
        super().train(False)
        for module in self.decoder.modules():
            if isinstance(module, nn.LSTM):
                module.train(True)
        return self

    def hash_weights(self) -> str:
        weights = self.state_dict()
        if self.bandwidth is None:
            weights = {name: value for name, value in weights.items() if not name.startswith("quantizer.")}
        return hash_tensors((self.sample_rate, self.channels, self.bandwidth, self.segment_frames), weights)

    def feature_encoder(self) -> nn.Module:
        return self.encoder

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        frames = -(-audio.shape[-1] // self.hop_length)
        if self.segment_frames is None:
            return self._quantize(self.encoder(audio))
        length = self.segment_frames * self.hop_length
        audio = nn.functional.pad(audio, (0, -audio.shape[-1] % length))
        segments = audio.unflatten(-1, (-1, length)).transpose(1, 2).flatten(0, 1)
        scale = 1e-8 + segments.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt()
        latents = self._quantize(self.encoder(segments / scale))
        latents = torch.cat([latents, scale.log().expand(-1, -1, latents.shape[-1])], dim=1)
        return latents.unflatten(0, (len(audio), -1)).transpose(1, 2).flatten(2)[..., :frames]

    def _quantize(self, latents: Tensor) -> Tensor:
        if self.bandwidth is None or self.quantizer is None:
            return latents
        return self.quantizer.decode(self.quantizer.encode(latents, int(self.frame_rate), self.bandwidth))

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.shape[-1]
        rows = max(1, MAX_FRAMES_ON_CPU // max(1, frames))
        if latents.device.type == "cpu" and len(latents) > rows:
            return torch.cat([self.decode(part) for part in latents.split(rows)])
        if self.segment_frames is None:
            return self.decoder(latents)
        latents = nn.functional.pad(latents, (0, -frames % self.segment_frames), mode="replicate")
        segments = latents.unflatten(-1, (-1, self.segment_frames)).transpose(1, 2).flatten(0, 1)
        audio = self.decoder(segments[:, :-1]) * segments[:, -1:].mean(-1, keepdim=True).exp()
        audio = audio.unflatten(0, (len(latents), -1)).transpose(1, 2).flatten(2)
        return audio[..., : frames * self.hop_length]


@register_codec("encodec_24khz")
def build_24khz(repository: Path | None, bandwidth: float | None) -> SEANetCodec:
    """24 kHz, mono, 75 frames per second, causal."""
    return _pretrained("encodec_24khz", EncodecModel.encodec_model_24khz(pretrained=False), repository, bandwidth)


@register_codec("encodec_48khz")
def build_48khz(repository: Path | None, bandwidth: float | None) -> SEANetCodec:
    """48 kHz, stereo, 150 frames per second, in segments of one second."""
    return _pretrained("encodec_48khz", EncodecModel.encodec_model_48khz(pretrained=False), repository, bandwidth)


def _pretrained(name: str, model: EncodecModel, repository: Path | None, bandwidth: float | None) -> SEANetCodec:
    if bandwidth is not None and bandwidth not in model.target_bandwidths:
        choices = ", ".join(f"{choice:g}" for choice in model.target_bandwidths)
        raise EncoreError(f"--encodec_bandwidth {bandwidth:g}: {name} has {choices} kbit/s")
    try:
        model.load_state_dict(_pretrained_state(name, repository))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise EncoreError(f"--codec {name}: the weights do not fit the model ({str(error):.200})") from error
    return SEANetCodec(
        model.encoder, model.decoder, model.sample_rate, model.channels, model.quantizer, bandwidth, model.segment
    )


def _pretrained_state(name: str, repository: Path | None) -> dict[str, Tensor]:
    """The weights of a published model: from torch.hub's folder, where they are downloaded to, or from `repository`.

    The name of their file ends in the first digits of its SHA-256, which are compared before anything is loaded. The
    package itself unpickles the file as it is, so that a file that somebody put there could run code.
    """
    if repository is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / PRETRAINED[name]
        content = _cached(name, path)
    else:
        # Any file whose name carries its own checksum: the package's, or one fine-tuned from it.
        found = [path for path in sorted(repository.glob(f"{name}-*.th")) if CHECKSUM.fullmatch(_checksum(path))]
        if not found:
            raise EncoreError(
                f"--codec_repository {repository}: no {PRETRAINED[name]} in it; put it there, or use --codec starter"
            )
        path = found[0]
        if (verified := _verified(path)) is None:
            raise EncoreError(f"--codec_repository {repository}: {path.name} is damaged (checksum); download it again")
        content = verified
    try:
        return load_tensors(io.BytesIO(content))
    except ValueError as error:
        raise EncoreError(f"--codec {name}: {path} holds no weights ({error})") from error


def _cached(name: str, path: Path) -> bytes:
    """The file at `path`, downloaded if it is not there or damaged."""
    content = _verified(path)
    if content is not None:
        return content
    damaged = f"{path} is damaged (checksum), and " if path.exists() else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ROOT_URL + path.name, str(path), _checksum(path))
    except (urllib.error.URLError, http.client.HTTPException, OSError, RuntimeError) as error:
        raise EncoreError(
            f"--codec {name}: {damaged}the pretrained weights could not be downloaded ({error}). Put {path.name} into "
            "a folder and name it with --codec_repository, or use --codec starter, which needs no network"
        ) from error
    return path.read_bytes()


def _verified(path: Path) -> bytes | None:
    """The content of a file whose name ends in the first digits of its SHA-256; None if it is absent or another."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EncoreError(f"{path}: cannot be read ({error.strerror or error}); put that right") from error
    return content if hashlib.sha256(content).hexdigest().startswith(_checksum(path)) else None


def _checksum(path: Path) -> str:
    return path.stem.rpartition("-")[2]
