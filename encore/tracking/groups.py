"""Names of metrics in groups, `loss/val`, of which trackers' pages make a section each."""

from __future__ import annotations

from collections.abc import Mapping

SHARE = "grad_share_"
BASELINES = ("floor", "copy", "replay", "prior")
PARTS = ("_attraction", "_repulsion")  # suffixes of an energy distance's two parts


def grouped(name: str) -> str:
    """The name of a training run's metric within its group.

    `train_loss` is `loss/train`, `val_loss` is `loss/val`, `val_mel` is `loss/val_mel`; `grad_share_mel` is
    `share/mel`; `prior_mel` is `baseline/prior_mel`; all others, such as the learning rate, are in the group `run`.
    """
    if name.startswith(SHARE):
        return f"share/{name.removeprefix(SHARE)}"
    kind, _, rest = name.partition("_")
    if kind in ("train", "val") and rest:
        return f"loss/{kind if rest == 'loss' else name}"
    return f"baseline/{name}" if kind in BASELINES and rest else f"run/{name}"


def split_constants(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The baselines, which do not change in a run, and the metrics that do, under their grouped names."""
    named = {grouped(name): float(value) for name, value in values.items()}
    constant = {name: value for name, value in named.items() if name.startswith("baseline/")}
    return constant, {name: value for name, value in named.items() if name not in constant}


def first_screen(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics that runs are compared by first, under their grouped names.

    They are the two losses, the components of validation, and the shares of the gradient: for pages that show groups
    before all other metrics, so that constants and details do not come first.
    """
    named = {grouped(name): value for name, value in values.items() if not name.endswith(PARTS)}
    shown = ("loss/train", "loss/val", "share/")
    return {name: value for name, value in named.items() if name.startswith(shown) and name[:11] != "loss/train_"}
