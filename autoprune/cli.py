"""The command line: a sub-command for each verb, which parses, calls, prints; what it needs is imported when it runs.

Exit status: 0 done, 2 bad input, 3 no plan meets the budget, 4 an artefact failed verification, 130 interrupted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune import options
from autoprune.errors import BudgetError, InputError, VerificationError
from autoprune.options import Budgets, Json, Out, Quiet, Seed, Sets, Study, Target, Timeout, Trials
from autoprune.reporting.output import Output

if TYPE_CHECKING:
    from autoprune.config import Config

__all__ = ["app", "main"]

app = typer.Typer(
    cls=options.Commands,
    help="Automatic pruning for PyTorch: the best model inside a latency budget, measured, exported and verified.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; the console script `autoprune`."""
    # Two spinning OpenMP threads stall training tenfold as soon as another process wants one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=options.show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Automatic pruning for PyTorch: the best model inside a latency budget, measured, exported and verified."""


@app.command()
def check(
    study: Study,
    budget: Budgets = None,
    trials: Trials = None,
    timeout: Timeout = None,
    seed: Seed = None,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Dry run: groups, what is refused and why, what dense costs, the lowest reachable cost, time; trains nothing."""
    from autoprune import config

    read = config.read(study, sets=sets or (), budget=budget or (), trials=trials, timeout=timeout, seed=seed)
    with read.locating():
        from autoprune import searching
        from autoprune.reporting import records, tables, words

        report = searching.check(config.build(read))
    output = Output(as_json, quiet)
    scores = {"dense": report.dense, "most pruned": report.lowest}
    time = (
        "time: unknown" if report.seconds is None else f"time: about {words.span(report.seconds)} for the whole search"
    )
    output.show(
        records.checked(report),
        tables.groups(report.groups, report.variables),
        tables.costs(scores),
        time,
        *report.warnings,
    )
    if report.unreachable:
        raise BudgetError(report.unreachable)


@app.command()
def search(
    study: Study,
    budget: Budgets = None,
    trials: Trials = None,
    timeout: Timeout = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/NAME unless given.")] = None,
    seed: Seed = None,
    sets: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; an earlier run is kept as NAME.1.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the best plan inside the budget, export and verify it. The same command again continues."""
    from autoprune import config

    read = config.read(study, sets=sets or (), budget=budget or (), trials=trials, timeout=timeout, seed=seed)
    folder = out or Path("runs") / read.name
    if not fresh:
        config.refuse_changed(read.resolved(), folder)
    output = Output(as_json, quiet)
    with read.locating():
        from autoprune import searching
        from autoprune.searching.interrupt import Interrupt

        built = config.build(read)
        run = config.open_run(built.resolved, folder, fresh=fresh)
        with output.listener() as listener, Interrupt():
            result = searching.search(built, run, listener=listener)
    _show_result(output, result, built.task.metric.name)
    if result.interrupted:
        raise typer.Exit(options.INTERRUPTED)
    if result.best is None:
        raise BudgetError(
            f"no plan meets the budget ({built.budget}); the front, with what was reachable, is in {run.front}"
        )


@app.command()
def measure(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STUDY|FOLDER", help="torchvision:resnet18, my_module:build, a study, or an artefact."
        ),
    ],
    shape: Annotated[
        str | None, typer.Option("--input", metavar="1x3x224x224", help="Shape of the input, the batch first.")
    ] = None,
    target: Target = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a model costs on a target: FLOPs, parameters, size, latency."""
    from autoprune import config

    if target is not None:
        config.target(target)  # a wrong one is refused before torch is loaded
    from autoprune import subject as subjects
    from autoprune.measuring.measure import measure as measured
    from autoprune.reporting import tables

    found = subjects.of(subject, shape, target)
    score = measured(found.model, found.inputs, found.target, processes=3)
    record = {"version": 1, "model": found.name, "target": found.target.to_json(), "score": score.to_json()}
    Output(as_json, quiet).show(record, tables.costs({found.name: score}))


@app.command()
def prune(
    study: Study,
    plan: Annotated[Path, typer.Option(metavar="PLAN.JSON", help="The plan to apply.")],
    out: Out,
    budget: Budgets = None,
    seed: Seed = None,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Apply a plan, train, export; no search."""
    from autoprune import config
    from autoprune.reading.plan_file import read_plan

    chosen = read_plan(plan)
    read = config.read(study, sets=sets or (), budget=budget or (), seed=seed)
    output = Output(as_json, quiet)
    with read.locating():
        from autoprune import searching

        built = config.build(read)
        with output.listener() as listener:
            result = searching.prune(built, chosen, out, listener=listener)
    _show_result(output, result, built.task.metric.name)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished search.")],
    out: Out,
    trial: Annotated[int | None, typer.Option(help="Export this trial of the front.")] = None,
    budget: Budgets = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="A format to write; may be repeated.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a trial of a finished search, or the best one under another budget, and verify it."""
    from autoprune import config

    if trial is not None and budget:
        raise InputError("give --trial or --budget, not both: a trial is one plan, a budget chooses among all of them")
    read = _read_run(run, budget or [], formats or [])
    output = Output(as_json, quiet)
    with read.locating():
        from autoprune import searching
        from autoprune.run import Run

        built = config.build(read)
        with output.listener() as listener:
            result = searching.export(built, Run(run), out, trial=trial, listener=listener)
    _show_result(output, result, built.task.metric.name)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An exported artefact; the code that it names is run.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artefact against its own record: outputs, metric, widths, size, latency; writes verification.json."""
    from autoprune.exporting import artefact
    from autoprune.exporting import verify as verifying
    from autoprune.reporting import tables

    output = Output(as_json, quiet)
    try:
        result = verifying.verify(folder)
    except VerificationError:
        output.show(artefact.read_mapping(folder / artefact.VERIFICATION))
        raise
    output.show(result, tables.checks(result))


def _show_result(output: Output, result: Any, metric: str) -> None:
    from autoprune.reporting import records, tables

    output.show(records.result(result), *tables.closing(result, metric), f"results: {result.run.folder}")


def _read_run(folder: Path, budget: list[str], formats: list[str]) -> Config:
    """The study of a finished run, with another budget or other formats."""
    from autoprune import config
    from autoprune.run import Run

    if not Run(folder).study.exists() or not Run(folder).front.exists():
        raise InputError(
            f"{folder} holds no finished run (no study.yaml and front.json in it); give the folder that search wrote"
        )
    sets = [f"export.formats={json.dumps(formats)}"] if formats else []
    return config.read(Run(folder).study, sets=sets, budget=budget)
