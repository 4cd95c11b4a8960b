#!/usr/bin/env python3
"""Continues a song with a trained model."""

from encore.commands.sample import app
from encore.config import cli

if __name__ == "__main__":
    cli.run(app)
