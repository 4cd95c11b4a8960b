#!/usr/bin/env python3
"""Trains a small codec on a folder of audio."""

from encore.commands.train_codec import app
from encore.config import cli

if __name__ == "__main__":
    cli.run(app)
