"""The imports between the rooms are those that README.md allows, and no more."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import ROOT


def rooms() -> dict[str, set[str]]:
    """README's table of rooms: file or folder, and what it may import of the others."""
    rows = re.findall(r"^\| `([\w./]+)` \|[^|]*\| ([^|]*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows
    return {room: set(re.findall(r"`([\w./]+)`", allowed)) for room, allowed in rows}


def room_of(module: str) -> str | None:
    """The room that a dotted module name lies in; None for other people's modules."""
    parts = module.split(".")
    if parts[0] == "encore":
        return f"encore/{parts[1]}.py" if len(parts) > 1 else None
    if parts[0] == "losses":
        return "losses/"
    return f"{parts[0]}.py" if (ROOT / f"{parts[0]}.py").is_file() else None


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from encore import cli` names a room, `from encore.audio import read_audio` names one already.
            names = [f"encore.{alias.name}" for alias in node.names] if node.module == "encore" else [node.module or ""]
        else:
            continue
        found |= {room for name in names if (room := room_of(name))}
    return found


def test_every_arrow_is_in_the_readme() -> None:
    allowed = rooms()
    files = [*ROOT.glob("*.py"), *ROOT.glob("encore/*.py"), *ROOT.glob("losses/*.py")]
    assert len(files) > 20
    for path in files:
        name = str(path.relative_to(ROOT))
        room = "losses/" if name.startswith("losses/") else name
        if name == "encore/__init__.py":
            assert not imported(path)
            continue
        assert room in allowed, f"README.md's table of rooms lacks {room}"
        assert imported(path) - {room} <= allowed[room], f"{name} imports {imported(path) - allowed[room]}"


def test_no_arrow_points_back() -> None:
    allowed = rooms()
    doors = {name for name in allowed if "/" not in name}
    for room, targets in allowed.items():
        assert not targets & doors, f"{room} may import a door"
        if room.startswith("encore/"):
            assert "losses/" not in targets
    assert not allowed["losses/"]
    # No circle: rooms can be put in an order in which each imports only earlier ones.
    placed: set[str] = set()
    while ready := {room for room, targets in allowed.items() if room not in placed and targets <= placed}:
        placed |= ready
    assert placed == set(allowed)


def test_every_room_of_the_readme_exists_and_is_not_overgrown() -> None:
    for room in rooms():
        assert (ROOT / room).exists(), room
        if room.endswith(".py"):
            most = 400 if room == "train_worker.py" else 320
            assert len((ROOT / room).read_text().splitlines()) <= most, f"{room} is two rooms by now"
