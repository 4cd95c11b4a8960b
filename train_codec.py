#!/usr/bin/env python3
"""Trains a small codec on a folder of audio."""

from encore.startup import announce

if __name__ == "__main__":
    announce()
    from encore.commands.train_codec import app
    from encore.config import cli

    cli.run(app)
