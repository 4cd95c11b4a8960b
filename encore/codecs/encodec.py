"""The frozen codec: audio to continuous latents and back, for the encodec package's models and our own.

A codec of our own is one safetensors file: tensors `encoder.*` and `decoder.*` (the state dicts of the encodec
package's SEANetEncoder and SEANetDecoder) and, in the metadata, its `Architecture`.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from encodec import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encore.errors import EncoreError

STARTER_WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "starter_codec.safetensors"
PRETRAINED = ("encodec_24khz", "encodec_48khz")
FORMAT = 1
FRAMES_AT_ONCE = 1500  # that a CPU decodes: many more than that take half as long again, for want of cache and memory


@dataclass(frozen=True)
class Architecture:
    """The shape of a codec of our own; the names are those of the encodec package's SEANet."""

    sample_rate: int = 24000
    channels: int = 1
    dimension: int = 128
    n_filters: int = 16
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    norm: str = "none"
    causal: bool = True
    lstm: int = 2
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    compress: int = 2
    n_residual_layers: int = 1
    true_skip: bool = False
    pad_mode: str = "reflect"

    def build(self) -> tuple[SEANetEncoder, SEANetDecoder]:
        """A new encoder and decoder of this shape, randomly initialised."""
        shape = {name: value for name, value in asdict(self).items() if name != "sample_rate"}
        shape["ratios"] = list(self.ratios)
        return SEANetEncoder(**shape), SEANetDecoder(**shape)


def save_codec(path: Path, architecture: Architecture, encoder: nn.Module, decoder: nn.Module) -> None:
    """Writes a codec of our own, in half precision, to a temporary name first."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().half().contiguous()
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for name, value in module.state_dict().items()
    }
    temporary = path.with_suffix(path.suffix + ".tmp")
    metadata = {"encore_codec": json.dumps({"format": FORMAT, **asdict(architecture)})}
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def load_codec_file(path: Path) -> tuple[Architecture, SEANetEncoder, SEANetDecoder]:
    """Reads what `save_codec` wrote.

    Raises:
        EncoreError: no such file, or not a codec file of ours.
    """
    if not path.is_file():
        raise EncoreError(f"--codec {path}: no such file; give starter, {', '.join(PRETRAINED)} or a codec's weights")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["encore_codec"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if description.pop("format") != FORMAT:
            raise KeyError("format")
        description["ratios"] = tuple(description["ratios"])
        architecture = Architecture(**description)
        encoder, decoder = architecture.build()
        for part, module in (("encoder", encoder), ("decoder", decoder)):
            prefix = part + "."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise EncoreError(
            f"--codec {path}: not a codec that train_codec.py wrote with this version ({error!r:.200})"
        ) from error
    return architecture, encoder, decoder


class FrozenCodec(nn.Module):
    """An autoencoder whose weights never change and whose decoder passes gradients.

    Attributes:
        sample_rate: Hz.
        channels: audio channels.
        hop_length: samples of audio per latent frame.
        frame_rate: latent frames per second.
        latent_dim: D of the latents `[B, D, T]`.
        segment_frames: frames of the independent segments of a codec that works segment by segment, else None.
        identity: hash of all that determines latents and audio; equal identities mean interchangeable codecs.

    A model that normalises its input's volume (encodec_48khz) works on segments of one second, each with its own
    scale. The natural logarithm of the scale is then one more latent channel, constant over the segment's frames;
    decoding takes its mean over the segment. The segments don't overlap (the encodec package overlaps them by 1%),
    so that every second has the same number of frames.
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
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quantizer: ResidualVectorQuantizer | None = quantizer
        self.sample_rate, self.channels, self.bandwidth = sample_rate, channels, bandwidth
        self.hop_length = int(encoder.hop_length)
        self.frame_rate = sample_rate / self.hop_length
        self.segment_frames = None if segment_seconds is None else round(segment_seconds * self.frame_rate)
        self.latent_dim = encoder.dimension + (self.segment_frames is not None)
        for module in self.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
        self.requires_grad_(False)
        self.train(False)
        self.identity = self._identity()

    def train(self, mode: bool = True) -> FrozenCodec:
        """Never trains; but cuDNN's LSTM backward needs its module in training mode (it has no dropout).

        Only the decoder's LSTM: the quantiser would rewrite its codebooks in training mode.
        """
        super().train(False)
        for module in self.decoder.modules():
            if isinstance(module, nn.LSTM):
                module.train(True)
        return self

    def _identity(self) -> str:
        digest = hashlib.sha256(repr((self.sample_rate, self.channels, self.bandwidth, self.segment_frames)).encode())
        for name, value in sorted(self.state_dict().items()):
            if self.bandwidth is not None or not name.startswith("quantizer."):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to latents `[B, D, ceil(N / hop_length)]`; N is filled up with zeros at its end."""
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
        """Latents `[B, D, T]` to audio `[B, C, T * hop_length]`; gradients pass to the latents."""
        frames = latents.shape[-1]
        rows = max(1, FRAMES_AT_ONCE // max(1, frames))
        if latents.device.type == "cpu" and len(latents) > rows:
            return torch.cat([self.decode(part) for part in latents.split(rows)])
        if self.segment_frames is None:
            return self.decoder(latents)
        latents = nn.functional.pad(latents, (0, -frames % self.segment_frames), mode="replicate")
        segments = latents.unflatten(-1, (-1, self.segment_frames)).transpose(1, 2).flatten(0, 1)
        audio = self.decoder(segments[:, :-1]) * segments[:, -1:].mean(-1, keepdim=True).exp()
        audio = audio.unflatten(0, (len(latents), -1)).transpose(1, 2).flatten(2)
        return audio[..., : frames * self.hop_length]

    def decode_crop(self, latents: Tensor, start: int, frames: int, margin: int) -> Tensor:
        """The audio of latent frames `start … start + frames`, as in the decoding of the whole `[B, D, T]`.

        Only `margin` frames before the crop are decoded with it (see `measure_margin`). A codec that works in
        segments has its crop widened to whole ones instead, and is exact.
        """
        end = start + frames
        if self.segment_frames is None:
            first, last = max(0, start - margin), end
        else:
            first = start // self.segment_frames * self.segment_frames
            last = min(latents.shape[-1], -(-end // self.segment_frames) * self.segment_frames)
        audio = self.decode(latents[..., first:last])
        return audio[..., (start - first) * self.hop_length : (end - first) * self.hop_length]

    def decode_continuation(self, context: Tensor, continuation: Tensor, margin: int) -> Tensor:
        """Decodes `continuation [R, D, F]` after the end of `context [R, D, T]`: audio `[R, C, F * hop_length]`.

        The last `margin` frames of the context are decoded in front (see `measure_margin`). A codec that works in
        segments needs none, as its segments are independent; the continuation then begins with a whole one.
        """
        before = margin if self.segment_frames is None else 0
        past = context[..., -before:] if before else context[..., :0]
        return self.decode_crop(torch.cat([past, continuation], -1), past.shape[-1], continuation.shape[-1], margin)

    @torch.no_grad()
    def measure_margin(self, latents: Tensor, tolerance_db: float = -60.0) -> int:
        """The fewest frames (a power of two) that a crop needs on its left to sound as in the whole decoding.

        The decoder's convolutions reach back a known stretch; its LSTM's memory fades, and how fast is a matter of
        the weights. So it is measured: the second half of `latents [B, D, T]` is decoded with 8, 16, … frames in
        front until its error is below `tolerance_db` relative to the whole decoding's level.
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


