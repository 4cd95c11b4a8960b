"""The objective: a weighted sum of losses on decoded audio, as a regression or as an energy distance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encore.data.dataset import Batch
from encore.training.synthesis import CropPlan, Synthesizer
from losses import Adversary, LossBalancer, WeightedGradient, shared_rows, shared_spectra

ATTRACTION, REPULSION = "_attraction", "_repulsion"  # suffixes of the two parts of an energy distance


@dataclass(frozen=True)
class Component:
    """One term of the objective.

    Attributes:
        name: of its metrics, `train_<name>` and so on.
        label: its name in the log's lines.
        weight: its factor in the total; 0 means that it is only measured, at validation.
        against_input: compared with the end of the input's audio instead of the target's.
        loss: `loss(prediction, reference)`, both `[B, C, N]`, gives one value per item, `[B]`; None for a component of
            the adversary.
        metric: name of the metric that is minus this loss, if there is one.
        distance: whether it may serve as the distance of an energy distance; otherwise it has no repulsion term.
    """

    name: str
    label: str
    weight: float
    against_input: bool
    loss: nn.Module | None
    metric: str | None = None
    distance: bool = False


@dataclass(frozen=True)
class Forward:
    """The forward pass of a batch.

    Attributes:
        audio: the samples' decoded crops, `[R, C, N]`: for each item its samples, for each sample its blocks.
        target: the target's audio for each of them, `[R, C, N]`.
        values: the components that are trained on, `[B]` each.
        parts: attraction and repulsion of each, `[B]`, where there are several samples.
    """

    audio: Tensor
    target: Tensor
    values: dict[str, Tensor]
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Backward:
    """The result of a batch's backward pass.

    Attributes:
        values: `[B]` each: the components that took part, their attraction and repulsion, and the discriminator's loss.
        total: the weighted sum, `[B]`.
        shares: each component's share of the gradient at the audio; empty where it was not measured.
        left_out: components that took no part because they were not finite.
        finite: whether all that took part was finite.
    """

    values: dict[str, Tensor]
    total: Tensor
    shares: dict[str, float]
    left_out: tuple[str, ...]
    finite: bool


class Objective(nn.Module):
    """A weighted sum of losses on decoded audio, as a regression or as an energy distance.

    With one sample x per item a component is `d(x, y)`, its loss against the target y. With several it is the
    generalised energy distance (Székely & Rizzo 2013; as a loss Gritsenko et al. 2020), without the term that does not
    depend on the samples:

        mean_i d(x_i, y) − ½ mean_{i ≠ j} d(x_i, x_j)

    Its expectation is smallest when samples are distributed as the targets are, if d is a distance of negative type.
    For other losses, those against the input and the adversary's, there is only the first term.

    Args:
        components: terms of the sum.
        synthesizer: samples and decodes.
        combiner: combines the components' gradients at the audio.
        adversary: gives the components that have no loss of their own.
    """

    combiner: WeightedGradient | LossBalancer
    adversary: Adversary | None

    def __init__(
        self,
        components: Sequence[Component],
        synthesizer: Synthesizer,
        combiner: WeightedGradient | LossBalancer,
        adversary: Adversary | None = None,
    ):
        super().__init__()
        self.components = list(components)
        self.losses = nn.ModuleDict({c.name: c.loss for c in components if c.loss is not None})
        self.synthesizer, self.combiner, self.adversary = synthesizer, combiner, adversary
        self.sample_rate = synthesizer.codec.sample_rate

    def forward(self, model: nn.Module, batch: Batch, plan: CropPlan) -> Forward:
        """The components that are trained on."""
        audio = self.synthesizer.predict(model, batch, plan)
        target, source = self.synthesizer.references(batch, plan)
        trained = [component for component in self.components if component.weight]
        with shared_spectra():
            target_rows = self._target_rows(audio, target, len(batch))
            values, parts = self._compare(audio, target_rows, source, trained, len(batch))
        if self.adversary is not None:
            given = self.adversary(audio, target_rows)
            values |= {c.name: _per_item(given[c.name], len(batch)) for c in trained if c.loss is None}
        return Forward(audio, target_rows, values, parts)

    def backward(self, forward: Forward, scale: float, measure: bool) -> Backward:
        """Adds `scale` times the gradient of the mean over items to the model's, in one pass through the decoder.

        The components' gradients are combined at the audio; `measure` also gives each one's share. The discriminator's
        own gradient is added to its weights.

        If something that takes part is not finite, the model's whole gradient is NaN. DDP adds up the gradients of all
        ranks, so each of them sees that the step cannot be taken, without another collective operation.
        """
        combined = self.combiner(forward.values, forward.audio, measure)
        # Detached, as the decoder's backward pass needs the memory that the losses' graphs hold.
        for values in (forward.values, forward.parts):
            values.update({name: value.detach() for name, value in values.items()})
        items = len(next(iter(forward.values.values())))
        values = {name: value for name, value in forward.values.items() if name not in combined.left_out}
        nothing = torch.full((items,), math.nan, device=forward.audio.device)
        total = self.total(values) if any(name in self.losses for name in values) else nothing
        finite = bool(torch.cat([total, *values.values()]).isfinite().all())
        # The combiner takes the mean over the rows of the audio, several of which belong to each item.
        factor = scale * len(forward.audio) / items if finite else math.nan
        forward.audio.backward(combined.gradient * factor)
        kept = {name + part for name in values for part in (ATTRACTION, REPULSION)}
        values |= {name: value for name, value in forward.parts.items() if name in kept}
        if self.adversary is not None and self.adversary.due:
            values["disc_loss"] = _per_item(self.adversary.accumulate(forward.audio, forward.target, scale), items)
        return Backward(values, total, combined.shares, combined.left_out, finite)

    def end_step(self, skip: bool) -> None:
        """Ends an optimiser step; `skip` leaves the discriminator as it is."""
        if self.adversary is not None:
            self.adversary.step(skip)

    @torch.no_grad()
    def measure(self, audio: Tensor, batch: Batch) -> dict[str, Tensor]:
        """All components and their parts for whole continuations, without the adversary's and without gradient.

        `audio [R, C, N]` holds one or several samples of each item, those of an item consecutive.
        """
        measured = [component for component in self.components if component.loss is not None]
        with shared_spectra():
            target_rows = self._target_rows(audio, batch.target_audio, len(batch))
            values, parts = self._compare(audio, target_rows, batch.input_end, measured, len(batch))
        return values | parts

    def floor(self, batch: Batch) -> dict[str, Tensor]:
        """The components when the prediction is the codec's reconstruction of the reference itself."""
        codec = self.synthesizer.codec
        with torch.no_grad():
            end = codec.decode(batch.context)[..., -batch.target_audio.shape[-1] :]
            through = {True: end, False: codec.decode(batch.target_latents)}
        values = {against_input: self.measure(audio, batch) for against_input, audio in through.items()}
        return {c.name: values[c.against_input][c.name] for c in self.components if c.loss is not None}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of those components in `values` that have a weight, without the adversary's."""
        counted = [c for c in self.components if c.weight and c.loss is not None and c.name in values]
        return torch.stack([c.weight * values[c.name] for c in counted]).sum(0)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """What changes in training: the state of the combiner, the adversary and the losses that have counters.

        Networks that losses compare features of are frozen and not part of it.
        """
        return {name: state for name, part in self._parts().items() if (state := part.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]
        """The opposite of `state_dict`; a part that is new in this run starts afresh, one that is gone is ignored."""
        for name, part in self._parts().items():
            if name in state and part.state_dict():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        counting = {f"losses.{name}": loss for name, loss in self.losses.items() if not [*loss.parameters()]}
        parts = {"combiner": self.combiner, "adversary": self.adversary, **counting}
        return {name: part for name, part in parts.items() if part is not None}

    def _target_rows(self, audio: Tensor, target: Tensor, items: int) -> Tensor:
        """The target's row for each of the audio's."""
        each = torch.arange(len(target), device=target.device).unflatten(0, (items, 1, -1))
        samples = len(audio) // len(target)
        return target if samples == 1 else shared_rows(target, each.expand(-1, samples, -1).flatten())

    def _compare(
        self, audio: Tensor, target: Tensor, source: Tensor, components: Sequence[Component], items: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The components' values and parts; `source` is the input's end, for those that are compared with it."""
        values, parts = dict[str, Tensor](), dict[str, Tensor]()
        samples = len(audio) // len(source)
        left, right = self._pairs(audio, items, samples) if samples > 1 else (None, None)
        for c in components:
            if c.loss is None:
                continue
            if c.against_input:
                target_rows = source.unflatten(0, (items, 1, -1)).expand(-1, samples, -1, -1, -1).flatten(0, 2)
                values[c.name] = _per_item(c.loss(audio[..., -source.shape[-1] :], target_rows), items)
                continue
            values[c.name] = _per_item(c.loss(audio, target), items)
            if left is not None and c.distance:
                parts[c.name + ATTRACTION], parts[c.name + REPULSION] = (
                    values[c.name],
                    _per_item(c.loss(left, right), items),
                )
                values[c.name] = parts[c.name + ATTRACTION] - parts[c.name + REPULSION] / 2
        return values, parts

    def _pairs(self, audio: Tensor, items: int, samples: int) -> tuple[Tensor, Tensor]:
        """Both sides of every unordered pair of an item's samples, block by block."""
        rows = torch.arange(len(audio), device=audio.device).unflatten(0, (items, samples, -1))
        first, second = torch.triu_indices(samples, samples, 1, device=audio.device)
        return shared_rows(audio, rows[:, first].flatten()), shared_rows(audio, rows[:, second].flatten())


def _per_item(values: Tensor, items: int) -> Tensor:
    """Means over each item's rows, `[B]`."""
    return values.unflatten(0, (items, -1)).mean(1)
