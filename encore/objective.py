"""What turns predictions and references into numbers, and numbers into gradients: the regression objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from encore.codec import FrozenCodec
from encore.pairs import Batch


class Combined(Protocol):
    """What the losses become at the audio: one gradient, each loss's share of it, and those that are not finite."""

    @property
    def gradient(self) -> Tensor: ...
    @property
    def shares(self) -> dict[str, float]: ...
    @property
    def left_out(self) -> tuple[str, ...]: ...


class Combiner(Protocol):
    """Makes the components' values one gradient at the audio: a weighted sum's, or a balanced one."""

    def __call__(self, values: Mapping[str, Tensor], signal: Tensor, measure: bool) -> Combined: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Adversary(Protocol):
    """Losses that a discriminator gives, which is trained beside the model, and has its state."""

    steps: int

    @property
    def due(self) -> bool: ...
    def __call__(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]: ...
    def accumulate(self, prediction: Tensor, target: Tensor, scale: float) -> Tensor: ...
    def step(self, skip: bool) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Component:
    """One term of the objective.

    Attributes:
        name: of its metrics, `train_<name>` and so on.
        label: in the log's lines.
        weight: its factor in the total; 0 means measured at validation only.
        against_input: compared with the input's audio instead of the target's.
        loss: `loss(prediction, reference)`, both `[B, C, N]`, to one value per item, `[B]`; None: the adversary's.
        metric: name of the measure that is minus this loss, if there is one.
    """

    name: str
    label: str
    weight: float
    against_input: bool
    loss: nn.Module | None
    metric: str | None = None


@dataclass(frozen=True)
class Crop:
    """The latent frames of a segment that are decoded and compared."""

    start: int
    frames: int


