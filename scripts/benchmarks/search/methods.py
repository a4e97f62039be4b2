"""The methods of benchmarks/search that are autoprune's, or written here: a cell in, the trained
net out."""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from autoprune.budget import Budget
from autoprune.errors import VerificationError
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.reading.schema import Recovery
from autoprune.run import Run
from autoprune.score import Candidate
from autoprune.searching.callback import Quiet
from autoprune.searching.evaluating.preparation import importance
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.records import kept_model, with_models
from autoprune.searching.search import search
from autoprune.searching.selecting.finalists import settle
from autoprune.searching.session import open_session
from autoprune.space import Variable, uniform
from autoprune.study import Settings, Study
from scripts.benchmarks.repair import copied
from scripts.benchmarks.search.cell import TARGET, Cell, Refused, Spent, largest, space
from scripts.benchmarks.search.tasks import TECHNIQUES, WIDTHS

Method = Callable[[Cell], nn.Module]
FRONT = 8  # plans that are trained for a whole front: as many epochs as four cells have


def measured(cell: Cell, plan: Plan) -> float:
    """The latency ratio of a plan."""
    with cell.spent.on("measuring"):
        ratio = cell.dense.prepared.cost(plan).latency.ratio
    assert ratio is not None
    return ratio


def variables(
    cell: Cell, multiple_of: int = 1, techniques: tuple[str, ...] = WIDTHS
) -> list[Variable]:
    """A decision for each group of units, or for all that the techniques cut."""
    criteria = ("l1", "l2", "taylor")
    chosen = space(cell.case, techniques=techniques, ratio=(0.0, 0.95), criteria=criteria)
    return chosen.resolve(cell.dense.prepared.coupling.groups, multiple_of)


def eights(cell: Cell) -> Plan:
    """The largest plan that fits, of the same ratio everywhere with widths in eights."""
    decisions = variables(cell, 8)

    def plan(share: float) -> Plan:
        return uniform(decisions, WIDTHS, share)

    return plan(
        largest(cell, lambda share: cell.dense.prepared.cut_by_magnitude(plan(share)).model)
    )


def uniform8(cell: Cell) -> nn.Module:
    """The same share of every group by L1, in eights; Li et al. 2017 (arXiv:1608.08710) with a look
    at the hardware."""
    return cell.train(cell.dense.prepared.cut_by_magnitude(eights(cell)).finish(), cell.epochs)


def scratch(cell: Cell) -> nn.Module:
    """The net of `uniform8` from random weights; Liu et al. 2019 (arXiv:1810.05270)."""
    plan, coupling = eights(cell), cell.dense.prepared.coupling
    torch.manual_seed(cell.dense.seed + 1)
    fresh = cell.dense.task.build().eval()
    return cell.train(
        Pruner(fresh, coupling, Importance(fresh, coupling)).apply(plan).finish(), cell.epochs
    )


def _drawn(cell: Cell, decisions: list[Variable], draw: random.Random) -> Plan:
    """Random shares of all groups, by random criteria, that fit the budget."""
    for attempt in range(400):
        # the tighter the budget, the fewer plans fit: rather more is removed then
        least = min(0.8, 0.002 * attempt)
        choices: dict[str, Choice] = {}
        for each in decisions:
            ratio, criterion = draw.uniform(least, 0.95), draw.choice(each.options.criteria)
            choices |= each.choices(each.options.techniques[0], ratio, criterion)
        plan = Plan(choices)
        if measured(cell, plan) <= cell.limit:
            return plan
    raise Refused("no random plan fits")


def random_search(cell: Cell) -> nn.Module:
    """Random plans inside the budget, of the space that autoprune searches, trained alike; the best
    by validation."""
    decisions = variables(cell, techniques=TECHNIQUES)
    draw, best = random.Random(cell.dense.seed), (-1.0, nn.Module())
    scores = importance(_study(cell, {}), cell.dense.model, cell.dense.prepared.coupling)
    while cell.spent.epochs + cell.case.trial <= cell.epochs:
        plan = _drawn(cell, decisions, draw)
        model = Pruner(cell.dense.model, cell.dense.prepared.coupling, scores).apply(plan).finish()
        model = cell.train(model, cell.case.trial)
        best = max(best, (cell.validation(model), model), key=lambda pair: pair[0])
    return best[1]


