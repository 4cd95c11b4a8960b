"""What turns samples and references into numbers, and numbers into gradients: regression and the energy distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from encore.data.dataset import Batch
from encore.training.synthesis import Hearing, Plan

ATTRACTION, REPULSION = "_attraction", "_repulsion"  # end the names of an energy distance's two parts


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
        distance: whether it may serve as an energy distance's d; otherwise it attracts samples and doesn't repel them.
    """

    name: str
    label: str
    weight: float
    against_input: bool
    loss: nn.Module | None
    metric: str | None = None
    distance: bool = False


@dataclass(frozen=True)
class Outcome:
    """A batch's way through the objective.

    Attributes:
        audio: what is heard of the samples, `[R, C, N]`: for each item its samples, for each of these its blocks.
        target: what is heard of the target beside each, `[R, C, N]`.
        values: the components that are trained on, one value per item each, `[B]`.
        parts: attraction and repulsion of each where there are several samples, likewise.
    """

    audio: Tensor
    target: Tensor
    values: dict[str, Tensor]
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a batch gave to an optimiser step.

    Attributes:
        values: figures of one value per item, `[B]`: the components that took part, their attraction and repulsion,
            and the discriminator's own loss.
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


class Objective(nn.Module):
    """A weighted sum of losses on decoded audio, as a regression or as an energy distance.

    With one sample x per item a component is `d(x, y)`, its loss to the target y. With several it is the generalised
    energy distance (Székely & Rizzo 2013; as a loss Gritsenko et al. 2020), but for what doesn't depend on samples:

        mean_i d(x_i, y) − ½ mean_{i ≠ j} d(x_i, x_j)

    Over targets its mean is least where samples are distributed as targets are, if d is a distance of negative type. A
    loss that is none only attracts: for it the second term is left out, as for the adversary's and those against the
    input.

    Args:
        components: terms of the sum.
        hearing: samples and decodes.
        shared: context in which losses share what they compute of one signal.
        rows: `rows(signal, index)`: items of a signal, which share with it what is computed of either.
        combiner: makes one gradient of the components.
        adversary: gives the components that have no loss of their own.
    """

    def __init__(
        self,
        components: Sequence[Component],
        hearing: Hearing,
        shared: Callable[[], AbstractContextManager[None]],
        rows: Callable[[Tensor, Tensor], Tensor],
        combiner: Combiner,
        adversary: Adversary | None = None,
    ):
        super().__init__()
        self.components = list(components)
        self.losses = nn.ModuleDict({c.name: c.loss for c in components if c.loss is not None})
        self.hearing, self.combiner, self.adversary = hearing, combiner, adversary
        self.sample_rate = hearing.codec.sample_rate
        self.shared, self.rows = shared, rows

    def forward(self, model: nn.Module, batch: Batch, plan: Plan) -> Outcome:
        """The components that are trained on."""
        audio = self.hearing.predict(model, batch, plan)
        target, source = self.hearing.references(batch, plan)
        trained = [component for component in self.components if component.weight]
        with self.shared():
            beside = self._beside(audio, target, len(batch))
            values, parts = self._compare(audio, beside, source, trained, len(batch))
        if self.adversary is not None:
            given = self.adversary(audio, beside)
            values |= {c.name: _per_item(given[c.name], len(batch)) for c in trained if c.loss is None}
        return Outcome(audio, beside, values, parts)

    def backward(self, outcome: Outcome, scale: float, measure: bool) -> Step:
        """Adds `scale` times the gradient of the mean over items to the model's, in one pass through the decoder.

        The gradient is combined at the audio, from there it goes on; with `measure`, each component's share of it is
        known. The discriminator's own gradient is added to its weights' too.
        """
        combined = self.combiner(outcome.values, outcome.audio, measure)
        # Detached, because the decoder's pass needs the memory that the losses' graphs hold.
        for values in (outcome.values, outcome.parts):
            values.update({name: value.detach() for name, value in values.items()})
        items = len(next(iter(outcome.values.values())))
        # The combiner's mean is over the audio's rows, of which every item has several.
        outcome.audio.backward(combined.gradient * (scale * len(outcome.audio) / items))
        values = {name: value for name, value in outcome.values.items() if name not in combined.left_out}
        nothing = torch.full((items,), math.nan, device=outcome.audio.device)
        total = self.total(values) if any(name in self.losses for name in values) else nothing
        finite = bool(torch.cat([total, *values.values()]).isfinite().all())
        kept = {name + part for name in values for part in (ATTRACTION, REPULSION)}
        values |= {name: value for name, value in outcome.parts.items() if name in kept}
        if self.adversary is not None and self.adversary.due:
            values["disc_loss"] = _per_item(self.adversary.accumulate(outcome.audio, outcome.target, scale), items)
        return Step(values, total, combined.shares, combined.left_out, finite)

    def end_step(self, skip: bool) -> None:
        """Ends an optimiser step; `skip` leaves the discriminator as it is."""
        if self.adversary is not None:
            self.adversary.step(skip)

    @torch.no_grad()
    def measure(self, audio: Tensor, batch: Batch) -> dict[str, Tensor]:
        """All components and their parts for whole continuations, but for the adversary's, without gradient.

        `audio [R, C, N]` holds one sample or several of each item, next to one another.
        """
        measured = [component for component in self.components if component.loss is not None]
        with self.shared():
            beside = self._beside(audio, batch.target_audio, len(batch))
            values, parts = self._compare(audio, beside, batch.input_audio, measured, len(batch))
        return values | parts

    def floor(self, batch: Batch) -> dict[str, Tensor]:
        """The components when the prediction is each reference itself, through the codec."""
        codec = self.hearing.codec
        with torch.no_grad():
            through = {True: codec.decode(batch.context), False: codec.decode(batch.target_latents)}
        values = {against_input: self.measure(audio, batch) for against_input, audio in through.items()}
        return {c.name: values[c.against_input][c.name] for c in self.components if c.loss is not None}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of those components in `values` that have a weight, but for the adversary's."""
        counted = [c for c in self.components if c.weight and c.loss is not None and c.name in values]
        return torch.stack([c.weight * values[c.name] for c in counted]).sum(0)

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

    def _beside(self, audio: Tensor, target: Tensor, items: int) -> Tensor:
        """The target's row for each of the audio's."""
        each = torch.arange(len(target), device=target.device).unflatten(0, (items, 1, -1))
        samples = len(audio) // len(target)
        return target if samples == 1 else self.rows(target, each.expand(-1, samples, -1).flatten())

    def _compare(
        self, audio: Tensor, target: Tensor, source: Tensor, components: Sequence[Component], items: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The components' values and their parts; `source` is the input, for those that are compared with it."""
        values, parts = dict[str, Tensor](), dict[str, Tensor]()
        samples = len(audio) // len(source)
        left, right = self._pairs(audio, items, samples) if samples > 1 else (None, None)
        for c in components:
            if c.loss is None:
                continue
            if c.against_input:
                beside = source.unflatten(0, (items, 1, -1)).expand(-1, samples, -1, -1, -1).flatten(0, 2)
                values[c.name] = _per_item(c.loss(audio[..., -source.shape[-1] :], beside), items)
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
        """Both sides of every pair of an item's samples, at equal blocks. A distance is symmetric: once is enough."""
        rows = torch.arange(len(audio), device=audio.device).unflatten(0, (items, samples, -1))
        first, second = torch.triu_indices(samples, samples, 1, device=audio.device)
        return self.rows(audio, rows[:, first].flatten()), self.rows(audio, rows[:, second].flatten())


def _per_item(values: Tensor, items: int) -> Tensor:
    """Means over each item's rows, `[B]`."""
    return values.unflatten(0, (items, -1)).mean(1)
