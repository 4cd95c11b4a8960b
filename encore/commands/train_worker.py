"""One rank of a training run. Started by train_ddp.py; also runs under torchrun and srun, with the same flags."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from functools import partial

from encore.config import cli
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.training import distributed
from encore.training.allocator import keep_freed_memory
from encore.training.console import TrainConsole
from encore.training.distributed import AgreedError
from encore.training.trainer import Diverged, StopSignal, Trainer

DIVERGED = 3  # exit status of a run that ended because its steps were not finite


def main(config: TrainConfig) -> None:
    """Run one rank of a training run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C just ends the process
    distributed.share_cores()
    keep_freed_memory()
    stop = StopSignal()
    with distributed.start() as ranks:
        try:
            with TrainConsole(ranks.is_main) as console:
                trainer = Trainer.from_config(config, ranks, console)
                with closing(trainer):
                    trainer.fit(stop)
        except EncoreError as error:
            if ranks.is_main or not isinstance(error, AgreedError):
                cli.print_error(error)
            sys.exit(DIVERGED if isinstance(error, Diverged) else cli.USER_ERROR)
    if trainer.status == "KILLED":
        sys.exit(128 + (stop.number or signal.SIGTERM))


app = cli.new_app()
cli.add_command(app, TrainConfig, main)


def run() -> None:
    """Runs this rank and ends the process."""
    distributed.end_process(partial(cli.run, app))


if __name__ == "__main__":
    run()