def _study(cell: Cell, settings: dict[str, Any]) -> Study:
    """A study as the command line would read it; `settings` change `ours` of the case."""
    given = cell.case.ours | settings
    known = {each.name for each in fields(Settings)}
    where = replace(TARGET, multiple_of=given["multiple_of"])
    return Study(
        cell.case.name,
        replace(cell.dense.task, description={"task": cell.case.name}),
        replace(
            space(
                cell.case,
                techniques=given["techniques"],
                ratio=given["ratio"],
                criteria=given["criteria"],
            ),
            share=given["share"],
        ),
        where,
        Budget.parse({"latency": f"{100 * cell.budget:g}%"}),
        Settings(**{name: given[name] for name in known & set(given)} | {"seed": cell.dense.seed}),
        replace(cell.case.recipe(given["epochs"]), repair=given.get("repair", Recovery().repair)),
        formats=("safetensors", "onnx"),
    )


class _Counting(Quiet):
    """Counts the steps of all trainings of a search; ends it, as Ctrl-C does, where no further
    training fits into E."""

    def __init__(self, cell: Cell, stop: bool) -> None:
        self.cell, self.stop, self.last, self.what = cell, stop, (0.0, time.monotonic()), ""
        self.steps = cell.dense.task.steps("train")

    def progress(self, share: float) -> None:
        """After each step of a training; other work has progress too."""
        if not self.what.startswith("training"):
            return
        now = time.monotonic()
        before, began = self.last
        if share > before:
            self.cell.spent.training += now - began
        self.cell.spent.epochs += 1 / self.steps
        self.last = share, now

    def on_step(self, trial: int, what: str) -> None:
        """The share of a piece of work begins at zero."""
        self.ended()
        self.what = what

    def ended(self) -> None:
        """A piece of work ended."""
        now = time.monotonic()
        spent, seconds = self.cell.spent, now - self.last[1]
        if self.what.startswith("judging"):
            spent.judging += seconds
        elif self.what.startswith(("measuring", "profiling", "exporting")):
            spent.measuring += seconds
        self.last, self.what = (0.0, now), ""

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """A trial ended."""
        self.ended()
        if self.stop and self.cell.spent.epochs + self.cell.case.trial > self.cell.epochs + 0.01:
            raise KeyboardInterrupt


def _searched(cell: Cell, settings: dict[str, Any], stop: bool) -> nn.Module:
    """What autoprune's search finds; a search that was cut off goes on, with what it had spent."""
    run = Run(cell.work)
    number = _ran(cell, _study(cell, settings), run, stop)
    if number is None and run.front.exists():
        number = json.loads(run.front.read_text())["best"]
    if number is None:
        raise Refused("no plan inside the budget")
    return kept_model(run, number, cell.dense.model)


def _ran(cell: Cell, study: Study, run: Run, stop: bool) -> int | None:
    """The best trial of a search in `run`, with what it spent in `cell`."""
    for path in sorted(run.folder.glob("spent-*.json")):
        cell.spent = Spent(**json.loads(path.read_text()))
    began, counting = time.monotonic(), _Counting(cell, stop)
    try:
        # the net is measured again here, as all others are
        with contextlib.suppress(VerificationError):
            result = search(study, run, counting)
            return result.best.number if result.best is not None else None
    finally:
        counting.ended()
        whole = cell.spent.earlier + time.monotonic() - began
        run.write_json(
            run.folder / f"spent-{time.time():.0f}.json", vars(cell.spent) | {"earlier": whole}
        )
    return None


def ours(cell: Cell) -> nn.Module:
    """autoprune's search as it comes, with the settings of the case."""
    selects = any(each.name == "finalists" for each in fields(Settings))
    return _searched(cell, {}, stop=not selects)


