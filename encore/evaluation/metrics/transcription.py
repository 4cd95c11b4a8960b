"""Metrics of notes and beats that others' systems find: `--plugins encore.evaluation.metrics.transcription`.

Notes are those of basic-pitch (Bittner et al. 2022, "A lightweight instrument-agnostic model for polyphonic note
transcription and multipitch estimation"), whose trained network is part of its package; beats those of
`librosa.beat.beat_track` (Ellis 2007), compared by mir_eval (Raffel et al. 2014). Nothing in either was trained by or
for Encore.

    pip install -r requirements-judges.txt
    pip install --no-deps basic-pitch==0.4.0

Without `--no-deps` basic-pitch asks for an old TensorFlow, which is not needed: onnxruntime runs the network.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import signal
from encore.evaluation.metrics.registry import Item, metric
from encore.evaluation.metrics.rhythm_harmony import load_librosa

NETWORK_RATE, HOP, WINDOW = 22_050, 256, 43_844  # Hz, samples, samples: what basic-pitch's network was trained with
EDGE, KEPT = 15, 142  # frames of a window that are left out on the left, and frames that are kept
PITCHES = 88  # of a piano, from A0
NOTES = "StatefulPartitionedCall:1"  # the output that basic-pitch calls "note": a posterior of each pitch
ACTIVE = 0.3  # basic-pitch's own threshold of its posterior


@metric(
    "notes_truth",
    title="notes, truth",
    group="Notes and beats",
    note="F-measure of the sounding notes with the truth’s, moment by moment, 0 to 1.",
    goal="high",
    against_truth=True,
)
def notes_truth(item: Item) -> float:
    """`2 |P ∩ T| / (|P| + |T|)` of the (frame, pitch) pairs that sound in continuation and truth; 1 for silences."""
    made, real = (notes(audio, item.sample_rate) for audio in (item.continuation, item.truth))
    frames = min(len(made), len(real))
    made, real = made[:frames], real[:frames]
    sounding = int(made.sum() + real.sum())
    return 2 * int((made & real).sum()) / sounding if sounding else 1.0


@metric(
    "notes_context",
    title="notes, context",
    group="Notes and beats",
    note="Overlap of the pitches’ shares of time with the context’s, 0 to 1.",
    goal="truth",
)
def notes_context(item: Item) -> float:
    """`Σ_p min(a_p, b_p)`, a and b the shares of each of 88 pitches in the sounding notes of context and continuation.

    1 if nothing sounds in either, 0 if in one only.
    """
    first, second = (notes(audio, item.sample_rate).sum(0) for audio in (item.context, item.continuation))
    if not first.sum() or not second.sum():
        return float(first.sum() == second.sum())
    return float(np.minimum(first / first.sum(), second / second.sum()).sum())


@metric(
    "beats_truth",
    title="beats, truth",
    group="Notes and beats",
    note="F-measure of the beats with those of the truth after the same context, ±70 ms, 0 to 1.",
    goal="high",
    against_truth=True,
)
def beats_truth(item: Item) -> float:
    """`mir_eval.beat.f_measure` (±70 ms) of the beats of context + continuation and context + truth, after the context.

    1 if neither has a beat, 0 if only one has.
    """
    import mir_eval

    start = item.context.shape[-1] / item.sample_rate
    made, real = (
        beats(torch.cat([item.context, audio], -1), item.sample_rate) for audio in (item.continuation, item.truth)
    )
    made, real = made[made >= start], real[real >= start]
    if not len(made) or not len(real):
        return float(len(made) == len(real))
    return float(mir_eval.beat.f_measure(real, made))


def notes(audio: Tensor, sample_rate: int) -> NDArray[np.bool_]:
    """Which of 88 pitches sound in each frame of 11.6 ms of `audio [C, N]`: `[T, 88]`.

    Raises:
        EncoreError: basic-pitch or onnxruntime is not installed.
    """
    mono = resample(signal(audio).mean(0), sample_rate, NETWORK_RATE).numpy()
    return _transcribed(_Audio(mono))


def beats(audio: Tensor, sample_rate: int) -> NDArray[np.float64]:
    """Times of the beats of `audio [C, N]`, in seconds; none in silence."""
    librosa = load_librosa()
    return np.asarray(librosa.beat.beat_track(y=signal(audio).mean(0).numpy(), sr=sample_rate, units="time")[1])


class _Audio:
    """Samples that equal others of the same content, so that a context is transcribed once for all continuations."""

    def __init__(self, samples: NDArray[np.float32]):
        self.samples = samples
        self._digest = hashlib.sha256(samples.tobytes()).digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Audio) and self._digest == other._digest


@lru_cache(maxsize=512)
def _transcribed(audio: _Audio) -> NDArray[np.bool_]:
    samples, frames = audio.samples, 1 + len(audio.samples) // HOP
    padded = np.pad(samples, (EDGE * HOP, WINDOW + KEPT * HOP))
    starts = range(0, frames * HOP, KEPT * HOP)
    windows = np.stack([padded[start : start + WINDOW] for start in starts])[..., None]
    network = _network()
    (found,) = network.run([NOTES], {network.get_inputs()[0].name: windows})
    return found[:, EDGE : EDGE + KEPT].reshape(-1, PITCHES)[:frames] > ACTIVE


@lru_cache(maxsize=1)
def _network() -> Any:
    missing = [name for name in ("basic_pitch", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise EncoreError(
            f"--plugins encore.evaluation.metrics.transcription: {' and '.join(missing)} not installed; "
            "pip install -r requirements-judges.txt, then pip install --no-deps basic-pitch==0.4.0"
        )
    import onnxruntime

    spec = find_spec("basic_pitch")
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0], "saved_models", "icassp_2022", "nmp.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