def load_codec(name: str, repository: Path | None = None, bandwidth: float | None = None) -> FrozenCodec:
    """The codec that `--codec` names: starter, encodec_24khz, encodec_48khz, or the path of weights of our own.

    Args:
        repository: folder with the pretrained models' files, instead of a download at first use.
        bandwidth: kbit/s of the residual quantiser that latents pass through; None keeps them continuous.

    Raises:
        EncoreError: the weights can't be had, or the codec has no quantiser at this bandwidth.
    """
    # A convolution with 10 bits of mantissa (TF32) is audible noise at −60 dB.
    torch.backends.cudnn.allow_tf32 = False
    if name not in PRETRAINED:
        if bandwidth is not None:
            raise EncoreError(
                f"--encodec_bandwidth {bandwidth:g}: codec {name!r} has no quantiser; leave the flag out or use "
                f"--codec {PRETRAINED[0]}"
            )
        architecture, encoder, decoder = load_codec_file(STARTER_WEIGHTS if name == "starter" else Path(name))
        return FrozenCodec(encoder, decoder, architecture.sample_rate, architecture.channels)
    builder = {"encodec_24khz": EncodecModel.encodec_model_24khz, "encodec_48khz": EncodecModel.encodec_model_48khz}
    model = builder[name](pretrained=False)
    if bandwidth is not None and bandwidth not in model.target_bandwidths:
        choices = ", ".join(f"{choice:g}" for choice in model.target_bandwidths)
        raise EncoreError(f"--encodec_bandwidth {bandwidth:g}: {name} has {choices} kbit/s")
    try:
        model.load_state_dict(_pretrained_state(name, repository))
    except RuntimeError as error:
        raise EncoreError(f"--codec {name}: the weights don't fit the model ({str(error):.200})") from error
    return FrozenCodec(
        model.encoder, model.decoder, model.sample_rate, model.channels, model.quantizer, bandwidth, model.segment
    )


def _pretrained_state(name: str, repository: Path | None) -> dict[str, Tensor]:
    file_name = {"encodec_24khz": "encodec_24khz-d7cc33bc.th", "encodec_48khz": "encodec_48khz-7e698e3e.th"}[name]
    if repository is None:
        try:
            return EncodecModel._get_pretrained(file_name)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise EncoreError(
                f"--codec {name}: the pretrained weights could not be downloaded ({error}). Put {file_name} into a "
                "folder and name it with --codec_repository, or use --codec starter, which needs no network"
            ) from error
    # Any file that carries its own checksum in its name will do: the package's, or one fine-tuned from it.
    found = sorted(repository.glob(f"{name}-*.th"))
    if not found:
        raise EncoreError(
            f"--codec_repository {repository}: no {file_name} in it; put it there, or use --codec starter"
        )
    checksum = found[0].stem.rpartition("-")[2]
    if not hashlib.sha256(found[0].read_bytes()).hexdigest().startswith(checksum):
        raise EncoreError(f"--codec_repository {repository}: {found[0].name} is damaged (checksum); download it again")
    return torch.load(found[0], map_location="cpu", weights_only=True)
