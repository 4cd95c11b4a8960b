"""The Dockerfile's context: what it copies is there, is all that training needs, and holds no data."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command

IGNORED = ("pairs", "demo", "checkpoints", ".venv", ".git", "mlflow.db", "tests", "slurm-7.out")


def copied() -> list[str]:
    """The sources of all COPY lines, each of which has a folder or `./` as its target."""
    lines = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()]


def in_context(name: str) -> bool:
    """Whether .dockerignore lets a file or folder of the top level in: the last line that fits decides."""
    result = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fnmatch(name, line.removeprefix("!")):
            result = line.startswith("!")
    return result


def test_what_is_copied_belongs_to_the_repository_and_data_does_not_come_along() -> None:
    assert copied()
    for source in copied():
        listed = subprocess.run(["git", "ls-files", "--", source], cwd=ROOT, capture_output=True, text=True, check=True)
        assert listed.stdout and in_context(source), source
    assert not [name for name in IGNORED if in_context(name)]


@pytest.mark.slow
def test_an_image_holds_all_that_its_entry_point_and_a_training_run_need(tmp_path: Path, run_program: Command) -> None:
    """The context is made as COPY would; in it the scripts find what they name, and a launcher finds its modules."""
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
        copy(ROOT / source, tmp_path / source)
    text = (ROOT / "Dockerfile").read_text()
    (entry,) = re.findall(r'^ENTRYPOINT \["/opt/encore/(\S+)"\]$', text, re.MULTILINE)
    for script in (entry, "setup_venv.sh"):
        subprocess.run(["bash", "-n", tmp_path / script], check=True)
    named = re.findall(r"\brequirements[-\w]*\.lock\b", (tmp_path / "setup_venv.sh").read_text())
    assert {name for name in named if "dev" not in name} <= set(copied())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import encore.commands.rank, encore.commands.train_worker\n"
        "import encore.commands.train as launcher; print(launcher.__file__)"
    )
    done = run_program(program, tmp_path)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
