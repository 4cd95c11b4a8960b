"""The wheel: what is in it, and that it works without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT

PROGRAM = """
import sys
import encore, losses
from pathlib import Path

assert Path(encore.__file__).parent.parent == Path(losses.__file__).parent.parent == Path(sys.argv[1]), encore.__file__
from encore.codecs import load_codec
import torch

codec = load_codec("starter")
assert codec.decode(codec.encode(torch.zeros(1, 1, 3200))).shape == (1, 1, 3200)
sys.argv = ["encore", "train", "--help"]
from encore.commands import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that git tracks; without network, with this environment's setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("encore-*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_files_that_they_read(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    needed = {
        path.relative_to(ROOT).as_posix()
        for package in ("encore", "losses")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == needed and any(name.endswith(".safetensors") for name in held)


@pytest.mark.slow
def test_a_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", PROGRAM, str(site)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "--dataset_folder" in result.stdout
