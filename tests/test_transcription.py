"""Notes and beats by other systems, on music whose notes and tempo are known. Skipped without their packages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encore.data.demo import SAMPLE_RATE as RATE
from encore.data.demo import pluck
from encore.errors import EncoreError
from encore.evaluation.metrics.registry import METRICS, Item

KNOWN = {*METRICS}
from encore.evaluation.metrics import transcription  # noqa: E402

# Other tests evaluate with all registered metrics; these three need packages that may not be there.
OURS = {name: METRICS._entries.pop(name) for name in {*METRICS} - KNOWN}
SILENCE = torch.zeros(1, 3 * RATE)


def melody(midi: list[int], seconds_apart: float = 0.5, seconds: float = 3.0) -> Tensor:
    """The notes in turn, over and over, each on its beat."""
    track = torch.zeros(1, int(seconds * RATE))
    for index in range(int(seconds / seconds_apart)):
        sound = torch.from_numpy(pluck(440 * 2 ** ((midi[index % len(midi)] - 69) / 12), seconds_apart, 0.3, 0.7))
        stretch = track[0, round(index * seconds_apart * RATE) :][: len(sound)]
        stretch += 0.3 * sound[: len(stretch)].float()
    return track


def values(continuation: Tensor, context: Tensor, truth: Tensor) -> dict[str, float]:
    item = Item(context, continuation, truth, RATE)
    return {name: metric.compute(item) for name, metric in OURS.items()}


def test_missing_packages_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    transcription._network.cache_clear()
    monkeypatch.setattr(transcription, "find_spec", lambda name: None)
    with pytest.raises(EncoreError, match=r"basic_pitch and onnxruntime.*requirements-judges\.txt.*--no-deps"):
        transcription.notes(SILENCE, RATE)


class TestInstalled:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        for package in ("basic_pitch", "onnxruntime", "mir_eval"):
            pytest.importorskip(package)

    def test_notes_are_found_at_their_pitches_and_times(self) -> None:
        sounding = transcription.notes(melody([60, 64, 67]), RATE)
        assert sounding.shape == (1 + 3 * 22050 // 256, 88)
        assert {int(pitch) + 21 for pitch in sounding.sum(0).argsort()[-3:]} == {60, 64, 67}
        for number, pitch in enumerate([60, 64, 67]):  # in the middle of each note, it sounds and the others don't
            frame = round((number * 0.5 + 0.25) * 22050 / 256)
            assert [other for other in (60, 64, 67) if sounding[frame, other - 21]] == [pitch]

    def test_a_continuation_is_rated_by_its_notes_and_beats(self) -> None:
        context, truth = melody([60, 64, 67]), melody([67, 64, 60])
        same, transposed = values(truth, context, truth), values(melody([61, 66, 70]), context, truth)
        assert same["notes_truth"] == same["beats_truth"] == 1
        assert transposed["notes_truth"] < 0.3
        assert transposed["notes_context"] < 0.3 < 0.6 < same["notes_context"]
        assert values(SILENCE, context, truth)["notes_truth"] == 0 == values(SILENCE, context, truth)["notes_context"]

    def test_beats_of_another_tempo_agree_less(self) -> None:
        context, truth = melody([60]), melody([60])
        assert values(melody([60], 0.37), context, truth)["beats_truth"] < 0.8
