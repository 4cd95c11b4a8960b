"""Damage to what is kept of a data set: it is noticed, named, and made again; it never gets into training."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.codecs import Codec, load_codec
from encore.data import PairFrames, find_pairs
from encore.data.dataset import BatchLoader, PairDataset
from encore.data.index_files import Numbers
from encore.data.latent_cache import LatentCache
from encore.data.latent_shards import PATTERN, read_shard, write_shard
from encore.data.latent_statistics import LatentStatistics
from encore.data.segments import AudioFiles
from encore.errors import EncoreError, RestartError
from encore.models.loading import read
from encore.training.distributed import Ranks
from encore.training.rounds import in_rounds
from tests.conftest import SAMPLE_RATE, Finished, Forks, largest_file, melody, write_pairs

CPU = torch.device("cpu")
FILES = 2


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


class Music:
    """A few files with their latents, which can be damaged and opened again."""

    def __init__(self, folder: Path, codec: Codec):
        self.folder, self.codec = folder, codec
        self.paths = [folder / f"{number}.wav" for number in range(FILES)]
        for seed, path in enumerate(self.paths):
            soundfile.write(path, melody(0.3, seed), SAMPLE_RATE)
        self.numbers: Numbers = np.arange(FILES)
        self.latents = [cache.load(number) for cache in [self.complete()] for number in range(FILES)]

    def open(self) -> LatentCache:
        """The cache as a start finds it, which may lack latents."""
        segments = AudioFiles.of_paths(self.folder, self.paths)
        assert not segments.check(SAMPLE_RATE, self.folder / "cache")
        cache = LatentCache.open(self.folder / "cache", self.codec, segments)
        new = segments.unhashed(self.numbers)
        cache.know(new, segments.hash(new))
        return cache

    def complete(self) -> LatentCache:
        """The cache after a start, with all latents."""
        cache = self.open()
        cache.complete(self.numbers, self.codec, CPU)
        return cache

    @property
    def shard(self) -> Path:
        (shard,) = (self.folder / "cache").rglob(PATTERN)
        return shard

    @property
    def index(self) -> Path:
        return self.shard.parent / "index.npz"

    def is_whole(self) -> bool:
        """Whether a start gives all latents as they were."""
        cache = self.complete()
        return all(torch.equal(cache.load(number), latents) for number, latents in enumerate(self.latents))


@pytest.fixture
def music(tmp_path: Path, codec: Codec) -> Music:
    return Music(tmp_path, codec)


def rewrite(music: Music, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces the shard by one with right checksums and other latents."""
    cache, shard = music.complete(), music.shard
    found = {cache.segments.digests[number].tobytes().hex(): cache.load(number).numpy() for number in range(FILES)}
    write_shard(shard.parent, {digest: np.ascontiguousarray(change(values)) for digest, values in found.items()})
    shard.unlink()


def with_nan(latents: np.ndarray) -> np.ndarray:
    changed = latents.copy()
    changed[3, 7] = np.nan
    return changed


