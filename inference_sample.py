#!/usr/bin/env python3
"""Continues a song with a trained model."""

from encore.startup import announce

if __name__ == "__main__":
    announce()
    from encore.commands.sample import app
    from encore.config import cli

    cli.run(app)
