"""Flags in YAML and JSON files: read with their types, and all that is wrong with them reported at once."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from encore.config.knobs import knobs_of, listed
from encore.errors import EncoreError
from encore.registry import LOADED

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    tuple: "a list of texts",
}
MAX_BYTES = 2**20  # of a file
Refusal = Callable[[str], str | None]


def read_flags(path: Path, config_class: type) -> dict[str, Any]:
    """The flags of a file for `--config`: a mapping of names without dashes; what is null is left out.

    Raises:
        EncoreError: the file cannot be read, it names plugins that are not loaded, or all that is wrong with its names
            and values, a line each.
    """
    content = read_yaml(path, "--config")
    if not isinstance(content, dict):
        raise EncoreError(f"--config {path}: must hold flags and their values, e.g. lr: 1e-4")
    unknown = [name for name in listed(str(content.get("plugins") or "")) if name not in LOADED]
    if unknown:  # a file of settings does not decide what code is run
        raise EncoreError(f"--config {path}: plugins: name them on the command line too: --plugins {','.join(unknown)}")
    content.pop("plugins", None)  # the command line has them
    problems: list[str] = []
    flags = typed_flags(content, config_class, f"--config {path}", problems)
    if problems:
        raise EncoreError("\n".join(problems))
    return {name: value for name, value in flags.items() if value is not None}


def read_yaml(path: Path, flag: str, hint: str = "") -> Any:
    """The content of a YAML file, of which JSON is a part; every key of a mapping stands in it once.

    Raises:
        EncoreError: no such file, or no YAML; names the flag, with `hint`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EncoreError(f"{flag} {path}: cannot be read ({error.strerror}){hint}") from error
    if len(content) > MAX_BYTES:
        raise EncoreError(f"{flag} {path}: more than {MAX_BYTES} bytes; files of flags are shorter{hint}")
    try:
        return yaml.load(content.decode("utf-8"), Loader=_UniqueKeys)
    except Exception as error:  # besides YAMLError, PyYAML lets through what numbers, dates and depth make Python raise
        raise EncoreError(f"{flag} {path}: {' '.join(str(error).split()):.300}") from error


def typed_flags(
    flags: Mapping[Any, Any],
    config_class: type,
    where: str,
    problems: list[str],
    refuse: Refusal = lambda name: None,
) -> dict[str, Any]:
    """The values in the types of their settings; what is wrong is added to `problems`, a line each.

    Args:
        where: begins every line.
        refuse: gives the reason why a flag may not stand here, if there is one.
    """
    known = {one.name: one for one in knobs_of(config_class)}
    typed = {}
    for flag, value in flags.items():
        name = str(flag)
        if reason := refuse(name):
            problems.append(f"{where}: {name}: {reason}")
        elif name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"{where}: {name:.80}: there is no such flag{hint}")
        else:
            try:
                optional = value is None and known[name].default is None
                typed[name] = None if optional else _typed(value, known[name].kind)
            except (TypeError, ValueError, OverflowError):
                # Shortened, because a few lines of YAML can stand for a value of any size.
                problems.append(f"{where}: {name}: {reprlib.repr(value)} is not {KINDS[known[name].kind]}")
    return typed


def _typed(value: Any, kind: type) -> Any:
    """`value` as `kind`; raises TypeError or ValueError."""
    if isinstance(value, bool) != (kind is bool) or value is None:
        raise TypeError
    if isinstance(value, str) and "\0" in value:  # in no file name, nor on a command line
        raise ValueError
    if kind is float and isinstance(value, str | int | float):
        return float(value)  # YAML takes 1e-3, without a point, for text
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, int | float):
        return str(value)
    if kind is tuple and isinstance(value, list):
        return tuple(str(part) for part in value)
    if not isinstance(value, kind):
        raise TypeError
    return value


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name every key once; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):  # also keeps lists and mappings out, which cannot be in a set
                raise yaml.constructor.ConstructorError(None, None, "a key that is not a name", key_node.start_mark)
            if key in known:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            known.add(key)
        return super().construct_mapping(node, deep)
