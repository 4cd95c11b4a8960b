"""The interactive page: a song is dropped, continued, and listened to while it is generated. Needs Gradio."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from encore.errors import EncoreError
from encore.inference.continuation import LEAST_SECONDS
from encore.inference.live import Limits, Take, Wish, song_seconds
from encore.inference.live_audio import LiveSounds
from encore.models.loading import Generator

MAX_CANDIDATES = 4
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**31
PICTURE_SECONDS = 2.0  # from one picture of an unfinished continuation to the next, at least
CSS = """
.gradio-container { max-width: 80rem !important; margin: 0 auto !important; }
.sound audio { width: 100%; }
.dark audio { color-scheme: dark; }
.sound p { margin: 0 0 0.3rem; display: flex; justify-content: space-between; gap: 1rem; }
.sound:not(:has(audio)), .picture:not(:has(img)) { display: none !important; }
.picture img { width: 100%; border-radius: 0.4rem; }
"""
Updates = dict[Any, Any]  # values by component


class Column:
    """A model on the page, and what it generates."""

    def __init__(self, name: str, generator: Generator):
        self.name, self.generator = name, generator
        gr.Markdown(f"### {html.escape(name)}")
        self.status = gr.Markdown(describe(generator))
        self.sounds, self.pictures = [], []
        for _ in range(MAX_CANDIDATES):
            self.sounds.append(gr.HTML(elem_classes="sound"))
            self.pictures.append(gr.HTML(elem_classes="picture"))

    @property
    def outputs(self) -> list[Any]:
        return [self.status, *self.sounds, *self.pictures]

    def clear(self) -> Updates:
        """Removes what there was before."""
        return {**dict.fromkeys([*self.sounds, *self.pictures], ""), self.status: "waiting …"}

    def generate(self, wish: Wish, store: LiveSounds, autoplay: bool) -> Iterator[Updates]:
        """Players at once, then pictures as the continuations grow; players are set once, lest they begin again.

        Raises:
            EncoreError: see `Take`.
        """
        take = Take(self.generator, wish, store)
        titles = [f"seed {seed}" if self.generator.generation.generative else "continuation" for seed in take.seeds]
        players = [
            player(f"{self.name}, {title}", url, autoplay and number == 0)
            for number, (title, url) in enumerate(zip(titles, take.urls, strict=True))
        ]
        yield {self.status: progress(0, wish.seconds, 0), **dict(zip(self.sounds, players, strict=False))}
        began, pictured = time.monotonic(), 0.0
        for made in take.pieces():
            now = time.monotonic()
            update: Updates = {self.status: progress(made, wish.seconds, now - began)}
            if made and now - pictured > PICTURE_SECONDS:
                update |= self.draw(take)
                pictured = time.monotonic()
            yield update
        yield self.draw(take)

    def draw(self, take: Take) -> Updates:
        """Spectrograms of what there is."""
        return dict(zip(self.pictures, map(picture, take.pictures()), strict=False))


def build(models: Mapping[str, Generator], limits: Limits, store: LiveSounds, temperature: float) -> gr.Blocks:
    """The page, with a column for each model by its name; `temperature` is the one that is set at first."""
    generative = any(generator.generation.generative for generator in models.values())
    with gr.Blocks(title="Encore", analytics_enabled=False) as page:
        gr.Markdown("# Encore\nDrop a song, choose where it ends, and listen to how it could go on.")
        with gr.Row():
            with gr.Column():
                song = gr.Audio(label="Song", sources=["upload"], type="filepath", editable=False, buttons=[])
                about = gr.Markdown("wav, flac, ogg or mp3")
            with gr.Column():
                end, *_ = inputs = settings(limits, generative, temperature)
        with gr.Row():
            start = gr.Button("Continue", variant="primary", interactive=False)
            stop = gr.Button("Stop")
        with gr.Row():
            columns = []
            for name, generator in models.items():
                with gr.Column():
                    columns.append(Column(name, generator))

        def opened(path: str | None) -> Updates:
            if path is None:
                return {start: gr.update(interactive=False), end: gr.update(interactive=False), about: ""}
            with told(path):
                length = song_seconds(Path(path), limits)
            return {
                start: gr.update(interactive=True),
                end: gr.update(minimum=min(LEAST_SECONDS, length), maximum=length, value=length, interactive=True),
                about: f"{Path(path).name}: {length:.2f} s",
            }

        def run(
            path: str, end: float, seconds: float, candidates: float, temperature: float, seed: float
        ) -> Iterator[Updates]:
            seeds = range(int(seed), int(seed) + int(candidates))
            wish = Wish(Path(path), end, min(seconds, limits.seconds), seeds, temperature)
            yield {component: value for column in columns for component, value in column.clear().items()}
            for number, column in enumerate(columns):
                with told(path):
                    yield from column.generate(wish, store, autoplay=number == 0)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        song.change(opened, song, [start, end, about], **quiet)
        outputs = [component for column in columns for component in column.outputs]
        running = start.click(run, [song, *inputs], outputs, concurrency_limit=1, **quiet)
        stop.click(None, cancels=running, api_visibility="private")
    return page


def settings(limits: Limits, generative: bool, temperature: float) -> list[Any]:
    """Where the song ends, and the settings of what is generated, in the order of `run`'s arguments."""
    return [
        gr.Slider(0, 1, 1, step=0.01, label="Continue from", info="second of the song", interactive=False),
        gr.Slider(1, limits.seconds, min(16, limits.seconds), step=1, label="Seconds to generate"),
        gr.Slider(1, MAX_CANDIDATES, 1, step=1, label="Candidates", visible=generative),
        gr.Slider(
            *(0, MAX_TEMPERATURE, temperature),
            step=0.05,
            label="Temperature",
            info="scale of the noise that the model draws from; 1 is that of training",
            visible=generative,
        ),
        gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, visible=generative),
    ]


@contextmanager
def told(path: str) -> Iterator[None]:
    """What the user can put right is shown on the page, without the folder that the server keeps the song in."""
    try:
        yield
    except EncoreError as error:
        raise gr.Error(str(error).replace(path, Path(path).name), print_exception=False) from error


def player(title: str, url: str, autoplay: bool) -> str:
    """A heading with a link to download the sound, and a player."""
    start, title = " autoplay" if autoplay else "", html.escape(title)
    return (
        f'<p><strong>{title}</strong><a href="{url}" download="continuation.wav">download</a></p>'
        f'<audio controls{start} src="{url}" aria-label="{title}"></audio>'
    )


def picture(source: str) -> str:
    return f'<img alt="Spectrogram; the continuation begins at the dashed line" src="{source}">'


def progress(made: float, seconds: float, took: float) -> str:
    """How much has been generated, and how fast."""
    if not made:
        return "generating …"
    return f"{made:.1f} of {seconds:g} s, {made / took:.1f} times real time"


def describe(generator: Generator) -> str:
    """What a model needs and makes."""
    codec, generative = generator.codec, generator.generation.generative
    made = "several candidates" if generative else "one continuation"
    seconds = generator.context_frames / codec.frame_rate
    return f"makes {made} from the last {seconds:.0f} s; codec {generator.config.codec.name}, {codec.sample_rate} Hz"
