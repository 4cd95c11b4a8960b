"""The losses by name. `@register` beside a loss's definition is all that makes it known.

A name gives the flag `--loss_weight_<name>`, the metrics `train_<name>` and `val_<name>`, and a row in every table.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import getdoc, signature
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from losses.base import FunctionLoss, Loss, bind

GROUPS = ("waveform", "spectral", "perceptual")
ADVERSARIAL = ("gan", "feature_matching")  # the losses of `losses.Adversary`, which are not registered
AnyLoss = TypeVar("AnyLoss", bound=Callable[..., Any])


class Texts(TypedDict):
    """What a loss's docstring says of it, one line each; see `Entry`."""

    summary: str
    formula: str
    use: str


@dataclass(frozen=True)
class Entry:
    """One registered loss.

    Attributes:
        summary: what it is, in one line of plain text.
        build: `build(sample_rate, **options)` gives the loss for audio at `sample_rate` Hz.
        minimum: its value at identity; None where it has no lower bound, as minus a ratio in dB.
        metric: name of the metric that is minus this loss, e.g. "snr_db", and is reported beside it.
        channels: 2 for a loss of stereo audio only.
        package: the optional package that it needs, as pip names it.
        distance: whether it may serve as the distance of an energy distance: symmetric, computed for each item by
            itself, and of negative type, as norms of differences are that are not squared (Székely & Rizzo 2013).
            Such a loss makes a proper scoring rule; one that is squared or normalised by its target does not.
        group: "waveform", "spectral" or "perceptual", under which help texts and tables list it.
        formula: its formula in Markdown, for the tables of the documentation.
        use: when to use it, likewise.
        origin: where it is defined, `module.name`.
        training: options that training adds to the defaults, so that no item can outweigh all others.
    """

    summary: str
    build: Callable[..., Loss]
    minimum: float | None = 0.0
    metric: str | None = None
    channels: int | None = None
    package: str | None = None
    distance: bool = False
    group: str = "waveform"
    formula: str = ""
    use: str = ""
    origin: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)


REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    *,
    group: str = "waveform",
    summary: str | None = None,
    minimum: float | None = 0.0,
    metric: str | None = None,
    channels: int | None = None,
    package: str | None = None,
    distance: bool = False,
    training: Mapping[str, Any] | None = None,
) -> Callable[[AnyLoss], AnyLoss]:
    """A decorator that registers a loss as `name` and returns it unchanged.

    It decorates a function of `(prediction, target, …settings)` that gives one value per item, `[B]`, or a subclass of
    `Loss`. Either may take a `sample_rate` (Hz), which it is then given. The docstring's first line is the summary,
    unless `summary` is given; its paragraphs `Formula: …` and `Use: …` appear in the tables of the documentation. The
    other arguments are explained in `Entry`.

    Raises:
        ValueError: a name that is taken or cannot be part of a flag, an unknown group, or no docstring to summarise.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"a loss cannot be named {name!r}: use lower-case letters, digits and underscores")
    if name in ADVERSARIAL:
        raise ValueError(f"a loss cannot be named {name!r}: that is a loss of `losses.Adversary`")
    if group not in GROUPS:
        raise ValueError(f"the group of the loss {name!r} must be one of {', '.join(GROUPS)}, got {group!r}")

    def decorate(loss: AnyLoss) -> AnyLoss:
        origin = f"{loss.__module__}.{loss.__qualname__}"
        if name in REGISTRY:
            raise ValueError(f"two losses are named {name!r}: {REGISTRY[name].origin} and {origin}; rename one of them")
        texts = described(loss)
        texts["summary"] = summary or texts["summary"]
        if not texts["summary"]:
            raise ValueError(f"the loss {name!r} ({origin}) needs a docstring, whose first line is its summary")
        REGISTRY[name] = Entry(
            build=partial(_build, loss),
            minimum=minimum,
            metric=metric,
            channels=channels,
            package=package,
            distance=distance,
            group=group,
            origin=origin,
            training=training or {},
            **texts,
        )
        return loss

    return decorate


def create(name: str, sample_rate: int, **options: Any) -> Loss:
    """The registered loss `name` for audio at `sample_rate` Hz.

    Args:
        name: see `REGISTRY`.
        sample_rate: Hz; losses that do not depend on it are not given it.
        **options: those of the loss, and `reduction`: "mean" over the items of the batch as the classes have it, "sum",
            or "none" for one value per item.

    Raises:
        ValueError: no loss has that name.
        TypeError: an option that the loss does not take.
    """
    if name not in REGISTRY:
        raise ValueError(f"no loss named {name!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[name].build(sample_rate, **options)


def load_plugins(plugins: str) -> None:
    """Imports modules outside this package, so that the losses in them are registered; each module once.

    Args:
        plugins: a comma list of module names, or of paths that end in `.py`.

    Raises:
        ValueError: a module that does not exist or fails, with what it says.
    """
    for plugin in filter(None, map(str.strip, plugins.split(","))):
        try:
            if plugin.endswith(".py"):
                _load_file(Path(plugin).resolve())
            else:
                importlib.import_module(plugin)
        except Exception as error:  # whatever the module raises, its author is told
            raise ValueError(f"the plugin {plugin} cannot be loaded: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> None:
    name = f"losses_plugin_{path.stem}"
    if name in sys.modules:
        if sys.modules[name].__file__ != str(path):
            raise ValueError(f"{sys.modules[name].__file__} has the same name")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _build(loss: Callable[..., Any], sample_rate: int, *, reduction: str = "mean", **options: Any) -> Loss:
    kind = FunctionLoss.classes.get(loss, loss)
    if "sample_rate" in signature(getattr(kind, "compare", kind)).parameters:
        options["sample_rate"] = sample_rate
    if isinstance(kind, type):
        module: Loss = kind(reduction=reduction, **options)
        return module
    return Loss(partial(loss, **bind(loss, loss.__name__, **options)), reduction)


def described(loss: object) -> Texts:
    """The `summary`, `formula` and `use` that a docstring holds; see `register`.

    The summary is without full stop and, unless it begins with an abbreviation, without capital.
    """
    doc = getdoc(loss) or ""
    line = doc.split("\n", 1)[0].removesuffix(".")
    summary = line[:1].lower() + line[1:] if line[1:2].islower() else line
    return {"summary": summary, "formula": _paragraph(doc, "Formula"), "use": _paragraph(doc, "Use")}


def _paragraph(doc: str, label: str) -> str:
    """The paragraph of a docstring that begins with `label: `, on one line; it ends at a blank line or a label."""
    found = re.search(rf"^{label}: (.*?)(?=^\s*$|^\w+: |\Z)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()).removesuffix(".") if found else ""
