"""Trains a continuation model: flags to configuration, checked once, then one worker per rank."""

from __future__ import annotations

import sys

import encore.codecs
import encore.data
import encore.models.pointer_prior
import encore.tracking  # noqa: F401
from encore.commands.songs import with_pairs
from encore.config import cli
from encore.config.checks import validate
from encore.config.schema import TrainConfig
from encore.training.launcher import launch, ranks_here

app = cli.new_app()


def train(config: TrainConfig) -> None:
    """Train a transformer to continue music, with a weighted sum of losses on the decoded audio."""
    config = config.resolved()
    validate(config)
    config = with_pairs(config)
    ranks_here(config)
    sys.exit(launch(config))


cli.add_command(app, TrainConfig, train)

if __name__ == "__main__":
    cli.run(app)
