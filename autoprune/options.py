"""Arguments and options that the commands share, and how their errors become an exit status."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from autoprune import __version__, faults
from autoprune.budget import Limit
from autoprune.errors import AutopruneError, BudgetError, InputError, paragraph

if TYPE_CHECKING:
    from autoprune.config import Config
    from autoprune.reporting.output import Output
    from autoprune.study import Study as StudyNoun

__all__ = [
    "INTERRUPTED",
    "Budgets",
    "Commands",
    "Json",
    "Member",
    "Out",
    "Quiet",
    "Seed",
    "Sets",
    "Study",
    "Targets",
    "Timeout",
    "Trials",
    "Trust",
    "family",
    "raise_unmet",
    "read_run",
    "reserve_stdout",
    "show_answers",
    "show_members",
    "show_result",
    "show_version",
    "target_names",
]

INTERRUPTED = 130
# UsageError of click, which typer brings along or within itself
_USAGE: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """Turns errors raised on purpose into one paragraph and their exit status; any other is a bug
    and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with faults.boundary():
                return super().invoke(ctx)
        except AutopruneError as error:
            _end(str(error), error.exit_status, error)
        except _USAGE as error:  # it would be shown as it is, however long what came
            said = paragraph(error.format_message())
            error.format_message = lambda: said
            raise
        except OSError as error:
            what = f"{error.filename}: " if error.filename is not None else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way = (
                "make room: the same command goes on from what is kept"
                if full
                else "give another place"
            )
            _end(f"{what}{error.strerror or error}; {way}", InputError.exit_status, error)
        except KeyboardInterrupt as error:
            _end("interrupted", INTERRUPTED, error)


def _end(text: str, status: int, error: BaseException) -> NoReturn:
    typer.echo(paragraph(f"autoprune: {text}"), err=True)
    raise typer.Exit(status) from error


def show_version(wanted: bool) -> None:
    """Print the version and end, where that is wanted."""
    if wanted:
        typer.echo(f"autoprune {__version__}")
        raise typer.Exit


def reserve_stdout(context: typer.Context, wanted: bool) -> bool:
    """With --json stdout is for the JSON alone, before any code of the user's runs and until the
    command has ended."""
    if wanted and not context.resilient_parsing:
        from autoprune.reporting.output import reserve_stdout

        context.with_resource(reserve_stdout())
    return wanted


def _studies() -> list[str]:
    from autoprune.reading.bundled import bundled_paths

    return list(bundled_paths())


def show_result(output: Output, result: Any, study: StudyNoun) -> None:
    """Print what a search, or the application of one plan, ended with."""
    from autoprune.reporting import records, tables
    from autoprune.searching.selecting import answers

    asked = {*(limit.key for limit in study.budget.limits), *study.search.objectives}
    shown = tables.closing(result, study.task.metric.name, asked)
    more = [f"{answers.in_words(result.answers, result.run.folder)}."] if result.answers else []
    output.show(records.result(result), *shown, *more, f"results: {result.run.results}")


