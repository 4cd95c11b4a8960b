"""Registering losses: what the decorator makes of a definition, plugins, exports, tables of the documentation."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import losses
from losses import REGISTRY, FunctionLoss, Loss, functional, register
from losses.__main__ import app
from losses.doctor import docs
from losses.doctor.cases import all_entries, synthesised
from tests.conftest import ROOT, Command
from tests.signals import RATE, noise

PAGE = (ROOT / "docs" / "losses.md").read_text()


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Forgets what a test registers."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
    for name in [name for name in sys.modules if name.startswith("losses_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The loss of docs/extending.md, in a file."""
    text = (ROOT / "docs" / "extending.md").read_text()
    code = text.partition("\n## A loss\n")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_loss.py").write_text(code)
    return tmp_path / "my_loss.py"


def test_a_registered_function_gets_the_rate_and_its_settings() -> None:
    @register("scaled", group="spectral", metric="scaled_db", minimum=None)
    def scaled(prediction: Tensor, target: Tensor, sample_rate: int, factor: float = 1.0) -> Tensor:
        """Error times the rate.

        Formula: `r |p − t|`,
          r the rate.
        Use: never.
        """
        return factor * sample_rate * (prediction - target).abs().mean((1, 2))

    entry = REGISTRY["scaled"]
    assert (entry.summary, entry.formula, entry.use) == ("error times the rate", "`r |p − t|`, r the rate", "never")
    assert (entry.group, entry.metric, entry.minimum, entry.distance) == ("spectral", "scaled_db", None, False)
    assert entry.origin.startswith("tests.test_loss_registry.") and entry.origin.endswith(".scaled")
    prediction, target = noise((2, 1, 100), 0)
    expected = 3 * 8000 * (prediction - target).abs().mean((1, 2))
    assert torch.equal(losses.create("scaled", 8000, reduction="none", factor=3.0)(prediction, target), expected)
    assert losses.create("scaled", 8000)(prediction, target).dim() == 0
    assert list(REGISTRY)[-1] == "scaled"


def test_a_registered_class_is_built_with_the_rate_if_it_takes_one() -> None:
    @register("a_class", summary="one given by hand")
    class Rated(Loss):
        def __init__(self, sample_rate: int, reduction: str = "mean"):
            super().__init__(lambda p, t: sample_rate * (p - t).square().mean((1, 2)), reduction)

    @register("a_function_loss")
    class Derived(FunctionLoss):
        """L1 in hertz."""

        compare = staticmethod(lambda p, t, sample_rate: sample_rate * (p - t).abs().mean((1, 2)))

    assert REGISTRY["a_class"].summary == "one given by hand" and REGISTRY["a_function_loss"].summary == "L1 in hertz"
    pair = torch.ones(2, 1, 4), torch.zeros(2, 1, 4)
    for name, kind in (("a_class", Rated), ("a_function_loss", Derived)):
        loss = losses.create(name, RATE, reduction="none")
        assert isinstance(loss, kind) and loss(*pair).tolist() == [RATE, RATE]


def test_what_cannot_be_registered_is_refused_with_the_reason() -> None:
    def nameless(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean((1, 2))

    with pytest.raises(ValueError, match=r"two losses are named 'mel': losses\.spectrograms\.mel and .*nameless"):
        register("mel", summary="another one")(nameless)
    with pytest.raises(ValueError, match=r"the loss 'mine' \(.*nameless\) needs a docstring"):
        register("mine")(nameless)
    with pytest.raises(ValueError, match="cannot be named 'My loss'"):
        register("My loss")
    with pytest.raises(ValueError, match="cannot be named 'gan': that is a loss of `losses.Adversary`"):
        register("gan")
    with pytest.raises(ValueError, match="group of the loss 'mine' must be one of waveform, spectral, perceptual"):
        register("mine", group="magic")
    assert "mine" not in REGISTRY


def test_settings_that_a_loss_does_not_take_are_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="n_mel"):
        losses.MelLoss(RATE, n_mel=40)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="sample_rate"):
        losses.MelLoss()  # type: ignore[call-arg]
    assert torch.equal(
        losses.MelLoss(RATE, 512)(*noise((1, 1, 900), 1)), losses.MelLoss(RATE, n_fft=512)(*noise((1, 1, 900), 1))
    )