@dataclass(frozen=True)
class Outcome:
    """A batch's way through the objective.

    Attributes:
        audio: the decoded prediction, `[B, C, N]`.
        target: the same crop of the target's audio.
        values: the components that are trained on, one value per item each, `[B]`.
    """

    audio: Tensor
    target: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a batch gave to an optimiser step.

    Attributes:
        values: figures of one value per item, `[B]`: the components that took part, and the discriminator's own loss.
        total: the weighted sum, `[B]`.
        shares: each component's part of the gradient at the audio; empty where it was not measured.
        left_out: components that took no part because they were not finite.
        finite: whether all that took part was.
    """

    values: dict[str, Tensor]
    total: Tensor
    shares: dict[str, float]
    left_out: tuple[str, ...]
    finite: bool


class Regression(nn.Module):
    """The weighted sum of losses between the decoded prediction and its references.

    The adversary's terms are trained on, but are in no total: a judge that learns can't tell which epoch is best.

    Args:
        components: the terms.
        codec: decodes the prediction; frozen.
        margin: latent frames decoded in front of a crop (`FrozenCodec.measure_margin`).
        shared: context in which the losses share the spectra that they need.
        autocast: context in which the model runs.
        combiner: makes one gradient of the components that have a weight.
        adversary: gives the components that have no loss of their own.
    """

    combiner: Combiner
    adversary: Adversary | None

    def __init__(
        self,
        components: Sequence[Component],
        codec: FrozenCodec,
        margin: int,
        shared: Callable[[], AbstractContextManager],
        autocast: Callable[[], AbstractContextManager],
        combiner: Combiner,
        adversary: Adversary | None = None,
    ):
        super().__init__()
        self.components = tuple(components)
        self.losses = nn.ModuleDict({c.name: c.loss for c in components if c.loss is not None})
        self.combiner, self.adversary = combiner, adversary
        # In a tuple, so that the codec is not moved or saved with this module.
        self._codec = (codec,)
        self.sample_rate = codec.sample_rate
        self.margin, self.shared, self.autocast = margin, shared, autocast

    def predict(self, model: nn.Module, batch: Batch, crop: Crop) -> Tensor:
        """The decoded audio `[B, C, N]` of a crop of the prediction; the decoder runs in float32."""
        with self.autocast():
            latents = model(batch.context)
        return self._codec[0].decode_crop(latents.float(), crop.start, crop.frames, self.margin)

    def forward(self, model: nn.Module, batch: Batch, crop: Crop) -> Outcome:
        """The components that are trained on."""
        audio = self.predict(model, batch, crop)
        trained = [component for component in self.components if component.weight]
        references = self._references(batch, crop)
        values = self._compare(audio, references, trained)
        if self.adversary is not None:
            given = self.adversary(audio, references[False])
            values |= {c.name: given[c.name] for c in trained if c.loss is None}
        return Outcome(audio, references[False], values)

    def backward(self, outcome: Outcome, scale: float, measure: bool) -> Step:
        """Adds `scale` times the gradient of the mean over items to the model's, in one pass through the decoder.

        The gradient is combined at the audio, from there it goes on; with `measure`, each component's share of it is
        known. The discriminator's own gradient is added to its weights' too.
        """
        combined = self.combiner(outcome.values, outcome.audio, measure)
        # Detached, because the decoder's pass needs the memory that the losses' graphs hold.
        outcome.values.update({name: value.detach() for name, value in outcome.values.items()})
        outcome.audio.backward(combined.gradient * scale)
        values = {name: value for name, value in outcome.values.items() if name not in combined.left_out}
        nothing = torch.full_like(combined.gradient[:, 0, 0], math.nan)
        total = self.total(values) if any(name in self.losses for name in values) else nothing
        if self.adversary is not None and self.adversary.due:
            values["disc_loss"] = self.adversary.accumulate(outcome.audio, outcome.target, scale)
        finite = bool(torch.cat([total, *values.values()]).isfinite().all())
        return Step(values, total, combined.shares, combined.left_out, finite)

    def end_step(self, skip: bool) -> None:
        """Ends an optimiser step; `skip` leaves the discriminator as it is."""
        if self.adversary is not None:
            self.adversary.step(skip)

    def measure(self, audio: Tensor, batch: Batch) -> dict[str, Tensor]:
        """All components for a whole segment's audio, but for the adversary's, without gradient."""
        with torch.no_grad():
            return self._compare(audio, self._references(batch, self.whole(batch)), self.components)

    def floor(self, batch: Batch) -> dict[str, Tensor]:
        """The components when the prediction is each reference itself, through the codec."""
        with torch.no_grad():
            through = {True: self._codec[0].decode(batch.context), False: self._codec[0].decode(batch.target_latents)}
            values = {against_input: self.measure(audio, batch) for against_input, audio in through.items()}
        return {c.name: values[c.against_input][c.name] for c in self.components if c.loss is not None}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of those components in `values` that have a weight, but for the adversary's."""
        counted = [c for c in self.components if c.weight and c.loss is not None and c.name in values]
        return torch.stack([c.weight * values[c.name] for c in counted]).sum(0)

    def whole(self, batch: Batch) -> Crop:
        return Crop(0, batch.context.shape[-1])

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """What changes in training: of the combiner, the adversary and the losses that keep count of something.

        The networks that some losses compare with are no part of it: their weights come from where they came from.
        """
        return {name: state for name, part in self._parts().items() if (state := part.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]
        """The opposite of `state_dict`; a part that is new in this run begins anew, one that is gone is forgotten."""
        for name, part in self._parts().items():
            if name in state and part.state_dict():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        counting = {f"losses.{name}": loss for name, loss in self.losses.items() if not [*loss.parameters()]}
        parts = {"combiner": self.combiner, "adversary": self.adversary, **counting}
        return {name: part for name, part in parts.items() if part is not None}

    def _references(self, batch: Batch, crop: Crop) -> dict[bool, Tensor]:
        """The crop of the audio that a component is compared with, by its `against_input`."""
        hop = self._codec[0].hop_length
        first, last = crop.start * hop, (crop.start + crop.frames) * hop
        return {True: batch.input_audio[..., first:last], False: batch.target_audio[..., first:last]}

    def _compare(
        self, audio: Tensor, references: Mapping[bool, Tensor], components: Sequence[Component]
    ) -> dict[str, Tensor]:
        with self.shared():
            return {c.name: c.loss(audio, references[c.against_input]) for c in components if c.loss is not None}
