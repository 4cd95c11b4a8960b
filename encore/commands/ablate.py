"""Compares weightings and objectives: trains the same model with each, evaluates all, and shows them side by side."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from encore.ablation.comparison import compare, print_comparison
from encore.ablation.grid import Grid, read_grid
from encore.ablation.plan import Plan, make_plan
from encore.ablation.report import write_json, write_report
from encore.ablation.runner import AblationRun, AblationRunner, open_runs
from encore.ablation.verdict import sentences
from encore.config import cli
from encore.config.knobs import MAX_COUNT, knob, problems_of
from encore.config.schema import MAX_PROCESSES
from encore.errors import EncoreError, make_folder
from encore.evaluation.baselines import BASELINES, MODEL, prior_name
from encore.evaluation.dataset import VAL
from encore.evaluation.results import print_verdict
from encore.tracking import NestedRuns

FAILED = 1  # exit status if a run failed
PLAIN_WIDTH = 120  # characters of a line where the output is not a terminal


@dataclass(frozen=True)
class AblationConfig:
    """All settings of an ablation."""

    grid: Path | None = knob(None, "YAML file: common flags of train_ddp.py, and runs with their own", common=True)
    each_loss: bool = knob(False, "one run per loss, trained on it alone; of --grid only common: counts", common=True)
    dataset_folder: Path | None = knob(None, "folder with train/ and val/ pairs, instead of the grid's", common=True)
    output: Path = knob(Path("ablation"), "folder for runs, table and page", common=True)
    parallel: int = knob(1, "runs at the same time", minimum=1, maximum=MAX_PROCESSES, common=True)
    items: int | None = knob(
        None, "validation pairs to evaluate on; default: evaluate.py's", minimum=2, maximum=MAX_COUNT, common=True
    )
    candidates: int | None = knob(
        None, "continuations of each; default: evaluate.py's", minimum=2, maximum=1024, common=True
    )
    critic: bool = knob(True, "train a critic for each run, as evaluate.py does", common=True)
    mlflow_uri: str = knob("sqlite:///mlflow.db", "MLflow tracking server or store", common=True)
    experiment: str = knob("encore", "MLflow experiment", common=True)
    plugins: str = knob("", "modules or files of your own that register building blocks: a,b.py", common=True)

    @property
    def training_flags(self) -> dict[str, Any]:
        """Flags of train_ddp.py that override the grid's, for all runs."""
        flags: dict[str, Any] = {"mlflow_uri": self.mlflow_uri, "experiment": self.experiment}
        if self.dataset_folder is not None:
            flags["dataset_folder"] = self.dataset_folder
        return flags | ({"plugins": self.plugins} if self.plugins else {})

    def evaluation_flags(self, metrics: Sequence[str]) -> list[str]:
        """Flags of evaluate.py for all runs. Runs are compared on validation pairs: test pairs choose nothing."""
        flags = {
            "--items": self.items,
            "--candidates": self.candidates,
            "--long_items": 0,
            "--split": VAL,
            "--critic": str(self.critic).lower(),
            "--metrics": ",".join(metrics),
        }
        return [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]


def main(config: AblationConfig) -> None:
    """Train the same model with each weighting or objective, evaluate all, and compare: a table and a page."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)

    def log(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    plan = plan_of(config, log)
    runs = open_runs(plan.configs)
    tracked = track(runs, config)
    runner = AblationRunner(runs, config.evaluation_flags(plan.metrics), config.parallel, log)
    if stopped := runner.run():
        tracked.close("KILLED")
        print(f"stopped by {signal.Signals(stopped).name}; the same command resumes the ablation", file=sys.stderr)
        sys.exit(128 + stopped)
    report(plan, runs, tracked, config.output, console)
    sys.exit(FAILED if any(run.failure is not None for run in runs) else 0)


def plan_of(config: AblationConfig, log: Callable[[str], None]) -> Plan:
    """The runs to train.

    Raises:
        EncoreError: everything that is wrong with the flags, the grid or the configurations.
    """
    problems = problems_of(config)
    if config.grid is None and not config.each_loss:
        problems.append("--grid: missing; name a YAML file of runs (ablation.yaml is one), or ask for --each_loss")
    if problems:
        raise EncoreError("\n".join(problems))
    grid = Grid("--each_loss", {}, {}) if config.grid is None else read_grid(config.grid)
    if taken := [name for name in grid.runs if name in (*BASELINES, prior_name(MODEL))]:
        raise EncoreError(f"{grid.source}: runs: {', '.join(taken)}: is the name of a baseline; choose another one")
    make_folder(config.output, "--output")
    return make_plan(grid, config.each_loss, config.output, config.training_flags, log)


def track(runs: Sequence[AblationRun], config: AblationConfig) -> NestedRuns:
    """Opens the MLflow runs: those of an earlier call with this output folder, else new ones.

    Raises:
        EncoreError: MLflow cannot be reached or does not know the earlier runs, or `ablation.json` is broken.
    """
    path = config.output / "ablation.json"
    try:
        run_id = json.loads(path.read_text())["run_id"] if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoreError(f"{path}: cannot be resumed ({error}); move it away") from error
    tracked = NestedRuns(config.mlflow_uri, config.experiment)
    tracked.open(config.output.resolve().name, run_id)
    if run_id is None:
        path.write_text(json.dumps({"run_id": tracked.run_id}) + "\n")
    for run in runs:
        run.state.run_id = tracked.child(run.name, run.state.run_id)
        run.save()
    return tracked


def report(plan: Plan, runs: Sequence[AblationRun], tracked: NestedRuns, output: Path, console: Console) -> None:
    """Compares the runs: writes ablation.json and index.html, prints the table, and ends the MLflow run."""
    comparison = compare(
        {run.name: run.results() for run in runs if run.failure is None},
        {run.name: run.state.seconds for run in runs},
        {run.name: run.failure for run in runs if run.failure is not None},
    )
    data, page = output / "ablation.json", output / "index.html"
    write_json(comparison, runs, tracked.run_id, data)
    write_report(comparison, plan, runs, page)
    print_comparison(comparison, console)
    print_verdict(sentences(comparison), console)
    console.print(f"listen: {page}", markup=False, soft_wrap=True)
    failed = [str(run.state.run_id) for run in runs if run.failure is not None]
    tracked.close("FAILED" if failed else "FINISHED", failed, [page, data], sentences(comparison))


app = cli.new_app()
cli.add_command(app, AblationConfig, main)

if __name__ == "__main__":
    cli.run(app)