def test_a_file_of_ones_own_is_a_loss_like_the_others(example: Path) -> None:
    result = CliRunner().invoke(app, ["--plugins", str(example), "--only", "median_error,rms", "--seconds", "0.1"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^median_error +0\.09", result.output, re.MULTILINE)
    losses.load_plugins(f" {example}, ")  # again, which does nothing
    prediction, target = noise((2, 1, 101), 2)
    value = losses.create("median_error", RATE, reduction="none")(prediction, target)
    assert torch.equal(value, (prediction - target).abs().flatten(1).median(1).values)
    row = "| `median_error` | `median(\\|p − t\\|)` over channels and samples | when a few large errors do not matter |"
    assert row in docs.updated(PAGE, {})


@pytest.mark.slow
def test_the_contract_holds_for_a_loss_of_ones_own(example: Path, run_program: Command) -> None:
    program = """
import os, pytest, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[2])
sys.exit(pytest.main(["-q", "-p", "my_loss", "tests/test_loss_contract.py", "-k", "median_error"]))
"""
    result = run_program(program, ROOT, example.parent)
    assert result.returncode == 0 and re.search(r"\b[12]\d passed", result.stdout), result.stdout


def test_a_module_is_a_plugin_too(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(example.parent))
    losses.load_plugins("my_loss")
    assert REGISTRY["median_error"].origin == "my_loss.median_error"
    monkeypatch.delitem(sys.modules, "my_loss")


def test_plugins_that_fail_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("from losses import register\nregister('x', group='y')")
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "fine.py").write_text("")
    losses.load_plugins(str(tmp_path / "fine.py"))
    for plugin, reason in {
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
        str(tmp_path / "missing.py"): "FileNotFoundError",
        str(tmp_path / "broken.py"): "the group of the loss 'x' must be one of",
        str(tmp_path / "other" / "fine.py"): "has the same name",
    }.items():
        with pytest.raises(ValueError, match=f"the plugin {re.escape(plugin)} cannot be loaded: .*{reason}"):
            losses.load_plugins(plugin)
    result = CliRunner().invoke(app, ["--plugins", "no_such_module"])
    assert (
        result.exit_code == 2 and "error: --plugins no_such_module: the plugin no_such_module cannot" in result.output
    )


def test_the_losses_of_this_package_are_exported() -> None:
    """Written down in `losses/__init__.py` and `losses/functional.py`, where type checkers and editors see them."""
    classes = [getattr(losses, name) for name in losses.__all__ if isinstance(getattr(losses, name), type)]
    modules = {kind.compare for kind in classes if issubclass(kind, FunctionLoss) and kind is not FunctionLoss}
    for name, entry in REGISTRY.items():
        module, _, defined = entry.origin.rpartition(".")
        loss = getattr(importlib.import_module(module), defined)
        if isinstance(loss, type):
            assert loss in classes, f"{name}: losses/__init__.py lacks {defined}"
        else:
            assert defined in functional.__all__, f"{name}: losses/functional.py lacks {defined}"
            assert loss in modules, f"{name}: losses/__init__.py lacks a FunctionLoss of {defined}"
        assert entry.formula and entry.use, f"{name}: its docstring lacks 'Formula:' or 'Use:'"


def test_the_documentations_tables_are_those_of_the_registry() -> None:
    scales = docs.written_scales(PAGE)
    assert scales.keys() == all_entries().keys()
    assert docs.updated(PAGE, scales) == PAGE, "run python -m losses.doctor.docs docs/losses.md"
    with pytest.raises(ValueError, match="the page lacks the table <!-- losses: "):
        docs.updated("# An empty page", scales)


def test_the_documentations_typical_scales_are_measured() -> None:
    written = docs.written_scales(PAGE)
    material, entries = synthesised(24000, 1), all_entries()
    for name in ("rms", "mel", "random_resolution_stft", "sum_and_difference_stft", "embedding", "feature_matching"):
        measured = docs.scales_of(entries[name], material)
        assert [float(value) for value in written[name]] == pytest.approx([float(v) for v in measured], rel=0.02), name
