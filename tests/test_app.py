"""The interactive page: in a real browser with a real song, and the sounds that it serves while they are generated."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import os
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from encore.audio import read_excerpt
from encore.commands import app
from encore.config import cli
from encore.inference.continuation import continue_song
from encore.inference.live import LEAD_SECONDS, Limits
from encore.inference.live_audio import LiveAudio, LiveSounds
from encore.models.loading import load_generator
from tests.conftest import SAMPLE_RATE, melody

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
END, SECONDS = 2.5, 2.0


@contextlib.contextmanager
def served(application: Any) -> Iterator[str]:
    """The URL of an application that is served by a thread."""
    import uvicorn

    with app.listening(0) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{app.HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def page(trained: Path, trained_regression: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app with two models, opened in Chromium; `page.asked` are the URLs that it asked for."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    monkeypatch.setattr(os, "environ", {**os.environ, **app.NO_NETWORK, "GRADIO_TEMP_DIR": str(tmp_path / "gradio")})
    checkpoints = [folder / "checkpoints" / "best_model.pt" for folder in (trained, trained_regression)]
    config = app.AppConfig(checkpoint=checkpoints[0], against=checkpoints[1], device="cpu", precision="fp32")
    application = app.application_of(app.load_models(config), Limits(song_minutes=0.1), max_megabytes=1)
    with served(application) as url, sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened: Any = browser.new_page()
        opened.asked, opened.home = [], url
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(url)
        yield opened
        browser.close()


@pytest.mark.slow
def test_a_dropped_song_is_continued_by_both_models_and_plays(page: Any, trained: Path, tmp_path: Path) -> None:
    song = tmp_path / "a song.flac"
    soundfile.write(song, melody(4.0, 77), SAMPLE_RATE)
    (tmp_path / "text.wav").write_text("not music")
    soundfile.write(tmp_path / "long.wav", np.zeros(7 * SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(tmp_path / "large.wav", np.zeros(2**20), SAMPLE_RATE)

    def drop(name: str, expected: str) -> None:
        page.set_input_files("input[type=file]", tmp_path / name)
        page.get_by_text(expected).first.wait_for()

    drop("large.wav", "exceed the maximum allowed size")
    drop("long.wav", "at most 0.1 are taken")
    page.get_by_label("Clear").first.click()
    drop("text.wav", "text.wav: cannot be read")
    page.get_by_label("Clear").first.click()
    drop("a song.flac", "a song.flac: 4.00 s")
    for label, value in (("Continue from", END), ("Seconds to generate", SECONDS), ("Candidates", 2)):
        field = page.get_by_label(f"number input for {label}")
        field.fill(str(value))
        field.press("Tab")
    page.get_by_role("button", name="Continue").click()
    page.locator(".picture img").nth(2).wait_for()  # two of the first model, one of the regression

    players = page.locator(".sound audio")
    assert [players.nth(n).get_attribute("aria-label") for n in range(players.count())] == [
        *(f"checkpoints/best_model.pt, seed {seed}" for seed in (0, 1)),
        "checkpoints/best_model.pt (--against), continuation",
    ]
    page.wait_for_function("document.querySelector('.sound audio').currentTime > 0.1")  # plays by itself
    generator = load_generator(trained / "checkpoints" / "best_model.pt", torch.device("cpu"))
    heard = read_excerpt(song, SAMPLE_RATE, 1, 0, round(END * SAMPLE_RATE))
    made = continue_song(generator, heard, SECONDS, range(2))
    lead = min(made.context.shape[-1], round(LEAD_SECONDS * SAMPLE_RATE))
    for number, full in enumerate(made.full[..., made.context.shape[-1] - lead :]):
        with urllib.request.urlopen(f"{page.home}/{players.nth(number).get_attribute('src')}") as answer:
            stored, rate = soundfile.read(io.BytesIO(answer.read()))
        assert rate == SAMPLE_RATE
        np.testing.assert_allclose(stored, full[0], atol=1e-3)
    assert page.evaluate("document.querySelector('.sound audio').duration") == pytest.approx(full.shape[-1] / rate)
    elsewhere = [url for url in page.asked if not url.startswith((page.home, "data:", "blob:"))]
    assert len(page.asked) > 10 and not elsewhere


def wav_of(sounds: LiveSounds, url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of the answer to a request."""
    from starlette.requests import Request

    async def ask() -> tuple[int, dict[str, str], bytes]:
        scope = {
            "type": "http",
            "path_params": {"name": url.removeprefix("live/").removesuffix(".wav")},
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        answer = await sounds.respond(Request(scope))
        parts = getattr(answer, "body_iterator", None)
        content = answer.body if parts is None else b"".join([part async for part in parts])
        return answer.status_code, dict(answer.headers), bytes(content)

    return asyncio.run(ask())


def test_a_sound_is_served_at_its_full_length_while_it_grows() -> None:
    sounds, audio = LiveSounds(), torch.linspace(-1, 1, 3000).repeat(2, 1)
    sound = LiveAudio(8000, 2, 3000)
    url = sounds.add(sound)
    sound.append(audio[:, :1000])

    def complete() -> None:
        sound.append(audio[:, 1000:])
        sound.finish()

    rest = threading.Timer(0.1, complete)
    rest.start()
    status, headers, content = wav_of(sounds, url)
    rest.join()
    assert (status, headers["content-length"]) == (200, str(44 + 3000 * 4))
    stored, rate = soundfile.read(io.BytesIO(content), always_2d=True)
    assert rate == 8000
    np.testing.assert_allclose(stored.T, audio, atol=1e-4)
    status, headers, part = wav_of(sounds, url, range="bytes=100-199")
    assert (status, headers["content-range"], part) == (206, "bytes 100-199/12044", content[100:200])
    assert wav_of(sounds, url, range="bytes=20000-")[0] == 416
    assert wav_of(sounds, "live/unknown.wav")[0] == 404


def test_a_sound_that_is_stopped_ends_in_silence_for_who_listens_and_is_short_for_who_downloads_it() -> None:
    sounds, sound = LiveSounds(), LiveAudio(8000, 1, 3000)
    url = sounds.add(sound)
    sound.append(torch.full((1, 1000), 0.5))
    stop = threading.Timer(0.1, sound.finish)
    stop.start()
    _, _, listened = wav_of(sounds, url)
    stop.join()
    stored = soundfile.read(io.BytesIO(listened))[0]
    assert len(stored) == 3000 and stored[:1000].min() > 0.49 and not stored[1000:].any()
    assert len(soundfile.read(io.BytesIO(wav_of(sounds, url)[2]))[0]) == 1000


def test_only_the_latest_sounds_are_kept() -> None:
    sounds = LiveSounds()
    urls = [sounds.add(LiveAudio(8000, 1, 0, finished=True)) for _ in range(40)]
    assert [wav_of(sounds, url)[0] for url in (urls[0], urls[-1])] == [404, 200]
    assert len({*urls}) == 40


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--checkpoint", "nowhere.pt", "--against", "b.pt"), "--against b.pt: no such file"),
        (("--port", "99999"), "--port 99999: must be"),
        ((), "pip install 'encore[app]'"),
    ],
)
def test_each_mistake_is_one_line_with_a_remedy(
    flags: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "pip" in expected:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        cli.run(app.app, list(flags))
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_a_taken_port_is_named() -> None:
    with app.listening(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Exception, match=f"--port {port}: cannot be opened"), app.listening(port):
            pass
