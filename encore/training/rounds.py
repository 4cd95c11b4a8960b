"""Long work that the ranks share: they meet now and then, so that none waits long for another."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from encore.training.distributed import Ranks

ROUND_SECONDS = 20.0


def in_rounds(
    work: Generator[None, None, None],
    ranks: Ranks,
    advance: Callable[[], object] = lambda: None,
    after_round: Callable[[], object] = lambda: None,
) -> None:
    """Does each rank's own work to its end.

    The ranks meet in a collective operation after each round of 20 s and a step of the work. It is therefore no matter
    for the time limit of collective operations how long all of the work takes, and how unequal the shares are.

    Args:
        work: of this rank, which yields after each step.
        ranks: that work.
        advance: called after each step.
        after_round: called on all ranks after each round.

    Raises:
        AgreedError: the work raised an EncoreError on some rank.
    """
    working = True
    try:
        while any(ranks.gather(working)):
            end = time.monotonic() + ROUND_SECONDS
            with ranks.agree():
                while working:
                    working = next(work, "ended") is None
                    if working:
                        advance()
                    if time.monotonic() >= end:
                        break
            after_round()
    finally:
        work.close()
