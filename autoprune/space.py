"""Space: which techniques, ratios and criteria may be chosen for which group."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from autoprune import plugins
from autoprune.errors import StudyError, nearest
from autoprune.group import Group
from autoprune.plan import Choice, Plan

if TYPE_CHECKING:
    import optuna

__all__ = ["Options", "Space", "Variable", "fits", "parameters", "suggest", "uniform"]

NONE = "none"


@dataclass(frozen=True)
class Options:
    """What may be chosen: names of techniques and criteria, and the range of the ratio."""

    techniques: tuple[str, ...] = ("structured", "neuron", "weight", "sparse")
    ratio: tuple[float, float] = (0.0, 0.9)
    criteria: tuple[str, ...] = ("l1", "l2", "taylor")


@dataclass(frozen=True)
class Variable:
    """One decision of the search: options filtered to what fits, for one group or, shared, for several."""

    name: str
    groups: tuple[Group, ...]
    options: Options
    multiple_of: int = 1

    def choices(self, technique: str, ratio: float, criterion: str) -> dict[str, Choice]:
        """The same choice for each group, its ratio moved to where the kept width is a multiple of `multiple_of`."""
        return {group.key: Choice(technique, self.rounded(group, ratio), criterion) for group in self.groups}

    def rounded(self, group: Group, ratio: float) -> float:
        """The ratio nearest to `ratio`, and in its range, that keeps a multiple of `multiple_of` units."""
        step, (low, high) = self.multiple_of, self.options.ratio
        fewest, most = (
            math.ceil(group.size * (1 - high) / step - 1e-9),
            math.floor(group.size * (1 - low) / step + 1e-9),
        )
        if group.level == "weights" or step == 1 or group.size < 2 * step or not ratio or max(1, fewest) > most:
            return ratio
        kept = min(max(1, fewest, round(group.size * (1 - ratio) / step)), most) * step
        return max(0.0, 1 - kept / group.size)


@dataclass(frozen=True)
class Space:
    """Options by pattern on layer names; the first pattern that matches wins, `default` takes the rest.

    `share="stage"` makes one decision for all groups of a level under the same top-level block of the model.
    """

    default: Options = Options()
    layers: Mapping[str, Options] = field(default_factory=dict)
    share: Literal["stage"] | None = None

    def resolve(self, groups: Sequence[Group], multiple_of: int = 1) -> list[Variable]:
        """The search's decisions for a model's groups; widths are rounded to a multiple of `multiple_of`.

        Raises StudyError for a pattern that matches no layer, a named technique that does not fit the layers its
        pattern selects, a group that two patterns claim, or where nothing is left to decide.
        """
        known = sorted({layer for group in groups for layer in group.layers})
        for pattern in self.layers:
            if not any(_matches(pattern, layer) for layer in known):
                raise StudyError(
                    f"the pattern {pattern!r} matches no layer{nearest(pattern, known)}; layers: {', '.join(known)}",
                    key=f"space.layers.{pattern}",
                )
        variables: dict[str, Variable] = {}
        fitted: dict[str, set[str]] = {pattern: set() for pattern in self.layers}
        selected: dict[str, list[Group]] = {pattern: [] for pattern in self.layers}
        for group in groups:
            patterns, options = self._options(group)
            fitting = tuple(name for name in options.techniques if fits(name, group) is None)
            for pattern in patterns:
                fitted[pattern] |= set(fitting)
                selected[pattern].append(group)
            if group.refusal or not fitting or options.ratio[1] <= 0:
                continue
            name = self._variable(group)
            members = (*variables[name].groups, group) if name in variables else (group,)
            kept = Options(fitting, options.ratio, options.criteria)
            if name in variables and variables[name].options != kept:
                name = group.key
                members = (group,)
            variables[name] = Variable(name, members, kept, multiple_of)
        self._check_named(fitted, selected)
        if not variables:
            refused = "; ".join(f"{group.name}: {group.refusal}" for group in groups if group.refusal)
            raise StudyError(
                f"nothing is left to prune under this space{'; refused: ' + refused if refused else ''}", key="space"
            )
        return list(variables.values())

    def _options(self, group: Group) -> tuple[list[str], Options]:
        """The patterns that claim a group, and what they all want for it."""
        claims = {}
        for layer in group.layers:
            pattern = next((pattern for pattern in self.layers if _matches(pattern, layer)), None)
            if pattern is not None:
                claims[pattern] = layer
        if len({self.layers[pattern] for pattern in claims}) > 1:
            shown = " and ".join(f"{pattern!r} (through {layer})" for pattern, layer in claims.items())
            raise StudyError(
                f"the layers {', '.join(group.layers)} are coupled and must be decided together, but the patterns "
                f"{shown} want different things for them; give them the same options",
                key="space.layers",
            )
        patterns = list(claims)
        return patterns, self.layers[patterns[0]] if patterns else self.default

    def _check_named(self, fitted: Mapping[str, set[str]], selected: Mapping[str, list[Group]]) -> None:
        for pattern, names in fitted.items():
            for name in self.layers[pattern].techniques:
                if name not in names and selected[pattern]:
                    reasons = {f"{group.name}: {group.refusal or fits(name, group)}" for group in selected[pattern]}
                    raise StudyError(
                        f"technique {name!r} does not fit the layers that {pattern!r} selects "
                        f"({'; '.join(sorted(reasons))})",
                        key=f"space.layers.{pattern}.techniques",
                    )

    def _variable(self, group: Group) -> str:
        return f"{group.name.split('.')[0]}:{group.level}" if self.share == "stage" else group.key


def fits(technique: str, group: Group) -> str | None:
    """Why a technique cannot act on a group, or None."""
    plugin = plugins.load("technique", technique)()
    if plugin.level != group.level:
        return f"{technique} acts on {plugin.level}, this group is of {group.level}"
    reason: str | None = plugin.fits(group)
    return reason


def suggest(variables: Sequence[Variable], trial: optuna.trial.BaseTrial) -> Plan:
    """Ask `trial` for a plan. Every parameter is suggested always: a conditional one would leave TPE's joint space."""
    choices: dict[str, Choice] = {}
    for variable in variables:
        options = variable.options
        technique = trial.suggest_categorical(f"{variable.name}.technique", (NONE, *options.techniques))
        ratio = trial.suggest_float(f"{variable.name}.ratio", *options.ratio)
        criterion = trial.suggest_categorical(f"{variable.name}.criterion", options.criteria)
        if technique != NONE:
            choices |= variable.choices(str(technique), ratio, str(criterion))
    return Plan(choices)


