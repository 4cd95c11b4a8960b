#!/usr/bin/env python3
"""One rank of a training run; started by train_ddp.py, torchrun or srun."""

from encore.commands.train_worker import run

if __name__ == "__main__":
    run()
