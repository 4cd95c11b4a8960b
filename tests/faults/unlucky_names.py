"""How tests ask for the faults of the plugin `unlucky`, which they must not import themselves."""

from __future__ import annotations

UNLUCKY = ("--plugins", "tests.faults.unlucky")
KILL, FULL = "KILL_AFTER", "FULL_AFTER"
