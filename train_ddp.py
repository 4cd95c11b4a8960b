#!/usr/bin/env python3
"""Trains a model to continue music: parses the flags and starts one worker per rank."""

from encore.commands.train import app
from encore.config import cli

if __name__ == "__main__":
    cli.run(app)