@dataclass(frozen=True)
class Member:
    """What the search under one budget ended with: a result, or why there is none."""

    study: StudyNoun
    result: Any
    error: BudgetError | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it was ended by Ctrl-C."""
        return self.result is not None and bool(self.result.interrupted)

    @property
    def unmet(self) -> str | None:
        """Why no plan meets its budget, where none does."""
        if self.error is not None or self.result.best is not None:
            return None if self.error is None else str(self.error)
        front = self.result.run.front
        return (
            f"no plan meets the budget ({self.study.budget}); the front, with what was "
            f"reachable, is in {front}"
        )


def family(budget: Sequence[str]) -> list[list[str]]:
    """The --budget options of each member: one of the values of what is limited several times,
    loosest first."""
    values: dict[str, list[str]] = {}
    for text in budget:
        values.setdefault(text.partition("=")[0].strip(), []).append(text)
    several = {key: list(dict.fromkeys(texts)) for key, texts in values.items() if len(texts) > 1}
    if not several:
        return [list(budget)]
    if len(several) > 1:
        raise InputError(
            f"--budget: {' and '.join(several)} are both limited several times; a family has "
            "several limits of one "
            "quantity, and of each other quantity one that holds for all"
        )
    ((key, texts),) = several.items()
    limits = {text: Limit.parse(key, text.partition("=")[2]) for text in texts}
    if len({limit.relative for limit in limits.values()}) > 1:
        raise InputError(
            f"--budget: the limits of {key} are shares of dense and absolute ones; give all in "
            "one unit"
        )
    tightest = all(limit.lower for limit in limits.values())
    ordered = sorted(texts, key=lambda text: limits[text].value, reverse=not tightest)
    others = [text for text in budget if text not in limits]
    return [[*others, text] for text in ordered]


def show_members(output: Output, members: Sequence[Member]) -> None:
    """Print what a search ended with; of several budgets a row each."""
    from autoprune.reporting import records, tables

    if len(members) == 1 and members[0].result is not None:
        show_result(output, members[0].result, members[0].study)
        return
    shown = [
        {
            "budget": member.study.budget.to_json(),
            "result": None if member.result is None else records.result(member.result),
            "unmet": member.unmet,
        }
        for member in members
    ]
    rows = [(str(member.study.budget), member.result) for member in members]
    output.show(
        {"version": 1, "family": shown}, tables.family(rows, members[0].study.task.metric.name)
    )


def raise_unmet(members: Sequence[Member]) -> None:
    """End with status 130 after Ctrl-C, with 3 where no plan meets a budget."""
    if any(member.interrupted for member in members):
        raise typer.Exit(INTERRUPTED)
    unmet = [member.unmet for member in members if member.unmet is not None]
    if unmet:
        raise BudgetError(". ".join(unmet)) from members[0].error


def show_answers(output: Output, known: Any, study: StudyNoun) -> None:
    """Print the budgets that a run can answer."""
    from autoprune.reporting import tables

    record = {"version": 1, "answers": [member.to_json() for member in known]}
    output.show(record, tables.answers(known, study.task.metric.name))


def read_run(folder: Path, budget: list[str], formats: list[str], trust: bool) -> Config:
    """The study of a finished run, with another budget or other formats; code of its own only with
    `trust`."""
    from autoprune import config
    from autoprune.exporting.trust import require_trust
    from autoprune.run import Run

    run = Run(folder)
    if (
        not run.study.exists()
        or not run.has_results
        or not (run.dense.exists() or run.journal.exists())
    ):
        raise InputError(
            f"{folder} holds no finished run (no study.yaml, dense and front.json in it); give "
            "the folder that search "
            "wrote, not one inside it"
        )
    require_trust(folder, trust, f"autoprune export {folder} ... --trust")
    sets = [f"export.formats={json.dumps(formats)}"] if formats else []
    return config.read(run.study, sets=sets, budget=budget)


def target_names() -> list[str]:
    """Names of the bundled targets, for completion."""
    from autoprune.reading.bundled import bundled_paths

    return list(bundled_paths("target"))


_STUDY = "A study's YAML file, or the name of a bundled one."
_TARGET = "A target's YAML file, or the name of a bundled one; may be repeated."
_BUDGET = (
    "Replace one limit, as in latency=50%; may be repeated for other quantities, wins over --set."
)

Study = Annotated[str, typer.Argument(metavar="STUDY", help=_STUDY, autocompletion=_studies)]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="TARGET", help=_TARGET, autocompletion=target_names),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a value of the study."),
]
Budgets = Annotated[
    list[str] | None, typer.Option("--budget", metavar="QUANTITY=LIMIT", help=_BUDGET)
]
Trials = Annotated[
    int | None, typer.Option(metavar="N", help="Number of trials; the dense model is the first.")
]
Timeout = Annotated[
    str | None, typer.Option(metavar="TIME", help="Stop searching after 90s, 10m or 1h.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of everything random.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run code of its own, and download, where the folder's study names such."
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the artefact goes.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", callback=reserve_stdout, help="Print one JSON object instead of tables."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
