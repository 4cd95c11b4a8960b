#!/usr/bin/env python3
"""Cuts a folder of music into pairs to train on."""

from encore.commands.prepare import app
from encore.config import cli

if __name__ == "__main__":
    cli.run(app)
