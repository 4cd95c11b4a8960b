"""What turns predictions and references into numbers: the regression objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encore.codec import FrozenCodec
from encore.pairs import Batch


@dataclass(frozen=True)
class Component:
    """One term of the objective.

    Attributes:
        name: of its metrics, `train_<name>` and so on.
        label: in the log's lines.
        weight: its factor in the total; 0 means measured at validation only.
        against_input: compared with the input's audio instead of the target's.
        loss: `loss(prediction, reference)`, both `[B, C, N]`, to one value per item, `[B]`.
    """

    name: str
    label: str
    weight: float
    against_input: bool
    loss: nn.Module


@dataclass(frozen=True)
class Crop:
    """The latent frames of a segment that are decoded and compared."""

    start: int
    frames: int


class Regression(nn.Module):
    """The weighted sum of losses between the decoded prediction and its references.

    Args:
        components: the terms.
        codec: decodes the prediction; frozen.
        margin: latent frames decoded in front of a crop (`FrozenCodec.measure_margin`).
        shared: context in which the losses share the spectra that they need.
        autocast: context in which the model runs.
    """

    def __init__(
        self,
        components: Sequence[Component],
        codec: FrozenCodec,
        margin: int,
        shared: Callable[[], AbstractContextManager],
        autocast: Callable[[], AbstractContextManager],
    ):
        super().__init__()
        self.components = tuple(components)
        self.losses = nn.ModuleDict({component.name: component.loss for component in components})
        # In a tuple, so that the codec's weights are no part of this module's state.
        self._codec = (codec,)
        self.sample_rate = codec.sample_rate
        self.margin, self.shared, self.autocast = margin, shared, autocast

    def predict(self, model: nn.Module, batch: Batch, crop: Crop) -> Tensor:
        """The decoded audio `[B, C, N]` of a crop of the prediction; the decoder runs in float32."""
        with self.autocast():
            latents = model(batch.context)
        return self._codec[0].decode_crop(latents.float(), crop.start, crop.frames, self.margin)

    def forward(self, model: nn.Module, batch: Batch, crop: Crop) -> dict[str, Tensor]:
        """The components that are trained on, one value per item each, `[B]`."""
        trained = [component for component in self.components if component.weight]
        return self._compare(self.predict(model, batch, crop), batch, crop, trained)

    def measure(self, audio: Tensor, batch: Batch) -> dict[str, Tensor]:
        """All components for a whole segment's audio, without gradient."""
        with torch.no_grad():
            return self._compare(audio, batch, self.whole(batch), self.components)

    def floor(self, batch: Batch) -> dict[str, Tensor]:
        """The components when the prediction is each reference itself, through the codec."""
        with torch.no_grad():
            through = {True: self._codec[0].decode(batch.context), False: self._codec[0].decode(batch.target_latents)}
            values = {against_input: self.measure(audio, batch) for against_input, audio in through.items()}
        return {component.name: values[component.against_input][component.name] for component in self.components}

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum of those components in `values` that have a weight."""
        terms = [c.weight * values[c.name] for c in self.components if c.weight]
        return torch.stack(terms).sum(0)

    def whole(self, batch: Batch) -> Crop:
        return Crop(0, batch.context.shape[-1])

    def _compare(self, audio: Tensor, batch: Batch, crop: Crop, components: Sequence[Component]) -> dict[str, Tensor]:
        hop = self._codec[0].hop_length
        first, last = crop.start * hop, (crop.start + crop.frames) * hop
        references = {True: batch.input_audio[..., first:last], False: batch.target_audio[..., first:last]}
        with self.shared():
            return {c.name: c.loss(audio, references[c.against_input]) for c in components}
