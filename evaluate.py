#!/usr/bin/env python3
"""Evaluates a model beside baselines: tables, JSON and a page."""

from encore.startup import announce

if __name__ == "__main__":
    announce()
    from encore.commands.evaluate import app
    from encore.config import cli

    cli.run(app)