def ours4(cell: Cell) -> nn.Module:
    """autoprune's search with a quarter of the epochs, all for one plan."""
    return _searched(cell, {"finalists": 1, "epochs": max(1, cell.epochs // 4)}, stop=False)


def ours_widths(cell: Cell) -> nn.Module:
    """autoprune's search without whole blocks among its techniques."""
    return _searched(cell, {"techniques": WIDTHS}, stop=False)


def front(cell: Cell) -> nn.Module:
    """The best inside the budget out of one run of autoprune's search without any, read as
    `autoprune export` does.

    That run is the same for all budgets; it trains `FRONT` plans with half of the epochs of a cell
    each.
    """
    run = Run(cell.work.parent / f"{cell.case.name}-{cell.dense.seed}-front")
    settings = {"finalists": FRONT, "epochs": math.ceil(cell.epochs / 2)}
    study = _study(cell, settings)
    _ran(cell, replace(study, budget=Budget()), run, stop=False)
    with open_session(study, run, None) as session:
        kept = with_models(run, Journal.read(study, run, session.dense))
        best, _ = settle(session, kept)
    if best is None:
        raise Refused("no plan that is trained keeps the budget")
    return kept_model(run, best.number, cell.dense.model)


def ours_cut(cell: Cell) -> nn.Module:
    """autoprune's search with every plan trained from the weights as cut, and not from repaired
    ones."""
    return _searched(cell, {"repair": False}, stop=False)


def tpe(cell: Cell) -> nn.Module:
    """Plain TPE in the space that autoprune searches: every trial inside the budget is trained
    alike."""
    settings = {"trials": 150, "finalists": None, "epochs": cell.case.trial, "repair": False}
    return _searched(cell, settings, stop=True)


def netadapt(cell: Cell, step: float = 0.1, short: float = 0.5) -> nn.Module:
    """Yang et al. 2018 (arXiv:1804.03230): in each round the group whose cut by a step of latency
    costs least quality.

    For every group the smallest cut that takes the round's latency off, a short training, and the
    best by validation goes into the next round. Short trainings take at most the share `short` of
    all epochs, the last one the rest.
    """
    dense, prepared = cell.dense, cell.dense.prepared
    decisions = variables(cell)
    groups = {each.groups[0].key: each.groups[0] for each in decisions}
    technique = {each.groups[0].key: each.options.techniques[0] for each in decisions}
    widths = {key: group.size for key, group in groups.items()}

    def plan(given: dict[str, int]) -> Plan:
        """Of the dense net: latency depends on widths alone."""
        return Plan(
            {
                key: Choice(technique[key], 1 - width / groups[key].size)
                for key, width in given.items()
            }
        )

    def smallest_cut(key: str, wanted: float) -> int | None:
        """The largest width of a group with which the whole meets `wanted`, by bisection over steps
        of its width."""
        unit = (
            max(8, groups[key].size // 16)
            if groups[key].size >= 64
            else max(1, groups[key].size // 8)
        )
        options = list(range(unit, widths[key], unit))
        if not options or measured(cell, plan(widths | {key: options[0]})) > wanted:
            return None
        low, high = 0, len(options) - 1
        while low < high:
            middle = (low + high + 1) // 2
            meets = measured(cell, plan(widths | {key: options[middle]})) <= wanted
            low, high = (middle, high) if meets else (low, middle - 1)
        return options[low]

    model, ratio = copied(dense.model), 1.0
    rounds = math.ceil((1 - cell.limit) / step)
    each_epochs = short * cell.epochs / (rounds * len(groups))
    while ratio > cell.limit:
        wanted = max(cell.limit, ratio - step)
        coupling = discover(model, prepared.inputs)
        best: tuple[float, str, int, nn.Module] | None = None
        for key in groups:
            width = smallest_cut(key, wanted)
            if width is None or key not in coupling.members:
                continue
            choice = Choice(technique[key], 1 - width / widths[key])
            proposal = (
                Pruner(model, coupling, Importance(model, coupling))
                .apply(Plan({key: choice}))
                .finish()
            )
            if cell.spent.epochs + each_epochs <= short * cell.epochs:
                cell.train(proposal, each_epochs)
            quality = cell.validation(proposal)
            if best is None or quality > best[0]:
                best = quality, key, width, proposal
        if best is None:
            step /= 2
            if step < 0.005:
                raise Refused(f"no group can take a step at {ratio:.1%}")
            continue
        _, key, widths[key], model = best
        ratio = min(wanted, measured(cell, plan(widths)))
    return cell.train(model, math.floor(cell.epochs - cell.spent.epochs))


METHODS: dict[str, Method] = {
    "scratch": scratch,
    "uniform8": uniform8,
    "netadapt": netadapt,
    "random": random_search,
    "tpe": tpe,
    "ours_widths": ours_widths,
    "ours_cut": ours_cut,
    "ours4": ours4,
    "front": front,
    "ours": ours,
}
