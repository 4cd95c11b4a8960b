#!/usr/bin/env python3
"""Trains a model to continue music: parses the flags and starts one worker per rank."""

import os
import signal

if __name__ == "__main__":
    # The imports take seconds; Ctrl-C during them just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # While a machine waits for another, torch would print a stack of C++ for every try.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from encore.startup import announce

    announce()
    from encore.commands.train import app
    from encore.config import cli

    cli.run(app)