def parameters(variables: Sequence[Variable], plan: Plan) -> dict[str, object]:
    """The trial parameters under which `suggest` gives `plan`, for enqueueing it."""
    found: dict[str, object] = {}
    for variable in variables:
        choice = plan.choices.get(variable.groups[0].key)
        found[f"{variable.name}.technique"] = choice.technique if choice else NONE
        low, high = variable.options.ratio
        found[f"{variable.name}.ratio"] = min(max(choice.ratio, low), high) if choice else low
        found[f"{variable.name}.criterion"] = choice.criterion if choice else variable.options.criteria[0]
    return found


def uniform(variables: Sequence[Variable], techniques: Sequence[str], ratio: float) -> Plan:
    """`ratio` (clipped to its range) everywhere with the first of `techniques` that a variable offers."""
    choices: dict[str, Choice] = {}
    for variable in variables:
        technique = next((name for name in techniques if name in variable.options.techniques), None)
        if technique is not None:
            low, high = variable.options.ratio
            choices |= variable.choices(technique, min(max(ratio, low), high), variable.options.criteria[0])
    return Plan(choices)


def _matches(pattern: str, layer: str) -> bool:
    """Whether a pattern names a layer, or a module that holds it; `*` and `?` as in file names."""
    return any(
        fnmatch.fnmatchcase(".".join(layer.split(".")[: depth + 1]), pattern) for depth in range(layer.count(".") + 1)
    )
