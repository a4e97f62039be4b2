"""The command line: a sub-command for each verb, which parses, calls, prints; what it needs is
imported when it runs.

Exit status: 0 done, 2 bad input or a fault in the study's code, 3 no plan meets the budget, 4 an
artefact failed verification, 5 trials failed one after the other, 130 interrupted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from autoprune import options
from autoprune.errors import BudgetError, InputError, VerificationError
from autoprune.options import (
    Budgets,
    Json,
    Out,
    Quiet,
    Seed,
    Sets,
    Study,
    Targets,
    Timeout,
    Trials,
    Trust,
)
from autoprune.reporting.output import Output

__all__ = ["app", "main"]

app = typer.Typer(
    cls=options.Commands,
    help="Automatic pruning for PyTorch: the best model inside a latency budget, measured, "
    "exported and verified.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; the console script `autoprune`."""
    # Two spinning OpenMP threads stall training tenfold as soon as another process wants one of the
    # cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=options.show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Automatic pruning for PyTorch: the best model inside a latency budget, measured, exported and
    verified."""


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
    """Dry run: groups, what is refused and why, what dense costs, the lowest reachable cost, time;
    trains nothing."""
    from autoprune import config

    read = config.read(
        study, sets=sets or (), budget=budget or (), trials=trials, timeout=timeout, seed=seed
    )
    with read.locating():
        from autoprune import searching
        from autoprune.reporting import records, tables, words

        report = searching.check(config.build(read))
    output = Output(as_json, quiet)
    scores = {"dense": report.dense, "most pruned": report.lowest}
    seconds = report.seconds
    time = (
        "time: unknown"
        if seconds is None
        else f"time: about {words.expected_time(seconds)} for the whole search"
    )
    crowd = words.busy()
    output.show(
        records.checked_record(report),
        tables.groups(report.groups, report.variables),
        *tables.costs(scores),
        f"{report.origin[:1].upper()}{report.origin[1:]}",
        *(words.recipe(key, recipe) for key, recipe in report.recipes.items()),
        time,
        *([crowd] if crowd else []),
        *report.warnings,
    )
    if report.unreachable:
        raise BudgetError(report.unreachable)
    if report.needless:
        raise InputError(report.needless)


@app.command()
def search(
    study: Study,
    budget: Budgets = None,
    trials: Trials = None,
    timeout: Timeout = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/NAME unless given.")
    ] = None,
    seed: Seed = None,
    sets: Sets = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start again from nothing; an earlier run is kept as NAME.1."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the best plan inside the budget, export and verify it. The same command again
    continues.

    A quantity whose --budget is given several times makes a family: a model for each, loosest
    first, in one run.
    """
    from autoprune import config

    reads = [
        config.read(
            study, sets=sets or (), budget=limits, trials=trials, timeout=timeout, seed=seed
        )
        for limits in options.family(budget or ())
    ]
    folder = out or Path("runs") / reads[0].name
    if not fresh:
        config.refuse_changed(reads[0].resolved(), folder)
    output = Output(as_json, quiet)
    with reads[0].locating():
        from autoprune import searching
        from autoprune.searching.interrupt import Interrupt

        first = config.build(reads[0])
        studies = [first, *(config.build(read, first.task) for read in reads[1:])]
        members: list[options.Member] = []
        with output.listener() as listener, Interrupt():
            for given in studies:
                run = config.open_run(given.resolved, folder, fresh=fresh and given is first)
                try:
                    members.append(
                        options.Member(given, searching.search(given, run, listener=listener))
                    )
                except BudgetError as error:
                    if len(studies) == 1:
                        raise
                    members.append(options.Member(given, None, error))
                if members[-1].interrupted:
                    break
    options.show_members(output, members)
    options.raise_unmet(members)


