"""A continuation pipeline as short as one can write it: what Encore's training is compared with.

It encodes every batch anew with the frozen codec, maps the context's latents to the continuation's with PyTorch's own
transformer under a causal mask, decodes input and whole output in every step, and takes its losses from auraloss and
torchaudio. Data, size of the transformer, optimiser and learning rate are those of the run that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import auraloss
import soundfile
import torch
import torchaudio
from torch import Tensor, nn

from encore.codecs import Codec

MEL = {"n_fft": 1024, "hop_length": 256, "n_mels": 80}
FLOOR = 1e-5  # of the mel power, before the logarithm


class MinimalTransformer(nn.Module):
    """Latents `[B, D, T]` of a context to those of what follows; frame t sees the context up to its own frame t."""

    positions: Tensor

    def __init__(self, latent_dim: int, frames: int, d_model: int, layers: int, nhead: int = 8, dropout: float = 0.1):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.in_proj, self.out_proj = nn.Linear(latent_dim, d_model), nn.Linear(d_model, latent_dim)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        frequencies = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
        angles = torch.arange(frames)[:, None] * frequencies
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(frames))

    def forward(self, context: Tensor) -> Tensor:
        x = self.in_proj(context.transpose(1, 2)) + self.positions
        return self.out_proj(self.encoder(x, self.mask)).transpose(1, 2)


class MinimalLoss(nn.Module):
    """Multi-resolution STFT (auraloss), log-mel L1 (torchaudio) and RMS level against target and input."""

    def __init__(self, sample_rate: int):
        super().__init__()
        self.stft = auraloss.freq.MultiResolutionSTFTLoss()
        self.mel = torchaudio.transforms.MelSpectrogram(sample_rate, **MEL)

    def log_mel(self, audio: Tensor) -> Tensor:
        return self.mel(audio).clamp_min(FLOOR).log()

    def spectral(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The two spectral losses together, of audio `[B, 1, N]`."""
        return self.stft(prediction, target) + (self.log_mel(prediction) - self.log_mel(target)).abs().mean()

    def forward(self, prediction: Tensor, target: Tensor, source: Tensor) -> Tensor:
        rms = [audio.square().mean(-1).sqrt() for audio in (prediction, target, source)]
        return self.spectral(prediction, target) + (rms[0] - rms[1]).abs().mean() + (rms[0] - rms[2]).abs().mean()


def load_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a split, `[P, 1, N]` each."""
    read = [
        [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in sorted(folder.glob(f"*_{part}.wav"))]
        for part in ("input", "output")
    ]
    return torch.stack(read[0])[:, None], torch.stack(read[1])[:, None]


class MinimalPipeline:
    """The training run.

    Args:
        folder: data set in Encore's format of pairs.
        codec: frozen.
        d_model: width of the transformer.
        layers: of the transformer.
        batch_size: pairs per step.
        lr: learning rate of AdamW.
        warmup_steps: steps in which the learning rate rises to it.
    """

    def __init__(
        self, folder: Path, codec: Codec, *, d_model: int, layers: int, batch_size: int, lr: float, warmup_steps: int
    ):
        torch.manual_seed(0)
        self.codec, self.batch_size = codec, batch_size
        self.source, self.target = load_pairs(folder / "train")
        frames = self.source.shape[-1] // codec.hop_length
        self.samples = frames * codec.hop_length
        self.model = MinimalTransformer(codec.latent_dim, frames, d_model, layers)
        self.loss = MinimalLoss(codec.sample_rate)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
        self.warmup = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps))
        )

    def batches(self) -> Iterator[Tensor]:
        """Numbers of pairs, in a new order every epoch, without end."""
        while True:
            yield from torch.randperm(len(self.source)).split(self.batch_size)

    def step(self, batch: Tensor) -> float:
        """Trains on a batch; the loss."""
        source, target = self.source[batch, :, : self.samples], self.target[batch, :, : self.samples]
        context = self.codec.encode(source)
        with torch.no_grad():
            heard = self.codec.decode(context)
        prediction = self.codec.decode(self.model(context))
        loss = self.loss(prediction, target, heard)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.warmup.step()
        return loss.item()

    @torch.no_grad()
    def continuation(self, source: Tensor) -> Tensor:
        """What follows `source [B, 1, N]`, as long as it."""
        self.model.eval()
        audio = self.codec.decode(self.model(self.codec.encode(source[..., : self.samples])))
        self.model.train()
        return audio
