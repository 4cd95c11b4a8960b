"""The documentation: README's limits, the curves of the losses, and the site in a browser, from the disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from playwright.sync_api import sync_playwright
from torch import Tensor

from benchmarks.plot_losses import along, astray, curve, higher, later, louder, noisier, page, target
from losses.doctor.cases import all_entries
from losses.registry import REGISTRY
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
CHROMIUM = "/usr/bin/chromium"
CURVES = ROOT / "docs" / "loss_curves"


def test_readme_is_short_and_names_every_library() -> None:
    assert len(README.split()) <= 900
    libraries = README.partition("## Libraries")[2]
    for path in (ROOT / f"requirements{part}.txt" for part in ("", "-app", "-trackers", "-docs", "-dev")):
        for name in re.findall(r"^([A-Za-z][\w.-]*)", path.read_text(), re.M):
            if name != "mkdocs":  # mkdocs-material brings it
                assert re.search(rf"\b{re.escape(name)}\b", libraries), f"{name} of {path.name} has no reason in README"


def test_readme_names_commands_that_exist() -> None:
    for script in re.findall(r"^ {4}(?:\S+/python|python) (\w+\.py)|^ {4}(\./\w+\.sh)", README, re.M):
        assert (ROOT / "".join(script)).is_file(), script
    help = subprocess.run([sys.executable, "-m", "encore", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    commands = set(re.findall(r"-m encore (\w+)", README))
    assert commands and all(re.search(rf"^│ {name} ", help, re.M) for name in commands), help


def test_citation_and_changes_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    current = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert current is not None and citation["version"] == current[1]
    newest = re.search(r"^## \[(.*)\] – (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest.groups() == (citation["version"], str(citation["date-released"]))


def test_every_loss_has_its_curves() -> None:
    assert (ROOT / "docs" / "loss_curves.md").read_text() == page(all_entries()), "run python -m benchmarks.plot_losses"
    assert {path.stem for path in CURVES.iterdir()} == {*all_entries()}
    for path in CURVES.iterdir():
        labels = re.findall(r"<text[^>]*>([a-z]+[,:] [^<]*)</text>", path.read_text())
        assert labels == ["level, dB", "delay, ms", "pitch, cents", "noise: SNR, dB"], path


def test_curves_have_the_values_and_gradients_of_the_formulas() -> None:
    level = float(target()[:, :1].square().mean().sqrt())
    gains = torch.tensor([-6.0206, 6.0206])
    found = curve(REGISTRY["rms"], along("", gains, louder))
    assert found.value.tolist() == pytest.approx([0.5 * level, 1.0 * level], rel=1e-4)
    # The RMS of N samples has a gradient of the norm 1 / sqrt(N); here it points along the music itself.
    assert found.gradient.tolist() == pytest.approx(2 * [target().shape[-1] ** -0.5], rel=1e-4)
    assert found.slope.tolist() == pytest.approx([-1, 1], abs=1e-4)


@pytest.mark.parametrize("change, setting", [(later, 0.2), (higher, 5.0), (noisier, 10.0)])
def test_slopes_are_those_of_the_values(change: Callable[[Tensor], Tensor], setting: float) -> None:
    sweep = along("", setting * torch.tensor([0.99, 1.0, 1.01]), change)
    found = curve(REGISTRY["rms"], sweep)
    slope = found.slope * found.gradient * sweep.derivatives[:, 0].norm(dim=1)
    assert float(slope[1]) == pytest.approx(float(found.value[2] - found.value[0]) / (0.02 * setting), rel=1e-2)


def test_what_leads_away_from_the_target_is_marked() -> None:
    for change, settings, reverse in ((louder, [-3.0, 3.0], False), (noisier, [3.0, 30.0], True)):
        sweep = along("", torch.tensor(settings), change, reverse)
        found = curve(REGISTRY["rms"], sweep)
        assert not astray(sweep, found).any()
        assert astray(sweep, replace(found, slope=-found.slope)).all()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as run_tests.sh does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_opens_from_the_disk_with_search_and_loads_nothing_from_elsewhere(site: Path) -> None:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs a browser, {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        problems: list[object] = []
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: problems.append(error))
        # What is still being fetched when the next page is opened is aborted.
        view.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else problems.append(r.url))
        for page_of_site in ("listen/index", "loss_curves", "api/loss_functions"):
            view.goto((site / f"{page_of_site}.html").as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= 390, f"{page_of_site} is too wide"
        view.goto((site / "index.html").as_uri())
        view.click("label[for=__search]")
        view.locator(".md-search__input").press_sequentially("pipeline")
        view.wait_for_selector('.md-search-result__link[href*="api/encore.html"]')
        browser.close()
    assert not problems
    assert len(asked) > 10 and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.slow
def test_the_api_pages_have_signatures_and_docstrings(site: Path) -> None:
    text = re.sub("<[^>]*>", "", (site / "api" / "encore.html").read_text())
    assert "ContinuationPipeline" in text and "temperature: float = 1.0" in text
    assert "standard deviation of the model's noise" in text.replace("&#39;", "'")
    functions = (site / "api" / "loss_functions.html").read_text()
    missing = [name for name in REGISTRY if f'id="{REGISTRY[name].origin}"' not in functions]
    assert not missing, f"docs/api/loss_functions.md lacks {missing}"
