"""The components of an objective, each with its weight's flag: every registered loss, and the adversary's."""

from __future__ import annotations

import losses
from encore.config.knobs import Knob, listed
from encore.errors import EncoreError

WEIGHT = "loss_weight_"  # begins the name of a loss's flag
# The loss `rms` is used twice: against the input and against the target.
RMS_COMPONENTS = {"input": "rms_input", "target": "rms_target"}
ADVERSARIAL = {  # a discriminator's losses, which cannot be computed by themselves
    "gan": "generator's adversarial loss",
    "feature_matching": "L1 of the discriminator's features",
}
MAX_WEIGHT = 1e9
COMMON_LOSSES = ("input", "target", "spectral", "mel", "spectral_energy", "audible_energy")  # that --help shows


def loss_knobs() -> list[Knob]:
    """The weight of every registered loss and of the adversary's.

    Raises:
        EncoreError: a plugin's loss has a name that is taken.
    """
    found = []
    for name, entry in losses.REGISTRY.items():
        if name in (*RMS_COMPONENTS, *RMS_COMPONENTS.values()):
            raise EncoreError(f"the loss {name!r} ({entry.origin}) has the name of a component of rms; rename it")
        if name == "rms":
            found += [_weight(side, f"RMS error against the {side}", entry.group) for side in RMS_COMPONENTS]
        else:
            found.append(_weight(name, entry.summary, entry.group))
    return found + [_weight(name, help, "adversarial") for name, help in ADVERSARIAL.items()]


def _weight(name: str, help: str, group: str) -> Knob:
    return Knob(WEIGHT + name, float, 0.0, help, f"Losses: {group}", 0, MAX_WEIGHT, common=name in COMMON_LOSSES)


def component_of(flag: str) -> str:
    """The component whose weight a flag is."""
    name = flag.removeprefix(WEIGHT)
    return RMS_COMPONENTS.get(name, name)


def registered_name(component: str) -> str:
    """The name under which a component's loss is registered."""
    return "rms" if component in RMS_COMPONENTS.values() else component


def unknown_losses(metrics: str | None) -> list[str]:
    """What is wrong with the losses of --metrics, a list a,b,c: a line that names those that are not registered."""
    unknown = [name for name in listed(metrics or "") if name not in losses.REGISTRY]
    return [f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(losses.REGISTRY)}"] if unknown else []
