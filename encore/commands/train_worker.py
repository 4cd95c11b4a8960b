"""One rank of a training run. Started by train_ddp.py; also runs under torchrun and srun, with the same flags."""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import closing, nullcontext
from functools import partial

from encore.config import cli
from encore.config.knobs import problems_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError, RestartError
from encore.models.allocator import keep_freed_memory
from encore.tracking import preparing
from encore.training import distributed
from encore.training.console import TrainConsole
from encore.training.data import lost_readers
from encore.training.distributed import DIVERGED, AgreedError, Ranks
from encore.training.trainer import Diverged, StopSignal, Trainer

RESTART = 1  # exit status of a rank that could go on after a new start


def main(config: TrainConfig) -> None:
    """Run one rank of a training run."""
    if problems := problems_of(config):  # torchrun and srun start it with flags that nobody has checked
        raise EncoreError("\n".join(problems))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C just ends the process
    distributed.share_cores()
    keep_freed_memory()
    try:
        with distributed.start(config.run.timeout_minutes) as ranks:
            status = train(config, ranks)
    except distributed.LostRank as error:
        cli.print_error(EncoreError(str(error)))
        status = RESTART
    if status:
        sys.exit(status)


def train(config: TrainConfig, ranks: Ranks) -> int:
    """Trains to the end or to a signal; the exit status."""
    stop = StopSignal()
    try:
        with TrainConsole(ranks.is_main) as console:
            with preparing(config.tracking) if ranks.is_main else nullcontext():
                trainer = Trainer.from_config(config, ranks, console)
            collect_garbage()
            with closing(trainer), lost_readers():
                trainer.fit(stop)
    except EncoreError as error:
        if ranks.is_main or not isinstance(error, AgreedError):
            cli.print_error(error)
        if isinstance(error, AgreedError):
            ranks.gather(None)  # as soon as one rank has ended the launcher ends the others, printed or not
        return status_of(error)
    return 128 + (stop.number or signal.SIGTERM) if trainer.status == "KILLED" else 0


def status_of(error: EncoreError) -> int:
    """The exit status of a rank that ended with an error; launchers restart ranks that end with `RESTART`."""
    if isinstance(error, RestartError) or (isinstance(error, AgreedError) and error.restart):
        return RESTART
    return DIVERGED if isinstance(error, Diverged) else cli.USER_ERROR


def collect_garbage() -> None:
    """Starts the garbage collector, if `run` has stopped it; it then leaves alone what exists by now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


app = cli.new_app()
cli.add_command(app, TrainConfig, main)


def run() -> None:
    """Runs this rank and ends the process."""
    gc.disable()  # modules and models make a million objects that stay: going through them takes a third of the start
    distributed.end_process(partial(cli.run, app))


if __name__ == "__main__":
    run()
