"""Ranks: how a process of a group ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT

# An object that lives until the interpreter is torn down, and then aborts the process as a thread of gloo's may.
RANK = """
import atexit, os, sys
from encore.training.distributed import end_process

class Late:
    def __del__(self):
        os.abort()

sys.late = Late()
atexit.register(print, "tidied up")

def rank():
    print("worked")
    {ending}

end_process(rank)
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("return", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('what went wrong')", 1, "ValueError: what went wrong"),
    ],
)
def test_a_rank_ends_with_its_status_and_without_a_teardown(ending: str, status: int, said: str) -> None:
    command = [sys.executable, "-c", RANK.format(ending=ending)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == status, result.stderr
    assert result.stdout.split("\n") == ["worked", "tidied up", ""]
    assert said in result.stderr
