#!/usr/bin/env python3
"""Evaluates a model beside baselines: tables, JSON and a page."""

from encore.commands.evaluate import app
from encore.config import cli

if __name__ == "__main__":
    cli.run(app)
