#!/usr/bin/env python3
"""Trains the same model with several weightings or objectives and compares them."""

from encore.startup import announce

if __name__ == "__main__":
    announce()
    from encore.commands.ablate import app
    from encore.config import cli

    cli.run(app)
