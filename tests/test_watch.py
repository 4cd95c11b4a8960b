"""The watch over the ranks: whom it accuses of hanging, and whom it lets go on. The ranks are threads here."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import NoReturn

import pytest
import torch.distributed as dist

from encore.training import watch
from encore.training.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its SystemExit
LIMIT = 0.4  # seconds


class Accused(Watch):
    """A watch that notes what it would end its process for."""

    accusations: list[str]
    ended: threading.Event

    def _say_and_end(self, problems: list[str]) -> NoReturn:
        self.accusations += problems
        self.ended.set()
        self._exit()

    def _exit(self) -> NoReturn:
        raise SystemExit  # of the thread


class Group:
    """Two ranks with a store; `accusations` holds what one of them would end with."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.store = dist.TCPStore("localhost", 0, 1, True, timedelta(seconds=60), wait_for_workers=False)
        self.accusations: list[str] = []
        self.ended = threading.Event()
        self.ranks = [Accused(self.store, rank, 2, limit) for rank in range(2)]
        for rank in self.ranks:
            rank.accusations, rank.ended = self.accusations, self.ended

    def accused(self, seconds: float = 20.0) -> list[str]:
        """What a rank says when it ends, within some seconds."""
        self.ended.wait(seconds)
        return self.accusations


@pytest.fixture
def group() -> Iterator[Group]:
    with ExitStack() as stack:
        group = Group()
        for rank in group.ranks:
            stack.enter_context(rank)
        yield group


def test_a_rank_that_stands_still_in_training_is_named_with_the_place(group: Group) -> None:
    group.ranks[0].at("backward", 7, waits=True)
    group.ranks[1].at("loading data", 7)
    (line,) = group.accused()
    assert re.fullmatch(r"rank 1 \(\S+\) has been at step 7, loading data for [12] s", line)


def test_ranks_that_wait_for_each_other_are_all_named(group: Group) -> None:
    group.ranks[0].at("backward", 7, waits=True)
    group.ranks[1].at("validation", 6, waits=True)
    said = group.accused()
    assert [line[:6] for line in said] == ["rank 0", "rank 1"] and "step 6, validation" in said[1]


def test_a_rank_that_does_not_respond_is_named(group: Group) -> None:
    """Its thread stands still, as that of a stopped process does."""
    group.ranks[0].at("backward", 7, waits=True)
    group.ranks[1].at("backward", 7, waits=True)
    group.ranks[1]._ended.set()
    (line,) = group.accused()
    assert line.startswith("rank 1 (") and "does not respond" in line


@pytest.mark.parametrize("waiting", [True, False])
def test_nobody_is_accused_while_one_works_outside_of_training_or_gets_on(group: Group, waiting: bool) -> None:
    """One encodes for as long as it needs while the other waits; then it trains, in steps of half the limit."""
    with group.ranks[0].waiting() if waiting else ExitStack():
        group.ranks[1].at("encoding")
        assert group.accused(5 * LIMIT) == []
    for step in range(5):
        for rank in group.ranks:
            rank.at("loading data", step)
        assert group.accused(LIMIT / 2) == []


def test_after_a_signal_a_rank_may_not_stand_still_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread waits in C, as in a collective operation, where a handler in Python would not be called."""
    monkeypatch.setattr(watch, "ENDING", 0.2)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    group = Group(limit=6.0)
    started = time.monotonic()
    try:
        with group.ranks[0], group.ranks[1]:
            group.ranks[0].at("backward", 7, waits=True)
            group.ranks[1].at("loading data", 7)
            signal.raise_signal(signal.SIGTERM)
            assert group.accused()[0].startswith("rank 1 (")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - started < 6.0
