"""Files of all kinds with anything in them: read, or refused by name, without using up memory or time.

By default a few examples each, the same every time; `--tries N` tries N times as many, new ones each time.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encore.audio import audio_length, read_audio, read_excerpt
from encore.codecs import load_codec
from encore.codecs.starter.weights import STARTER_WEIGHTS, load_codec_file
from encore.config.files import read_flags
from encore.config.knobs import knobs_of
from encore.config.schema import TrainConfig
from encore.data.folders import find_wavs
from encore.data.index_files import load_columns, save_columns
from encore.data.shards import INDEX, find_shards
from encore.errors import EncoreError
from encore.models.loading import load_generator
from encore.models.model_folder import CONFIG_FILE, PRETRAINED, WEIGHTS_FILE
from tests.conftest import Command, melody, write_pairs
from tests.faults.small import checkpoint_content

pytestmark = pytest.mark.timeout(7200)  # of as many tries as are asked for
MEMORY, SECONDS = 2**30, 10  # bytes and processor time that one file may take at most
CPU = torch.device("cpu")

Edit = tuple[int, bytes, int]
edits = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.one_of(
            st.binary(max_size=4),
            st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x01\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]),
        ),
        st.integers(0, 12),
    ),
    max_size=4,
)
lengths = st.one_of(st.none(), st.integers(0, 2**16))


def mutated(data: bytes, changes: list[Edit], length: int | None) -> bytes:
    """The data with bytes replaced, put in or taken out; mostly near its beginning, where headers are."""
    for place, new, removed in changes:
        place = min(place % 97 if place % 2 else place % (len(data) + 1), len(data))
        data = data[:place] + new + data[place + (removed if removed > 8 else len(new)) :]
    return data if length is None else data[: length % (len(data) + 1)]


@pytest.fixture
def explore(tries: int) -> Callable[..., None]:
    """Gives a function examples of strategies."""

    def run(examples: int, function: Callable[..., None], *strategies: Any) -> None:
        chosen = settings(
            max_examples=examples * tries,
            derandomize=tries == 1,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        chosen(given(*strategies)(function))()

    return run


@contextlib.contextmanager
def refused_or_read() -> Iterator[None]:
    """What the block reads is fine, or refused with an EncoreError of a few short lines, within bounds."""
    least, most = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, most))
    began = time.process_time()
    try:
        yield
    except EncoreError as error:
        text = str(error)
        assert "\n" not in text.strip() or all(len(line) < 2000 for line in text.splitlines())
        assert len(text) < 10_000
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (least, most))
    assert time.process_time() - began < SECONDS


def audio_file(kind: str) -> bytes:
    file = io.BytesIO()
    samples = np.stack([melody(0.3, 1), melody(0.3, 2)], 1)
    subtype = "FLOAT" if kind == "RF64" else None
    soundfile.write(file, samples, 24000, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "RF64", "FLAC", "MP3", "OGG"])
def test_audio(kind: str, explore: Callable[..., None], tmp_path: Path) -> None:
    whole = audio_file(kind)
    path = tmp_path / ("a.wav" if kind == "RF64" else f"a.{kind.lower()}")

    def check(changes: list[Edit], length: int | None) -> None:
        path.write_bytes(mutated(whole, changes, length))
        for read in (
            lambda: read_audio(path, 24000, 1),
            lambda: read_excerpt(path, 16000, 2, 100, 2000),
        ):
            with refused_or_read():
                assert read().isfinite().all()
        with refused_or_read():
            assert audio_length(path, 24000) >= 0

    explore(12, check, edits, lengths)


def test_audio_headers_that_claim_what_cannot_be(tmp_path: Path) -> None:
    """A sample every second, 2³⁶ samples, an unknown number, 2³¹ frames of a thousand channels."""
    wav, flac = bytearray(audio_file("WAV")), bytearray(audio_file("FLAC"))
    slow, wide = bytearray(wav), bytearray(wav)
    slow[24:28] = (1).to_bytes(4, "little")
    wide[22:24], wide[40:44] = (1000).to_bytes(2, "little"), (2**31).to_bytes(4, "little")
    endless, unknown = bytearray(flac), bytearray(flac)
    endless[21], endless[22:26] = endless[21] | 15, b"\xff" * 4
    unknown[21], unknown[22:26] = unknown[21] & 0xF0, bytes(4)
    for name, content, reason in (
        ("slow.wav", slow, "claims 1 Hz, but rates from 1000 to 1000000 Hz can be read"),
        ("wide.wav", wide, "truncated, its header declares 2147483648 bytes of audio"),
        ("endless.flac", endless, f"its header claims {2**36 - 1} samples, or does not know how many"),
        ("unknown.flac", unknown, f"its header claims {2**63 - 1} samples, or does not know how many"),
    ):
        (tmp_path / name).write_bytes(content)
        for read in (lambda path: read_audio(path, 24000, 1), lambda path: audio_length(path, 24000)):
            with refused_or_read(), pytest.raises(EncoreError, match=f"{name}: {reason}"):
                read(tmp_path / name)


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    return checkpoint_content()


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.just([]),
    st.just({}),
    st.just({1: 2}),
    st.sampled_from([(0,), (3, 1), (2**20, 2**20), (128, 1)]).map(lambda shape: torch.zeros(1).expand(shape)),
    st.just(torch.full((128, 1), torch.nan)),
)


def replaced(content: Any, path: list[int], value: Any) -> Any:
    """A copy with one value of nested mappings replaced: the one that the numbers lead to."""
    if not path or not isinstance(content, dict) or not content:
        return value
    name = sorted(content, key=str)[path[0] % len(content)]
    return {**content, name: replaced(content[name], path[1:], value)}


def test_checkpoints(
    explore: Callable[..., None], checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.models.loading.load_codec", functools.cache(load_codec))  # takes most of the time
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path)
    whole = path.read_bytes()
    assert load_generator(path, CPU).margin == 3
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))

    def of_other_bytes(changes: list[Edit], length: int | None) -> None:
        path.write_bytes(mutated(whole, changes, length))
        with refused_or_read():
            load_generator(path, CPU)

    def of_another_pickle(changes: list[Edit]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, mutated(content, changes, None) if name == pickled else content)
        with refused_or_read():
            load_generator(path, CPU)

    def of_other_values(places: list[int], value: Any) -> None:
        torch.save(replaced(checkpoint, places, value), path)
        with refused_or_read():
            load_generator(path, CPU)

    explore(10, of_other_bytes, edits, lengths)
    explore(15, of_another_pickle, edits)
    explore(15, of_other_values, st.lists(st.integers(0, 200), max_size=3), junk)


@pytest.mark.parametrize(
    "settings", [{"d_model": 80_000_000}, {"d_model": 16384, "num_layers": 256}, {"num_layers": 10**9}, {"nhead": 0}]
)
def test_a_checkpoint_that_asks_for_another_model_than_it_holds(
    settings: dict[str, int], checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save({**checkpoint, "config": {**checkpoint["config"], **settings}}, path)
    with refused_or_read(), pytest.raises(EncoreError, match=f"^{path}: "):
        load_generator(path, CPU)


def test_model_folders(explore: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.models.loading.load_codec", functools.cache(load_codec))
    whole = {name: (PRETRAINED / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    settings = json.loads(whole[CONFIG_FILE])
    plain = junk.filter(lambda value: not isinstance(value, torch.Tensor | bytes))

    def read(**changed: bytes) -> None:
        for name, content in whole.items():
            (tmp_path / name).write_bytes(changed.get(name.partition(".")[0], content))
        with refused_or_read():
            load_generator(tmp_path, CPU)

    explore(4, lambda edit, length: read(config=mutated(whole[CONFIG_FILE], edit, length)), edits, lengths)
    explore(3, lambda edit, length: read(model=mutated(whole[WEIGHTS_FILE], edit, length)), edits, lengths)
    explore(
        6,
        lambda places, value: read(config=json.dumps(replaced(settings, places, value)).encode()),
        st.lists(st.integers(0, 200), max_size=3),
        plain,
    )
    for content in (b"[" * 100_000, b" " * 1_000_001, b'{"format": 8, "config": {}}'):
        (tmp_path / CONFIG_FILE).write_bytes(content)
        with refused_or_read(), pytest.raises(EncoreError, match=f"^{tmp_path}: "):
            load_generator(tmp_path, CPU)


def test_codec_files(explore: Callable[..., None], tmp_path: Path) -> None:
    whole, path = STARTER_WEIGHTS.read_bytes(), tmp_path / "codec.safetensors"

    def of_other_bytes(changes: list[Edit], length: int | None) -> None:
        path.write_bytes(mutated(whole, changes, length))
        with refused_or_read():
            load_codec_file(path)

    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    described = json.loads(header["__metadata__"]["encore_codec"])

    def of_other_sizes(name: str, value: Any) -> None:
        description = json.dumps({**described, name: value})
        new = json.dumps({**header, "__metadata__": {"encore_codec": description}}).encode()
        tensors = whole[8 + int.from_bytes(whole[:8], "little") :]
        path.write_bytes(len(new).to_bytes(8, "little") + new + tensors)
        with refused_or_read():
            load_codec_file(path)

    explore(5, of_other_bytes, edits, lengths)
    values = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.none(), st.text(max_size=3))
    explore(8, of_other_sizes, st.sampled_from(list(described)), values)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, call_command: Command) -> Path:
    """A data set of shards."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        (folder / "music").mkdir(exist_ok=True)
        soundfile.write(folder / "music" / f"{number}.wav", melody(3, number), 24000)
    flags = ("--shards", "--context_seconds", 1, "--segment_seconds", 0.5, "--num_workers", 0, "--val_group", "file")
    done = call_command("prepare_data.py", folder / "music", "--output", folder / "pairs", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "pairs"


def read_all(folder: Path) -> None:
    for pairs in find_shards(folder).values():
        pairs.segments.check(24000, folder)
        for number in range(min(3, len(pairs))):
            pair = pairs[number]
            assert pair.input.parent == folder
            pairs.audio(number, 24000, 1)


def test_indexes_of_shards(explore: Callable[..., None], shards: Path) -> None:
    index = shards / INDEX
    whole, columns = index.read_bytes(), load_columns(index)

    def of_other_bytes(changes: list[Edit], length: int | None) -> None:
        index.write_bytes(mutated(whole, changes, length))
        with refused_or_read():
            read_all(shards)

    def of_other_numbers(name: str, place: int, value: int, kind: str) -> None:
        column = columns[name].copy()
        if kind != "value":
            column = {"short": column.ravel()[:1], "float": column.astype(float), "flat": column.ravel()}[kind]
        elif column.size:
            with contextlib.suppress(OverflowError):  # bytes
                column.reshape(-1)[place % column.size] = value
        save_columns(index, {**columns, name: column})
        with refused_or_read():
            read_all(shards)

    try:
        explore(10, of_other_bytes, edits, lengths)
        numbers = st.one_of(st.integers(-3, 300), st.integers(-(2**63), 2**63 - 1))
        kinds = st.sampled_from(["value", "value", "value", "short", "float", "flat"])
        explore(30, of_other_numbers, st.sampled_from(sorted(columns)), st.integers(0, 10**6), numbers, kinds)
    finally:
        index.write_bytes(whole)


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "a/b.tar", "..", ""])
def test_a_shard_of_another_folder_is_refused(name: str, shards: Path) -> None:
    index = shards / INDEX
    whole, columns = index.read_bytes(), load_columns(index)
    names = [name, *columns["shards"].tobytes().decode().split("\0")[1:]]
    try:
        save_columns(index, {**columns, "shards": np.frombuffer("\0".join(names).encode(), np.uint8)})
        with pytest.raises(EncoreError, match=f"{index}: cannot be used .the shard '{name}' would lie outside"):
            find_shards(shards)
    finally:
        index.write_bytes(whole)


