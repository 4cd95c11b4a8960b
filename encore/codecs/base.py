"""The interface of a codec, and what all codecs share."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import Tensor, nn

from encore.codecs.bands import equalize
from encore.registry import CODECS

register_codec = CODECS.register
MARGIN_SECONDS = 8.0  # of the signal that the margin is measured on


class Codec(nn.Module):
    """A frozen autoencoder of audio with continuous latents; its decoder passes gradients to the latents.

    A codec of your own is a subclass with `encode` and `decode`. `@register_codec("name")` on a function
    `build(repository: Path | None, bandwidth: float | None) -> Codec` makes it a choice of `--codec`.

    Args:
        sample_rate: Hz.
        channels: audio channels.
        hop_length: audio samples per latent frame.
        latent_dim: D of the latents `[B, D, T]`.
        segment_frames: frames per segment of a codec that encodes and decodes segments independently, else None.
    """

    _place: Tensor

    def __init__(
        self, sample_rate: int, channels: int, hop_length: int, latent_dim: int, segment_frames: int | None = None
    ):
        super().__init__()
        self.sample_rate, self.channels, self.hop_length = sample_rate, channels, hop_length
        self.frame_rate = sample_rate / hop_length  # Hz
        self.latent_dim, self.segment_frames = latent_dim, segment_frames
        self.register_buffer("_place", torch.empty(0), persistent=False)  # moves with a codec of any kind

    @property
    def device(self) -> torch.device:
        """Where audio and latents have to be."""
        return self._place.device

    def encode(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to latents `[B, D, ceil(N / hop_length)]`, without gradient; N is padded with zeros."""
        raise NotImplementedError(f"{type(self).__name__} has no method encode")

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B, D, T]` to audio `[B, C, T * hop_length]`, with gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no method decode")

    def render(self, frames: Tensor, details: Tensor | None = None) -> Tensor:
        """Audio `[B, C, T * hop_length]` of latents `[B, D, T]`, or of latents and gains `[B, D + BANDS, T]`.

        The gains, in nepers, change the levels of bands in the decoded audio; see `encore.codecs.bands.equalize`. If
        all are 0, it is exactly the decoded audio.

        Args:
            frames: latents, and gains.
            details: audio that is added to what is decoded, before the gains.
        """
        latents, gains = frames.split([self.latent_dim, frames.shape[1] - self.latent_dim], 1)
        audio = self.decode(latents)
        if details is not None:
            audio = audio + details
        if not gains.shape[1] or not (gains.requires_grad or gains.any()):
            return audio
        return equalize(audio, gains, self.sample_rate, self.hop_length)

    def feature_encoder(self) -> nn.Module:
        """The network whose activations the embedding loss compares by default (`--embedding_model codec`).

        Its attribute `model` holds the layers; called on audio `[B, C, N]` at the codec's rate.

        Raises:
            ValueError: this codec has none.
        """
        raise ValueError(f"{type(self).__name__} has no encoder for --embedding_model codec; choose another model")

    @cached_property
    def identity(self) -> str:
        """Hash of everything that determines latents and audio; codecs of equal identity are interchangeable."""
        return self.hash_weights()

    @cached_property
    def margin(self) -> int:
        """Frames to decode in front of a crop, see `measure_margin`: measured on noise that is struck twice a second.

        The same signal every time (8 s, a decay of 60 dB in half a second), so that it is a property of the codec
        alone, like `identity`.
        """
        samples = round(MARGIN_SECONDS * self.sample_rate)
        noise = torch.randn(1, self.channels, samples, generator=torch.Generator().manual_seed(0))
        since = torch.arange(samples) / self.sample_rate % 0.5
        return self.measure_margin(self.encode((0.3 * noise * 10 ** (-6 * since)).to(self.device)))

    def hash_weights(self) -> str:
        """Hash of class, settings and weights, 16 hexadecimal digits."""
        settings = self.sample_rate, self.channels, self.hop_length, self.segment_frames
        return hash_tensors((type(self).__qualname__, *settings), self.state_dict())

    def train(self, mode: bool = True) -> Codec:
        """Stays in evaluation mode."""
        return super().train(False)

    def decode_crop(self, latents: Tensor, start: int, frames: int, margin: int) -> Tensor:
        """Audio of the latent frames `start … start + frames − 1`, as in the decoding of all of `latents [B, D, T]`.

        They may have gains, see `render`. Decodes only `margin` more frames in front (see `measure_margin`). With
        independent segments the crop is extended to whole ones instead, and is exact.
        """
        end = start + frames
        if self.segment_frames is None:
            first, last = max(0, start - margin), end
        else:
            first = start // self.segment_frames * self.segment_frames
            last = min(latents.shape[-1], -(-end // self.segment_frames) * self.segment_frames)
        audio = self.render(latents[..., first:last])
        return audio[..., (start - first) * self.hop_length : (end - first) * self.hop_length]

    def decode_continuation(self, context: Tensor, continuation: Tensor, margin: int, lead: int = 0) -> Tensor:
        """Decodes `continuation [R, D, F]` after `context [R, D, T]`: audio `[R, C, (lead + F) * hop_length]`.

        It begins with the last `lead` frames of the context, before which `margin` more are decoded (see
        `measure_margin`). With independent segments no margin is needed; the continuation then begins with a whole
        segment. It may have gains, see `render` and `join`.
        """
        unit = self.segment_frames
        before = lead + margin if unit is None else -(-lead // unit) * unit
        past = context[..., max(0, context.shape[-1] - before) :]
        frames = join(past, continuation, lead)
        return self.decode_crop(frames, past.shape[-1] - lead, lead + continuation.shape[-1], margin)

    @torch.no_grad()
    def measure_margin(self, latents: Tensor, tolerance_db: float = -60.0) -> int:
        """The number of frames (a power of two) to decode in front of a crop to get the audio of the whole decoding.

        A decoder's convolutions look back a fixed distance, but an LSTM's state decays at a rate that depends on its
        weights, so this is measured: the second half of `latents [B, D, T]` is decoded with 8, 16, … frames in front
        until the error is below `tolerance_db`, in dB relative to the level of the whole decoding.
        """
        middle = latents.shape[-1] // 2
        if self.segment_frames is not None or middle == 0:
            return 0
        whole = self.decode(latents)[..., middle * self.hop_length :]
        margin = 8
        while margin < middle:
            error = self.decode_crop(latents, middle, latents.shape[-1] - middle, margin) - whole
            if 20 * torch.log10(error.norm() / whole.norm().clamp_min(1e-9) + 1e-12) < tolerance_db:
                return margin
            margin *= 2
        return middle


def join(first: Tensor, second: Tensor, lead: int = 0) -> Tensor:
    """Latents `[B, D, T]` and those after them, either of which may have gains (see `Codec.render`).

    If only the second have gains, the last `lead` frames of the first have those of their first frame, the others 0.
    """
    if first.shape[1] == second.shape[1]:
        return torch.cat([first, second], -1)
    gains = second[:, first.shape[1] :, :1]
    none = gains.new_zeros(*gains.shape[:2], first.shape[-1] - lead)
    gains = torch.cat([none, gains.expand(-1, -1, lead)], -1)
    return torch.cat([torch.cat([first, gains], 1), second], -1)


def hash_tensors(settings: tuple[object, ...], weights: dict[str, Tensor]) -> str:
    """SHA-256 of settings, names and values, its first 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
