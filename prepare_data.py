#!/usr/bin/env python3
"""Cuts a folder of music into pairs to train on."""

from encore.startup import announce

if __name__ == "__main__":
    announce()
    from encore.commands.prepare import app
    from encore.config import cli

    cli.run(app)
