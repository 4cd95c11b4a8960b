"""Settings as fields of frozen dataclasses, from which flags, help texts, checks and files are made.

A field made with `knob` is one setting. A field whose type is a dataclass is a group of settings. Settings have flat
names, those of their flags, whatever group they are in.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")
MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9  # of steps, epochs or items
MAX_SECONDS = 86400.0 * 30  # of audio


@dataclass(frozen=True)
class Knob:
    """One setting.

    Attributes:
        name: of its flag, without the dashes.
        kind: bool, int, float, str, Path, or tuple for a flag that may be given several times.
        default: its value unless it is set; None where it may stay open.
        help: what it is, with its unit.
        panel: the heading that it stands under in the help text.
        minimum: least value of a number; every number has one, and a maximum.
        maximum: largest value of it. Far beyond what makes sense, but nothing is allocated or waited for in vain.
        choices: the values that are allowed; empty for any.
        common: whether `--help` shows it; `--help_all` shows every one.
        argument: whether it is a required argument without a flag.
    """

    name: str
    kind: type
    default: Any
    help: str
    panel: str
    minimum: float | None = None
    maximum: float | None = None
    choices: Collection[Any] = ()
    common: bool = False
    argument: bool = False


def knob(
    default: Any,
    help: str,
    panel: str = "Options",
    *,
    flag: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[Any] = (),
    common: bool = False,
    argument: bool = False,
) -> Any:
    """A field that is one setting; see `Knob`. `flag` names it if the field's own name is another."""
    shown = {"help": help, "panel": panel, "common": common, "argument": argument}
    allowed = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata={"flag": flag, **allowed, **shown})


def many(knobs: Callable[[], list[Knob]]) -> Any:
    """A field that is a mapping of settings, by flag; those at their default are left out. `knobs()` lists them."""
    return field(default_factory=dict, metadata={"knobs": knobs})


def knobs_of(config_class: type) -> list[Knob]:
    """Every setting of a configuration and its groups, in order."""
    hints = get_type_hints(config_class)
    found: list[Knob] = []
    for entry in fields(config_class):
        if is_dataclass(hints[entry.name]):
            found += knobs_of(hints[entry.name])
        elif "knobs" in entry.metadata:
            found += entry.metadata["knobs"]()
        else:
            meta = {key: value for key, value in entry.metadata.items() if key != "flag"}
            found.append(Knob(_flag(entry), _plain(hints[entry.name]), entry.default, **meta))
    return found


def from_flags(config_class: type[C], flags: Mapping[str, Any]) -> C:
    """A configuration from values by flag; what is not among them has its default.

    Raises:
        TypeError: a name that is no flag.
    """
    left = dict(flags)
    config = _build(config_class, left)
    if left:
        raise TypeError(f"{config_class.__name__} has no setting {', '.join(left)}")
    return config


def to_flags(config: Any) -> dict[str, Any]:
    """The opposite of `from_flags`: every setting's value by flag, in the order of `knobs_of`."""
    found: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= to_flags(value)
        elif "knobs" in entry.metadata:
            found |= {one.name: value.get(one.name, one.default) for one in entry.metadata["knobs"]()}
        else:
            found[_flag(entry)] = value
    return found


def problems_of(config: Any) -> list[str]:
    """What lies outside the bounds or choices of its setting, a line each, with flag, value and remedy."""
    values, problems = to_flags(config), []
    for one in knobs_of(type(config)):
        value = values[one.name]
        if problem := out_of_bounds(one, value):
            problems.append(problem)
        if one.choices and value is not None and value not in one.choices:
            problems.append(f"--{one.name} {value}: must be one of {', '.join(map(str, one.choices))}")
    return problems


def out_of_bounds(one: Knob, value: Any) -> str | None:
    """What is wrong with a number, with its flag and the bounds."""
    least, most = (math.inf if bound is None else bound for bound in (one.minimum, one.maximum))
    # Written so that NaN, which is neither above nor below, is refused too.
    if value is None or one.minimum is None or least <= value <= most and abs(value) < math.inf:
        return None
    kind = "a whole number" if one.kind is int else "a number"
    return f"--{one.name} {value}: must be {kind} from {shown(least)} to {shown(most)}"


def shown(number: float) -> str:
    """A bound as a person writes it."""
    return f"{number:.10g}"


def listed(names: str) -> list[str]:
    """The names of a list a,b,c."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _build(config_class: type[C], left: dict[str, Any]) -> C:
    """Takes what it needs out of `left`."""
    hints = get_type_hints(config_class)
    values: dict[str, Any] = {}
    for entry in fields(config_class):  # type: ignore[arg-type]
        if is_dataclass(hints[entry.name]):
            values[entry.name] = _build(hints[entry.name], left)
        elif "knobs" in entry.metadata:
            given = [(one, left.pop(one.name)) for one in entry.metadata["knobs"]() if one.name in left]
            values[entry.name] = {one.name: value for one, value in given if value != one.default}
        elif _flag(entry) in left:
            values[entry.name] = left.pop(_flag(entry))
    return config_class(**values)


def _flag(entry: Field[Any]) -> str:
    return str(entry.metadata["flag"] or entry.name)


def _plain(hint: Any) -> type:
    """The type without `None`, and a tuple's without what it holds."""
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    plain: type = get_origin(hint) or hint
    return plain