DAMAGES: dict[str, Callable[[Music], object]] = {
    "truncated": lambda music: os.truncate(music.shard, music.shard.stat().st_size - 100),
    "empty": lambda music: os.truncate(music.shard, 0),
    "no header": lambda music: music.shard.write_bytes(b"x" * 5000),
    "too short": lambda music: rewrite(music, lambda latents: latents[:, :-5]),
    "other dimension": lambda music: rewrite(music, lambda latents: latents[:64]),
    "other type": lambda music: rewrite(music, lambda latents: latents.astype(np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_a_start_finds_damaged_is_named_and_made_again(music: Music, damage: str) -> None:
    DAMAGES[damage](music)
    damaged = music.shard
    cache = music.open()
    assert cache.missing(music.numbers).tolist() == [*range(FILES)]
    assert [note.partition(": damaged (")[0] for note in cache.notes] == [str(damaged)] and not damaged.exists()
    assert music.is_whole()


def test_latents_that_are_not_finite_are_neither_stored_nor_served(
    music: Music, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(music, with_nan)
    cache, damaged = music.open(), music.shard
    with pytest.raises(
        RestartError, match=rf"{damaged}: damaged \(values that are not finite\) and deleted; start again"
    ):
        cache.load(1)
    assert music.is_whole()
    music.shard.unlink()
    encode = music.codec.encode
    monkeypatch.setattr(music.codec, "encode", lambda audio: encode(audio) * 1e9)
    with pytest.raises(EncoreError, match=r"0\.wav: the codec's latents of it are not finite numbers; remove the pair"):
        music.complete()


def test_no_flipped_bit_is_served(music: Music, tries: int) -> None:
    """Whatever bit of a shard, of its index or of an audio file is another: the right latents, or an error."""
    draw, noticed = random.Random(tries), 0
    for number in range(4 * tries):
        path = (music.shard, music.index, music.shard)[number % 3]
        if number % 2:
            music.index.unlink(missing_ok=path != music.index)
            path = music.shard
        content = bytearray(path.read_bytes())
        # A header is a small part of a shard: half of the flips are there.
        content[draw.randrange(len(content) if draw.random() < 0.5 else 600)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        cache = music.open()
        stored = set(music.numbers.tolist()) - set(cache.missing(music.numbers).tolist())
        noticed += len(stored) < FILES or bool(cache.notes)
        for segment in sorted(stored):
            try:
                assert torch.equal(cache.load(segment), music.latents[segment])
            except RestartError:
                noticed += 1
        assert music.is_whole()
        for shard in (music.folder / "cache").rglob(
            PATTERN
        ):  # a shard with a lost name stays, beside that of the others
            shard.unlink()
        assert music.is_whole()
    assert noticed


def test_a_damaged_audio_file_is_named(music: Music) -> None:
    cache, content = music.complete(), bytearray(music.paths[1].read_bytes())
    content[9000] ^= 4
    stamp = music.paths[1].stat()
    music.paths[1].write_bytes(content)
    os.utime(music.paths[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    for segments in (cache.segments, music.open().segments):
        segments.read(0, SAMPLE_RATE, 1)
        with pytest.raises(EncoreError, match=r"1\.wav: damaged or changed since it was first read, .* touch it"):
            segments.read(1, SAMPLE_RATE, 1)
    music.paths[1].touch()
    assert music.complete().segments.read(1, SAMPLE_RATE, 1).shape == (1, round(0.3 * SAMPLE_RATE))


def test_a_process_that_is_killed_leaves_only_whole_shards(tmp_path: Path, tries: int) -> None:
    """SIGKILL at random moments of writing one shard after the other."""
    latents = {f"{number:064x}": np.full((128, 400), number, np.float16) for number in range(8)}
    draw, left_over = random.Random(tries), 0
    for _ in range(3 * tries):
        started, ready = os.pipe()
        child = os.fork()
        if not child:
            os.write(ready, b"x")
            while True:
                write_shard(tmp_path, latents)
        os.read(started, 1)
        with contextlib.suppress(ChildProcessError):
            signal.sigtimedwait([signal.SIGUSR2], draw.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(started)
        os.close(ready)
        for path in tmp_path.glob(PATTERN):
            assert len(read_shard(path, 128).digests) == 8 and path.stat().st_size > 8 * 128 * 400 * 2
            path.unlink()
        left_over += len(list(tmp_path.glob(".*.tmp")))
    assert left_over or tries == 1


def test_what_a_killed_process_has_left_over_is_deleted_after_an_hour(music: Music) -> None:
    old, new = (music.shard.parent / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    music.open()
    assert new.exists() and not old.exists()


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(music: Music) -> None:
    music.shard.unlink()
    with largest_file(2000), pytest.raises(EncoreError) as raised:
        music.complete()
    assert str(raised.value) == (
        f"{music.folder / 'cache' / music.codec.identity}: no space for latents ({os.strerror(errno.EFBIG)}); make "
        "space there, or name another folder"
    )
    assert not [*(music.folder / "cache").rglob(PATTERN), *(music.folder / "cache").rglob("*.tmp")]
    assert music.is_whole()
    cache = music.complete()
    measured = LatentStatistics(cache, music.numbers)
    with largest_file(100), pytest.raises(EncoreError, match="statistics-.*: no space for an index"):
        measured.store(*measured.of_sums(measured.sums()))
    cache.indexed = set()
    with largest_file(100), pytest.raises(EncoreError, match="index.npz: no space for an index"):
        cache.save_index()
    assert music.is_whole()


@pytest.mark.parametrize("workers", [0, 1])
def test_latents_that_vanish_during_a_run_are_a_sentence(tmp_path: Path, codec: Codec, workers: int) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "pairs", {"train": 2, "val": 1}, seconds=0.5), SAMPLE_RATE)
    segments = pairs["train"].segments
    cache = LatentCache.open(tmp_path / "cache", codec, segments)
    cache.complete(np.arange(len(segments)), codec, CPU)
    loader = BatchLoader(PairDataset(pairs["train"], cache, codec, PairFrames(30, 30)), 2, num_workers=workers)
    assert len([*loader]) == 1
    (shard,) = (tmp_path / "cache").rglob(PATTERN)
    shard.unlink()
    with pytest.raises(RestartError) as raised:
        list(loader)
    assert str(raised.value) == (
        f"{shard}: was deleted during the run; start again (training: with --resume auto), and its music is encoded "
        "again"
    )


def rounds(ranks: Ranks, folder: Path) -> tuple[list[int], str, bool]:
    """On two ranks: work of unequal lengths, a step in each round, and work that fails on one."""
    import encore.training.rounds

    encore.training.rounds.ROUND_SECONDS = 0.0
    done, closed = [0, 0], []

    def steps(count: int, failing: bool = False) -> Generator[None, None, None]:
        try:
            for number in range(count):
                if failing and number == 2:
                    raise RestartError("what went wrong")
                done[0] += 1
                yield
        finally:
            closed.append(True)

    def count_round() -> None:
        done[1] += 1

    in_rounds(steps(5 * ranks.rank), ranks, after_round=count_round)
    try:
        in_rounds(steps(9, failing=ranks.rank == 1), ranks, after_round=count_round)
        said = ""
    except EncoreError as error:
        said = f"{type(error).__name__} {getattr(error, 'restart', '')} {error}"
    return done, said, closed == [True, True]


@pytest.mark.slow
def test_ranks_with_unequal_work_meet_after_each_round(tmp_path: Path, forks: Forks) -> None:
    for rank, (done, said, closed) in enumerate(forks.results_of_two_ranks(rounds, tmp_path)):
        # Rank 1 takes a step in each of 5 rounds and ends in a sixth; then both take 2 before it fails.
        assert done == [2 + 5 * rank + (1 - rank), 6 + 2]
        assert said == "AgreedError True what went wrong" and closed


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks, train_flags: list[object]
) -> tuple[Path, dict[str, torch.Tensor], Callable[..., list[Finished]]]:
    """A data set with its cache, the weights of a run of two ranks on it, and a function that runs such a run."""
    root = tmp_path_factory.mktemp("undisturbed")
    flags = (*train_flags, "--epochs", 2, "--tracker", "none", "--prior", "none", "--precision", "fp32")
    flags += ("--objective", "regression", "--decode_seconds", 0.2, "--metrics", "spectral")

    def run(folder: Path, *more: object) -> list[Finished]:
        return forks.ranks(2, *flags, "--dataset_folder", folder / "pairs", *more, cwd=folder)

    write_pairs(root / "pairs", {"train": 4, "val": 2}, seconds=0.5)
    done = run(root)
    assert not any(rank.returncode for rank in done), done[0].stderr
    return root, read(root / "checkpoints" / "last.pt")["model"], run


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


Undisturbed = tuple[Path, dict[str, torch.Tensor], Callable[..., list[Finished]]]


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_a_shard_with_a_flipped_bit_stops_and_the_next_one_is_right(
    undisturbed: Undisturbed, tmp_path: Path, tries: int, workers: int
) -> None:
    root, weights, run = undisturbed
    draw = random.Random(tries)
    for number in range(tries):
        folder = tmp_path / str(number)
        shutil.copytree(root / "pairs", folder / "pairs")
        shards = sorted((folder / "pairs").rglob(PATTERN))
        assert len(shards) == 2  # each rank has encoded its part
        shard = draw.choice(shards)
        content = bytearray(shard.read_bytes())
        content[draw.randrange(len(content) // 4, len(content))] ^= 1 << draw.randrange(8)
        shard.write_bytes(content)
        failed = run(folder, "--num_workers", workers)
        said = "".join(rank.stderr for rank in failed)
        assert 1 in [rank.returncode for rank in failed] and f"error: {shard}: damaged (another checksum" in said
        assert "DataLoader worker" not in said and not shard.exists()
        done = run(folder, "--num_workers", workers)
        assert not any(rank.returncode for rank in done), done[0].stderr
        assert_equal(weights, read(folder / "checkpoints" / "last.pt")["model"])


@pytest.mark.full
def test_a_run_on_a_truncated_shard_makes_it_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root, weights, run = undisturbed
    shutil.copytree(root / "pairs", tmp_path / "pairs")
    shard, other = sorted((tmp_path / "pairs").rglob(PATTERN))
    os.truncate(shard, shard.stat().st_size // 2)
    other.unlink()
    done = run(tmp_path)
    assert not any(rank.returncode for rank in done), done[0].stderr
    assert f"{shard}: damaged (" in done[0].stdout and "and deleted; its music has been encoded again" in done[0].stdout
    assert_equal(weights, read(tmp_path / "checkpoints" / "last.pt")["model"])


# A plugin that kills: the process, the nth time that it names a shard, or the loader's process when it opens a file.
KILLER = """
import os, signal, sys
left, process = [{count}], os.getpid()

def watch(event, arguments):
    kill = event == "open" and str(arguments[0]).endswith("{file}") and os.getpid() != process
    if event == "os.rename" and os.path.basename(str(arguments[1])).startswith("latents-"):
        left[0] -= 1
        kill = not left[0]
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


@pytest.mark.slow
@pytest.mark.full
def test_ranks_killed_while_they_encode_go_on_where_they_were(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root, weights, run = undisturbed
    shutil.copytree(root / "pairs", tmp_path / "pairs", ignore=shutil.ignore_patterns(".latents"))
    small = "import encore.data.latent_cache\nencore.data.latent_cache.SHARD_BYTES = 1\n"
    (tmp_path / "killer.py").write_text(small + KILLER.format(count=2, file="no file"))
    killed = run(tmp_path, "--plugins", "killer.py")
    assert -signal.SIGKILL in [rank.returncode for rank in killed]
    kept = {path.name for path in (tmp_path / "pairs").rglob(PATTERN)}
    assert kept
    done = run(tmp_path)
    assert not any(rank.returncode for rank in done), done[0].stderr
    assert kept < {path.name for path in (tmp_path / "pairs").rglob(PATTERN)}
    assert f"{12 - len(kept)} of 12 files newly encoded" in done[0].stdout
    assert_equal(weights, read(tmp_path / "checkpoints" / "last.pt")["model"])


@pytest.mark.slow
@pytest.mark.full
def test_a_loader_that_is_killed_is_a_sentence(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root, weights, run = undisturbed
    shutil.copytree(root / "pairs", tmp_path / "pairs")
    (tmp_path / "killer.py").write_text(KILLER.format(count=-1, file="train/pair_0002_input.wav"))
    failed = run(tmp_path, "--plugins", "killer.py", "--num_workers", 1)
    assert sum("error: a process that reads the pairs was killed" in rank.stderr for rank in failed) == 1
    assert 1 in [rank.returncode for rank in failed]
    done = run(tmp_path, "--num_workers", 1)
    assert not any(rank.returncode for rank in done), done[0].stderr
    assert_equal(weights, read(tmp_path / "checkpoints" / "last.pt")["model"])
