#!/usr/bin/env python3
"""One rank of a training run; started by torchrun or srun. train_ddp.py starts the same as a module."""

from encore.commands.rank import run

if __name__ == "__main__":
    run()
