"""Names of metrics in groups, `loss/val`, of which trackers' pages make a section each."""

from __future__ import annotations

from collections.abc import Mapping

SHARE = "grad_share_"
BASELINES = ("floor", "copy", "replay", "prior")
PARTS = ("_attraction", "_repulsion")  # suffixes of an energy distance's two parts


def grouped(name: str) -> str:
    """The name of a training run's metric within its group.

    `train_loss` is `loss/train`; `val_mel` is `val/mel`, `train_mel` `train/mel`; `grad_share_mel` is `share/mel`;
    `prior_mel` is `baseline/prior_mel`; all others, such as the learning rate, are in the group `run`.
    """
    if name.startswith(SHARE):
        return f"share/{name.removeprefix(SHARE)}"
    kind, _, rest = name.partition("_")
    if kind in ("train", "val") and rest:
        return f"loss/{kind}" if rest == "loss" else f"{kind}/{rest}"
    return f"baseline/{name}" if kind in BASELINES and rest else f"run/{name}"


def first_screen(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics that runs are compared by first, under their grouped names: losses and shares of the gradient.

    For pages that show groups before all other metrics, so that constants and details do not come first.
    """
    named = {grouped(name): value for name, value in values.items() if not name.endswith(PARTS)}
    return {name: value for name, value in named.items() if name.partition("/")[0] in ("loss", "share", "val")}
