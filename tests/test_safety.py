"""Nothing that comes from somebody else runs code, leaves its folder, or is shown unescaped."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from encore.data.folders import find_wavs
from encore.inference.folder import SongResult, write_folder_page
from encore.inference.songs import output_names
from encore.models.loading import FORMAT
from tests.conftest import ROOT, Command, write_pairs
from tests.test_page import NASTY, Page

SOURCES = [
    *ROOT.glob("encore/**/*.py"),
    *ROOT.glob("losses/**/*.py"),
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("*.py"),
]
# Modules that can run what a file says.
PICKLES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
# What a function that can must be told so that it doesn't.
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.made),))


@pytest.mark.parametrize("content", [lambda evil: evil, lambda evil: {"format": FORMAT, "model": {"a": evil}}])
@pytest.mark.parametrize("script", ["inference_sample.py", "evaluate.py"])
def test_a_malicious_checkpoint_is_refused(content: Any, script: str, tmp_path: Path, call_command: Command) -> None:
    path = tmp_path / "model.pt"
    torch.save(content(Evil(tmp_path / "made")), path)
    (tmp_path / "pairs").mkdir()
    flags = ("--input", path) if script == "inference_sample.py" else ("--dataset_folder", tmp_path / "pairs")
    result = call_command(script, "--checkpoint", path, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {path}: not a checkpoint of Encore (it asks to run posix.mkdir, which no weights do; delete it)\n"
    )
    assert not (tmp_path / "made").exists()


def test_nothing_is_unpickled_but_tensors_and_plain_values() -> None:
    assert len(SOURCES) > 100
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & PICKLES, path
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("torch.hub.load", "torch.hub.load_state_dict_from_url", "yaml.unsafe_load"), path
            if name in SAFE:
                argument, value = SAFE[name]
                given = {each.arg: each.value for each in node.keywords}.get(argument)
                assert isinstance(given, ast.Constant) and given.value is value, f"{path}: {ast.unparse(node)}"


def test_names_in_metadata_are_never_opened(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", {"train": 1, "val": 1}, seconds=0.3)
    up = "../" * 2
    (folder / "metadata.csv").write_text(f"pair,source_file,split\n{up}x,/etc/passwd,train\npair_0000,{up}y,train\n")
    pairs = find_wavs(folder)
    assert [pair.recording for pair in pairs["train"]] == [f"{up}y"]
    for pair in (*pairs["train"], *pairs["val"]):
        assert pair.input.parent.parent == pair.output.parent.parent == folder


def test_results_stay_in_their_folder_whatever_songs_are_called(tmp_path: Path) -> None:
    songs = [tmp_path / name for name in ("a/..b.wav", "..c.wav", "d\\..\\e.wav", os.fsdecode(b"\xff.wav"))]
    songs.append(tmp_path / ("ü" * 120 + ".wav"))
    for name in output_names(songs, tmp_path):
        assert name not in ("", ".", "..") and "/" not in name
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(songs)


def test_the_page_of_a_folder_of_songs_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    unreadable = Path(os.fsdecode(b"\xff.wav"))
    results = [SongResult(NASTY, [], None)]
    write_folder_page(path, NASTY, {NASTY: NASTY}, results, {Path("x"): NASTY, unreadable: "no"})
    page = Page(path)
    assert page.tags.count("script") == 1
    assert page.text.count(NASTY) == 6  # title, heading, song, fact (2), problem
    assert "?.wav: no" in page.text


def test_no_template_turns_escaping_off() -> None:
    templates = list((ROOT / "encore" / "reporting" / "templates").glob("*.j2"))
    assert len(templates) == 6
    for path in templates:
        assert not re.search(r"\|\s*safe|autoescape|Markup|\{\{[^}]*\}\}[^<>]*</script>", path.read_text()), path


def test_every_mlflow_command_that_is_given_listens_to_this_machine_alone() -> None:
    given = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.sh"), *ROOT.glob("encore/**/*.py")]
    lines = [
        line for path in given for line in path.read_text().splitlines() if re.search(r"mlflow (ui|server) ", line)
    ]
    assert len(lines) >= 3
    assert all("--host 127.0.0.1" in line for line in lines), lines