@app.command()
def sensitivity(
    study: Study,
    ratio: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="A share to remove; may be repeated; 0.25, 0.5, 0.75."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/NAME unless given.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.HTML", help="Draw the curves (needs plotly).")
    ] = None,
    seed: Seed = None,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what each decision costs in quality and saves in latency when taken alone; a search goes
    on from it."""
    from autoprune import config

    for share in ratio or ():
        if not 0 < share < 1:
            raise InputError(
                f"--ratio {share:g}: a ratio is the share removed, more than 0 and less than 1"
            )
    read = config.read(study, sets=sets or (), seed=seed)
    folder = out or Path("runs") / read.name
    config.refuse_changed(read.resolved(), folder)
    output = Output(as_json, quiet)
    from autoprune.reporting import sensitivity as shown

    if plot is not None:
        shown.plotly()
    with read.locating():
        from autoprune import searching

        built = config.build(read)
        run = config.open_run(built.resolved, folder)
        with output.listener() as listener:
            result = searching.sensitivity(built, run, tuple(ratio or searching.RATIOS), listener)
    if plot is not None:
        shown.plot(result, plot)
    output.show(shown.record(result), shown.table(result))


@app.command()
def measure(
    subject: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|STUDY|FOLDER...",
            help="torchvision:resnet18, my_module:build, a study, or an artefact.",
        ),
    ],
    shape: Annotated[
        str | None,
        typer.Option("--input", metavar="1x3x224x224", help="Shape of the input, the batch first."),
    ] = None,
    target: Targets = None,
    layers: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Rows of the table by layer; 0: none, and no profile."
        ),
    ] = 10,
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what models cost on targets: FLOPs, parameters, size, memory, latency, energy; also
    layer by layer."""
    from autoprune import config

    for name in target or ():
        config.target(name)  # a wrong one is refused before torch is loaded
    from autoprune import subject as subjects
    from autoprune.reporting import records, tables
    from autoprune.reporting.layers import layers as by_layer

    measured = [
        subjects.measure_subject(described, layers > 0)
        for described in subjects.every(subject, shape, target or (), trust)
    ]
    costs = tables.costs({subject.title: subject.score for subject in measured})
    tops = [
        by_layer(subject.layers, f"{subject.title}, by layer", layers)
        for subject in measured
        if subject.layers
    ]
    Output(as_json, quiet).show(records.measured_record(measured), *costs, *tops)


@app.command()
def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="Show the settings of this one.",
            autocompletion=options.target_names,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the bundled targets, which of them run here, and why the others do not."""
    from autoprune.reading import available
    from autoprune.reporting import targets as shown

    output = Output(as_json, quiet)
    if name is None:
        every = available.every()
        output.show(
            {"version": 1, "targets": [subject.to_json() for subject in every]},
            shown.listing(every),
        )
        return
    described = available.find(name)
    here = "runs here" if described.reason is None else f"does not run here: {described.reason}"
    output.show(
        {"version": 1, "target": described.to_json()},
        shown.settings(described),
        f"{described.path}, {here}",
    )


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
    options.show_result(output, result, built)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished search.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the artefact goes; without it budgets are listed."),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Export this trial of the front.")] = None,
    budget: Budgets = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train the best evaluated plan for the budget first.")
    ] = False,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="A format to write; may be repeated.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a trial of a finished search, or the best one under another budget; without --out list
    the budgets."""
    from autoprune import config

    if trial is not None and (budget or train):
        raise InputError(
            "give --trial alone, not with --budget or --train: a trial is one plan, a budget "
            "chooses among all of them"
        )
    if out is None and (trial is not None or budget or train or formats):
        raise InputError(
            "give --out DIR, where the artefact goes; without any option the budgets are listed"
        )
    read = options.read_run(run, budget or [], formats or [], trust)
    output = Output(as_json, quiet)
    with read.locating():
        from autoprune import searching
        from autoprune.run import Run

        built = config.build(read)
        if out is None:
            options.show_answers(output, searching.answerable(built, Run(run)), built)
            return
        with output.listener() as listener:
            if train:
                there = config.open_run(built.resolved, run)
                result = searching.export_trained(built, there, out, listener=listener)
            else:
                result = searching.export(built, Run(run), out, trial=trial, listener=listener)
    options.show_result(output, result, built)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An exported artefact.")],
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artefact against its own record: outputs, metric, widths, size, latency; writes
    verification.json."""
    from autoprune.exporting import artefact
    from autoprune.exporting import verify as verifying
    from autoprune.files import read_mapping
    from autoprune.reporting import tables

    output = Output(as_json, quiet)
    try:
        result = verifying.verify(folder, trust=trust)
    except VerificationError:
        output.show(read_mapping(folder / artefact.VERIFICATION))
        raise
    output.show(result, tables.checks(result))
