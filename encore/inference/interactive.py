"""The interactive page: a song is dropped, continued, and listened to while it is generated. Needs Gradio."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from encore.audio import audio_header, audio_length, read_excerpt
from encore.errors import EncoreError
from encore.inference.continuation import LEAST_SECONDS, context_of, stream_song
from encore.inference.live import LiveAudio, LiveSounds
from encore.models.loading import Generator

if TYPE_CHECKING:
    from gradio import Blocks

MAX_CANDIDATES = 4
MAX_TEMPERATURE = 2.0
LEAD_SECONDS = 3.0  # of the song in front of a continuation
PICTURE_SECONDS = 2.0  # from one picture of an unfinished continuation to the next, at least
CSS = """
.gradio-container { max-width: 80rem !important; }
.sound audio { width: 100%; }
.sound p { margin: 0 0 0.3rem; display: flex; justify-content: space-between; gap: 1rem; }
.picture img { width: 100%; border-radius: 0.4rem; }
"""
Updates = dict[Any, Any]  # values by component


@dataclass(frozen=True)
class Limits:
    """What the page accepts.

    Attributes:
        song_minutes: length of a song.
        seconds: length of a continuation.
    """

    song_minutes: float = 30.0
    seconds: float = 60.0


@dataclass(frozen=True)
class Wish:
    """What is to be generated: continuations of a song from second `end` on, or from its end."""

    song: Path
    end: float | None
    candidates: int
    temperature: float
    seconds: float
    seed: int


class Column:
    """A model on the page, and what it generates."""

    def __init__(self, name: str, generator: Generator):
        import gradio as gr

        self.name, self.generator = name, generator
        gr.Markdown(f"### {html.escape(name)}")
        self.status = gr.Markdown(describe(generator))
        self.sounds = [gr.HTML(visible=False, elem_classes="sound") for _ in range(MAX_CANDIDATES)]
        self.pictures = [gr.HTML(visible=False, elem_classes="picture") for _ in range(MAX_CANDIDATES)]

    @property
    def outputs(self) -> list[Any]:
        return [self.status, *self.sounds, *self.pictures]

    def clear(self) -> Updates:
        """Removes what there was before."""
        import gradio as gr

        gone = {one: gr.update(value="", visible=False) for one in (*self.sounds, *self.pictures)}
        return {**gone, self.status: "waiting"}

    def generate(self, wish: Wish, store: LiveSounds, autoplay: bool) -> Iterator[Updates]:
        """Players at once, then a picture after every few pieces.

        Raises:
            EncoreError: the song cannot be read, or there is too little of it before `wish.end`.
        """
        import gradio as gr

        rate, channels = self.generator.codec.sample_rate, self.generator.codec.channels
        generative = self.generator.generation.generative
        seeds = range(wish.seed, wish.seed + (wish.candidates if generative else 1))
        context = read_context(wish, self.generator)
        lead, samples = min(context.shape[-1], round(LEAD_SECONDS * rate)), round(wish.seconds * rate)
        sounds = [LiveAudio(rate, channels, lead + samples) for _ in seeds]
        urls = [store.add(sound) for sound in sounds]
        yield {self.status: "generating …"} | {
            slot: gr.update(
                value=player(f"{self.name}, candidate {number + 1}", url, autoplay and number == 0), visible=True
            )
            for number, (slot, url) in enumerate(zip(self.sounds, urls, strict=False))
        }
        temperature = wish.temperature if generative else 1.0
        _, pieces = stream_song(self.generator, context, wish.seconds, seeds, temperature)
        drawer = Drawer(context, rate, lead, samples)
        began = shown = time.monotonic()
        made, parts = -context.shape[-1], list[Tensor]()
        try:
            for piece in pieces:
                first = made < 0
                made += piece.shape[-1]
                # The first piece is the context, of which the listener gets the end.
                piece = piece[..., -lead:] if first else piece
                parts.append(piece)
                for sound, rows in zip(sounds, piece, strict=True):
                    sound.append(rows)
                now = time.monotonic()
                done = made >= samples
                update: Updates = {self.status: progress(max(0, made) / rate, wish.seconds, now - began)}
                if done or now - shown > PICTURE_SECONDS:
                    images = drawer.draw(torch.cat(parts, -1))
                    pictured = zip(self.pictures, images, strict=False)
                    update |= {slot: gr.update(value=image, visible=True) for slot, image in pictured}
                    shown = time.monotonic()
                yield update
        finally:
            for sound in sounds:
                sound.finish()


@dataclass(frozen=True)
class Drawer:
    """Draws spectrograms of continuations that are not complete yet, on the time axis of the complete ones.

    Attributes:
        context: `[C, K]`, whose loudest point is 0 dB.
        sample_rate: Hz.
        lead: samples of the context in front of each continuation.
        samples: of each continuation in the end.
    """

    context: Tensor
    sample_rate: int
    lead: int
    samples: int

    def draw(self, audio: Tensor) -> list[str]:
        """An image element for each of `audio [S, C, N]`."""
        from encore.reporting.html import image
        from encore.reporting.spectrograms import peak, spectrograms

        reference_db, begins = peak(self.context, self.sample_rate), self.lead / self.sample_rate
        missing = self.lead + self.samples - audio.shape[-1]
        full = torch.nn.functional.pad(audio, (0, missing))
        sources = [
            image(lambda file, row=row: spectrograms({"": row}, self.sample_rate, file, reference_db, begins))
            for row in full
        ]  # type: ignore[misc]
        alt = f"Spectrogram; the continuation begins at {begins:.2f} s, at the dashed line"
        return [f'<img alt="{alt}" src="{source}">' for source in sources]


def read_context(wish: Wish, generator: Generator) -> Tensor:
    """What the model is given of a song, `[C, K]`; reads no more of it.

    Raises:
        EncoreError: the song cannot be read, or there is too little of it before `wish.end`.
    """
    codec = generator.codec
    length = audio_length(wish.song, codec.sample_rate)
    end = length if wish.end is None else min(length, round(wish.end * codec.sample_rate))
    first = max(0, end - generator.context_frames * codec.hop_length)
    return context_of(generator, read_excerpt(wish.song, codec.sample_rate, codec.channels, first, end))


def examine(song: Path, limits: Limits) -> float:
    """The length of a song in seconds.

    Raises:
        EncoreError: it cannot be read, or is too short or too long.
    """
    samples, rate = audio_header(song)
    seconds = samples / rate
    if seconds < LEAST_SECONDS:
        raise EncoreError(f"{song.name} is {seconds:.2f} s long; at least {LEAST_SECONDS:g} s are needed")
    if seconds > 60 * limits.song_minutes:
        raise EncoreError(
            f"{song.name} is {seconds / 60:.1f} minutes long and at most {limits.song_minutes:g} are taken; cut it, or "
            "start the app with a larger --max_minutes"
        )
    return seconds


@contextmanager
def told() -> Iterator[None]:
    """What the user can put right is shown on the page."""
    import gradio as gr

    try:
        yield
    except EncoreError as error:
        raise gr.Error(str(error), print_exception=False) from error


def player(title: str, url: str, autoplay: bool) -> str:
    """A heading with a link to download the sound, and a player."""
    start = " autoplay" if autoplay else ""
    title = html.escape(title)
    return (
        f'<p><strong>{title}</strong><a href="{url}" download="continuation.wav">download</a></p>'
        f'<audio controls{start} src="{url}" aria-label="{title}"></audio>'
    )


def progress(made: float, seconds: float, took: float) -> str:
    """How much has been generated, and how fast."""
    return f"{made:.1f} of {seconds:g} s, {made / max(took, 1e-3):.1f} times real time"


def describe(generator: Generator) -> str:
    """What a model needs and is."""
    codec, kind = (
        generator.config.codec,
        "several candidates" if generator.generation.generative else "one continuation",
    )
    context = generator.context_frames / generator.codec.frame_rate
    return f"makes {kind} from the last {context:.0f} s; codec {codec.name}, {generator.codec.sample_rate} Hz"


def build(models: Mapping[str, Generator], limits: Limits, store: LiveSounds) -> Blocks:
    """The page, with a column for each model by its name."""
    import gradio as gr

    generative = any(generator.generation.generative for generator in models.values())
    with gr.Blocks(title="Encore", analytics_enabled=False) as page:
        gr.Markdown("# Encore\nDrop a song, choose where it ends, and listen to how it could go on.")
        with gr.Row():
            with gr.Column():
                song = gr.Audio(label="Song", sources=["upload"], type="filepath", editable=False, buttons=[])
                about = gr.Markdown("wav, flac, ogg or mp3")
            with gr.Column():
                end = gr.Slider(
                    0, 1, value=1, step=0.01, label="Continue from", info="second of the song", interactive=False
                )
                seconds = gr.Slider(
                    1, limits.seconds, value=min(16, limits.seconds), step=1, label="Seconds to generate"
                )
                candidates = gr.Slider(1, MAX_CANDIDATES, value=1, step=1, label="Candidates", visible=generative)
                temperature = gr.Slider(
                    *(0, MAX_TEMPERATURE),
                    value=1,
                    step=0.05,
                    label="Temperature",
                    visible=generative,
                    info="scale of the noise: below 1 closer to the song, above 1 freer",
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, visible=generative)
        with gr.Row():
            start = gr.Button("Continue", variant="primary", interactive=False)
            stop = gr.Button("Stop", interactive=True)
        with gr.Row():
            columns = []
            for name, generator in models.items():
                with gr.Column():
                    columns.append(Column(name, generator))

        def opened(path: str | None) -> Updates:
            if path is None:
                return {start: gr.update(interactive=False), end: gr.update(interactive=False), about: ""}
            with told():
                length = examine(Path(path), limits)
            shown = f"{Path(path).name}: {length:.2f} s"
            return {
                start: gr.update(interactive=True),
                end: gr.update(minimum=min(LEAST_SECONDS, length), maximum=length, value=length, interactive=True),
                about: shown,
            }

        def run(
            path: str, end: float, candidates: float, temperature: float, seconds: float, seed: float
        ) -> Iterator[Updates]:
            wish = Wish(Path(path), end, int(candidates), temperature, min(seconds, limits.seconds), int(seed))
            yield {component: value for column in columns for component, value in column.clear().items()}
            for number, column in enumerate(columns):
                with told():
                    yield from column.generate(wish, store, autoplay=number == 0)

        song.change(opened, song, [start, end, about], show_progress="hidden", api_visibility="private")
        event = start.click(
            run,
            [song, end, candidates, temperature, seconds, seed],
            [component for column in columns for component in column.outputs],
            show_progress="hidden",
            concurrency_limit=1,
            api_visibility="private",
        )
        stop.click(None, cancels=event, api_visibility="private")
    return page
