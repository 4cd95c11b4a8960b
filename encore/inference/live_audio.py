"""Audio that is served while it is generated: as a wav of known length, whose end the listener waits for."""

from __future__ import annotations

import asyncio
import io
import re
import secrets
import threading
import wave
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from torch import Tensor

KEPT = 32  # sounds, of the latest runs
CHUNK = 1 << 16  # bytes
POLL_SECONDS = 0.05
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class LiveAudio:
    """A 16-bit wav that grows to its declared length, or ends early.

    Args:
        sample_rate: Hz.
        channels: of each piece.
        samples: declared length.
    """

    sample_rate: int
    channels: int
    samples: int
    finished: bool = False
    _content: bytearray = field(default_factory=bytearray)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._content += self._header(self.samples)

    def append(self, piece: Tensor) -> None:
        """Appends `[C, N]`; samples beyond ±1 are clipped."""
        values = (piece.detach().cpu().float().clamp(-1, 1) * 32767).round().short().T.contiguous()
        with self._lock:
            self._content += values.numpy().tobytes()

    def finish(self) -> None:
        """No more will come: from now on its length is what there is."""
        with self._lock:
            self.finished = True
            head = len(self._header(0))
            self._content[:head] = self._header((len(self._content) - head) // (2 * self.channels))

    @property
    def size(self) -> int:
        """Bytes that it has in the end, or that it is declared to have."""
        declared = len(self._header(0)) + 2 * self.channels * self.samples
        return len(self._content) if self.finished else declared

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` that there are already."""
        with self._lock:
            return bytes(self._content[start:end])

    def _header(self, samples: int) -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((self.channels, 2, self.sample_rate, samples, "NONE", ""))
            writer.writeframesraw(b"")
            size = 2 * self.channels * samples
            header = bytearray(file.getvalue())
            header[4:8], header[-4:] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
        return bytes(header)


class LiveSounds:
    """The latest sounds of a server, each under a name that cannot be guessed."""

    def __init__(self) -> None:
        self._sounds: OrderedDict[str, LiveAudio] = OrderedDict()

    def add(self, sound: LiveAudio) -> str:
        """The URL of a sound, relative to the server's root."""
        name = secrets.token_urlsafe(16)
        self._sounds[name] = sound
        while len(self._sounds) > KEPT:
            self._sounds.popitem(last=False)
        return f"live/{name}.wav"

    async def respond(self, request: Request) -> Response:
        """Answers a request for a sound, or a range of its bytes, as they are generated."""
        sound = self._sounds.get(request.path_params["name"])
        if sound is None:
            return Response("this sound is no longer kept; generate it again", status_code=404)
        size, start, end = sound.size, 0, sound.size - 1
        asked = RANGE.fullmatch(request.headers.get("range", ""))
        if asked:
            start, end = int(asked[1]), min(end, int(asked[2] or end))
            if start > end:
                return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - start + 1), "Cache-Control": "no-store"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        content = _bytes_of(sound, start, end + 1)
        return StreamingResponse(content, 206 if asked else 200, headers, media_type="audio/wav")


async def _bytes_of(sound: LiveAudio, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes of a sound from `start` to `end`; silence in the place of what was not generated after all."""
    while start < end:
        finished = sound.finished  # before reading, lest the last bytes come in between
        part = sound.read(start, min(end, start + CHUNK))
        if not part and finished:
            part = bytes(min(CHUNK, end - start))
        if part:
            start += len(part)
            yield part
        else:
            await asyncio.sleep(POLL_SECONDS)