def test_metadata(explore: Callable[..., None], tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", {"train": 1, "val": 1}, seconds=0.3)
    metadata = folder / "metadata.csv"
    cells = st.lists(st.one_of(st.sampled_from(["pair_0000", "train", "../../x.wav", '"', "\0"]), st.text(max_size=4)))

    def check(rows: list[list[str]], tail: bytes) -> None:
        with open(metadata, "w", newline="", encoding="utf-8", errors="replace") as file:
            file.write("pair,source_file,start_second,split,altered\n")
            with contextlib.suppress(csv.Error):
                csv.writer(file).writerows(rows)
        with open(metadata, "ab") as raw:
            raw.write(tail)
        with refused_or_read():
            find_wavs(folder)

    explore(20, check, st.lists(cells, max_size=4), st.binary(max_size=20))
    metadata.write_text("pair,source_file,split\npair_0000," + "x" * 200_000 + ",train\n")
    with pytest.raises(EncoreError, match=f"{metadata}: line 1 cannot be read .field larger than field limit"):
        find_wavs(folder)
    metadata.write_text("pair,source_file,split\npair_0000\n")
    with pytest.raises(EncoreError, match=f"{metadata}: line 2 cannot be read"):
        find_wavs(folder)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


def test_files_of_flags(explore: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "flags.yaml"
    names = [one.name for one in knobs_of(TrainConfig)]

    def of_any_text(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        with refused_or_read():
            read_flags(path, TrainConfig)

    def of_any_values(flags: dict[str, Any], as_json: bool) -> None:
        path.write_text(json.dumps(flags) if as_json else yaml.safe_dump(flags))
        with refused_or_read():
            TrainConfig.from_flags(read_flags(path, TrainConfig))

    lines = st.lists(st.sampled_from(["lr: ", "&a ", "*a", "<<: *a", "- ", "[", "{", "? ", "!!int ", "9" * 5000, "\n"]))
    explore(30, of_any_text, st.one_of(st.text(max_size=40), lines.map("".join)))
    explore(20, of_any_values, st.dictionaries(st.sampled_from(names), values, max_size=4), st.booleans())


@pytest.mark.parametrize(
    "text",
    [
        "x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 60)) + "lr: *x59\n",
        "[" * 50_000,
        "lr: 2001-99-99\n",
        'dataset_folder: "a\\0b"\n',
        "lr: 1\n" * 200_000,
    ],
)
def test_files_of_flags_that_stand_for_more_than_they_are(text: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    with refused_or_read(), pytest.raises(EncoreError, match=f"^--config {path}: "):
        read_flags(path, TrainConfig)
