"""A clone needs nothing but itself: no file refers to a place outside, and tests pass with nothing beside it."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command

FROM_FILE = re.compile(r"__file__\)?(?:\.(?:resolve|absolute)\(\))?((?:\.parent\b(?!s))+|\.parents\[\d+\])")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD, alone in a folder."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or there is no git")
    folder = tmp_path_factory.mktemp("alone") / "clone"
    subprocess.run(["git", "-c", "safe.directory=*", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def ways_out(text: str, depth: int) -> list[str]:
    """Places in the text of a file, `depth` folders below the repository's, that refer to something outside of it."""
    relative = [way[0] for way in re.finditer(r"(?:\.\./)+", text) if len(way[0]) // 3 > depth]
    from_file = [
        way[0]
        for way in FROM_FILE.finditer(text)
        if (int(way[1][9:-1]) if "[" in way[1] else way[1].count(".parent") - 1) > depth
    ]
    places = (place for place in (ROOT, Path.home()) if len(place.parts) > 1)
    found = (str(place) for place in places if re.search(rf"(?<![\w./-]){re.escape(str(place))}(?![\w-])", text))
    absolute = list(itertools.islice(found, 1))  # the repository may lie in the home folder
    return [*relative, *from_file, *absolute]


def test_what_leads_out_of_the_repository_is_recognised() -> None:
    up, here = "../", "Path(__file__)"
    for text, depth in (
        (f"see {up}other", 0),
        (f"open('{up * 2}music')", 1),
        (f"{here}.resolve().parents[2] / 'music'", 1),
        (f"{here}.parent.parent.parent", 1),
        (f"music lies in {ROOT}", 3),
    ):
        assert len(ways_out(text, depth)) == 1, text
        assert not ways_out(text, depth + 1) or text.endswith(str(ROOT)), text
    assert not ways_out(f"{here}.resolve().parent.parent", 1)


def test_no_file_refers_to_a_place_outside(clone: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=clone, check=True, capture_output=True, text=True).stdout
    names = [name for name in listed.split("\0") if name]
    assert len(names) > 100
    found = {}
    for name in names:
        content = (clone / name).read_bytes()
        if b"\0" not in content:  # a text
            ways = ways_out(content.decode(), name.count("/"))
            if ways:
                found[name] = ways
    assert not found


@pytest.mark.slow
def test_tests_of_the_losses_pass_with_nothing_beside_the_clone(clone: Path, run_program: Command) -> None:
    program = """
import os, pytest, sys
os.chdir(sys.argv[1])
os.environ["PYTHONPATH"] = sys.path[sys.path.index(sys.argv[2])] = sys.argv[1]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_spectra_rows.py"]))
"""
    result = run_program(program, clone, ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and [path.name for path in clone.parent.iterdir()] == ["clone"]
