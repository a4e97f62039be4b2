"""Space: which techniques, ratios and criteria may be chosen for which group."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from autoprune import plugins
from autoprune.errors import InputError, StudyError, nearest
from autoprune.group import Group
from autoprune.plan import Choice, Plan

__all__ = [
    "NONE",
    "Options",
    "Space",
    "Variable",
    "fits",
    "highest_ratio",
    "matches",
    "uniform",
    "unit_techniques",
    "unscored_reason",
]

NONE = "none"  # the technique of what is left as it is
# Criterion, group -> why it cannot score the group
Refuses = Callable[[str, Group], str | None]
_KINDS: dict[plugins.Kind, str] = {"technique": "techniques", "criterion": "criteria"}


@dataclass(frozen=True)
class Options:
    """What may be chosen: names of techniques and criteria, and the range of the ratio.

    Widths are rounded to a multiple of `multiple_of`; None leaves that to the target.
    """

    techniques: tuple[str, ...] = ("structured", "neuron", "heads", "depth", "weight", "sparse")
    ratio: tuple[float, float] = (0.0, 0.9)
    criteria: tuple[str, ...] = ("l1", "l2", "taylor")
    multiple_of: int | None = None


@dataclass(frozen=True)
class Variable:
    """One decision of the search: options filtered to what fits, for one group or, shared, for
    several.

    A block goes at a ratio of 0.5 and more, and stays below.
    """

    name: str
    groups: tuple[Group, ...]
    options: Options
    multiple_of: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is all or nothing: a block."""
        return self.groups[0].level == "blocks"

    @property
    def step(self) -> int:
        """What the widths of its first group are a multiple of."""
        return _step(self.groups[0], self.multiple_of)

    def choices(self, technique: str, ratio: float, criterion: str) -> dict[str, Choice]:
        """The same choice for each group, its ratio moved to one that the group and the technique
        can come to.

        Of criteria that rank alike for the technique, the first one stands for all: what is one net
        is one plan.
        """
        leading = self._leading(technique, criterion)
        return {
            group.key: Choice(technique, self._reachable_ratio(technique, group, ratio), leading)
            for group in self.groups
        }

    def _leading(self, technique: str, criterion: str) -> str:
        order = _order(criterion)
        if order is None or not getattr(
            plugins.create("technique", technique), "elementwise", False
        ):
            return criterion
        return next((name for name in self.options.criteria if _order(name) == order), criterion)

    def _reachable_ratio(self, technique: str, group: Group, ratio: float) -> float:
        """The nearest share in range that a technique of few steps can remove; of any other,
        `round_ratio`."""
        plugin, (low, high) = plugins.create("technique", technique), self.options.ratio
        steps = plugin.steps(group.shape) if hasattr(plugin, "steps") else 0
        fewest, most = (
            math.ceil(low * steps - 1e-9),
            min(math.floor(high * steps + 1e-9), steps - 1),
        )
        if not steps or fewest > most:
            return self.round_ratio(group, ratio)
        return min(max(fewest, round(ratio * steps)), most) / steps

    def round_ratio(self, group: Group, ratio: float) -> float:
        """The nearest ratio, in its range, that keeps a multiple of `multiple_of` units; of a block
        0 or 1."""
        if self.whole:
            return float(ratio >= 0.5)
        step, (low, high) = _step(group, self.multiple_of), self.options.ratio
        fewest, most = (
            math.ceil(group.size * (1 - high) / step - 1e-9),
            math.floor(group.size * (1 - low) / step + 1e-9),
        )
        if step == 1 or not ratio or max(1, fewest) > most:
            return ratio
        kept = min(max(1, fewest, round(group.size * (1 - ratio) / step)), most) * step
        return max(0.0, 1 - kept / group.size)


def _order(criterion: str) -> str | None:
    """The order in which a criterion puts the weights of a layer, where others put them so too."""
    order: str | None = getattr(plugins.create("criterion", criterion), "order", None)
    return order


def _step(group: Group, multiple_of: int) -> int:
    """What widths of a group are a multiple of: 1 of weights and heads, which are no widths, and of
    few units."""
    counted = group.level != "units" or "attention" in group.kinds
    return 1 if counted or group.size < 2 * multiple_of else multiple_of


@dataclass(frozen=True)
class Space:
    """Options by pattern on layer names; the first pattern that matches wins, `default` takes the
    rest.

    `share="stage"` makes one decision for all groups of a level and stage (`Group.stage`) that have
    the same options; a number for those of which the names begin with the same so many parts.
    Blocks are never shared: each goes or stays, whatever the range of ratios.
    """

    default: Options = Options()
    layers: Mapping[str, Options] = field(default_factory=dict)
    share: Literal["stage"] | int | None = None

    def resolve(
        self, groups: Sequence[Group], multiple_of: int = 1, refuses: Refuses | None = None
    ) -> list[Variable]:
        """The search's decisions for a model's groups; widths are rounded to `multiple_of`, or a
        pattern's own.

        `refuses(criterion, group)` says why a criterion cannot score a group; without it only
        levels are looked at. Raises StudyError for a pattern that matches no layer, a technique or
        criterion that is not to be had, a named one that does not fit the layers its pattern
        selects, a group that two patterns claim, or where nothing is left to decide.
        """
        refuses = refuses or unscored_reason
        self._check_patterns(groups)
        self._check_plugins()
        variables: dict[str, Variable] = {}
        # What is shared, and how -> variable
        names: dict[tuple[str, Options], str] = {}
        selected: dict[str, list[tuple[Group, Options]]] = {pattern: [] for pattern in self.layers}
        for group in groups:
            patterns, options = self._options(group)
            fitting = _fitting(options, group, refuses)
            for pattern in patterns:
                selected[pattern].append((group, fitting))
            if group.refusal or not fitting.techniques or options.ratio[1] <= 0:
                continue
            if group.level == "blocks":  # nothing in it is ranked
                fitting = replace(fitting, ratio=(0.0, 1.0), criteria=fitting.criteria[:1])
            shared = self._decision_name(group)
            free = (
                variable
                for variable in (shared, group.key, f"{group.key}:{len(names)}")
                if variable not in variables
            )
            name = names.setdefault((shared, fitting), next(free))
            members = (*variables[name].groups, group) if name in variables else (group,)
            variables[name] = Variable(name, members, fitting, options.multiple_of or multiple_of)
        self._check_named(selected, refuses)
        if not variables:
            refused = "; ".join(
                f"{group.name}: {group.refusal}" for group in groups if group.refusal
            )
            raise StudyError(
                "nothing is left to prune under this "
                f"space{'; refused: ' + refused if refused else ''}",
                key="space",
            )
        return list(variables.values())

    def _check_patterns(self, groups: Sequence[Group]) -> None:
        known = sorted({layer for group in groups for layer in group.layers})
        for pattern in self.layers:
            if not any(matches(pattern, layer) for layer in known):
                raise StudyError(
                    f"the pattern {pattern!r} matches no layer{nearest(pattern, known)}; layers: "
                    f"{', '.join(known)}",
                    key=f"space.layers.{pattern}",
                )

    def _check_plugins(self) -> None:
        sections = {"space.default": self.default} | {
            f"space.layers.{key}": options for key, options in self.layers.items()
        }
        for section, options in sections.items():
            for kind, key in _KINDS.items():
                for name in getattr(options, key):
                    try:
                        plugins.create(kind, name)
                    except InputError as error:
                        raise StudyError(str(error), key=f"{section}.{key}") from error

    def _options(self, group: Group) -> tuple[list[str], Options]:
        """The patterns that claim a group, and what they all want for it."""
        claims = {}
        for layer in group.layers:
            pattern = next((pattern for pattern in self.layers if matches(pattern, layer)), None)
            if pattern is not None:
                claims[pattern] = layer
        if len({self.layers[pattern] for pattern in claims}) > 1:
            shown = " and ".join(
                f"{pattern!r} (through {layer})" for pattern, layer in claims.items()
            )
            raise StudyError(
                f"the layers {', '.join(group.layers)} are coupled and must be decided together, "
                "but the patterns "
                f"{shown} want different things for them; give them the same options",
                key="space.layers",
            )
        return list(claims), self.layers[next(iter(claims))] if claims else self.default

    def _check_named(
        self, selected: Mapping[str, list[tuple[Group, Options]]], refuses: Refuses
    ) -> None:
        """What a pattern names, and does not only take over from the default, must be of use
        somewhere under it."""
        for pattern, members in selected.items():
            if not members:  # an earlier pattern took all of its layers
                continue
            given = self.layers[pattern]
            named = given.techniques if given.techniques != self.default.techniques else ()
            for name in named:
                level = plugins.create("technique", name).level
                if level == "blocks" and not any(group.level == level for group, _ in members):
                    raise StudyError(
                        f"{name} acts on blocks, and there is none that can go in what "
                        f"{pattern!r} selects",
                        key=f"space.layers.{pattern}.techniques",
                    )
                if not any(name in fitting.techniques for _, fitting in members):
                    why = {
                        group: fits(name, group) or _no_criterion(given, group, refuses)
                        for group, _ in members
                    }
                    raise _misfit("technique", name, pattern, why)
            named = (
                given.criteria
                if given.criteria != self.default.criteria and given.techniques
                else ()
            )
            for name in named:
                if not any(name in fitting.criteria for _, fitting in members):
                    why = {
                        group: refuses(name, group) or "no technique given fits it"
                        for group, _ in members
                    }
                    raise _misfit("criterion", name, pattern, why)

    def _decision_name(self, group: Group) -> str:
        """The name of the decision that a group is part of, if its options are the same."""
        if self.share is None or group.level == "blocks":
            return group.key
        if self.share == "stage":
            return f"{group.stage or group.name}:{group.level}"
        return f"{'.'.join(group.name.split('.')[: self.share])}:{group.level}"


def _fitting(options: Options, group: Group, refuses: Refuses) -> Options:
    """What fits a group of what may be chosen; a technique needs a criterion to rank by, and a
    criterion its use."""
    techniques = tuple(name for name in options.techniques if fits(name, group) is None)
    criteria = (
        tuple(name for name in options.criteria if refuses(name, group) is None)
        if techniques
        else ()
    )
    return replace(options, techniques=techniques if criteria else (), criteria=criteria)


def _no_criterion(options: Options, group: Group, refuses: Refuses) -> str:
    return "nothing to rank it by: " + "; ".join(
        str(refuses(name, group)) for name in options.criteria
    )


def _misfit(kind: plugins.Kind, name: str, pattern: str, why: Mapping[Group, str]) -> StudyError:
    reasons = "; ".join(
        sorted({f"{group.name}: {group.refusal or reason}" for group, reason in why.items()})
    )
    key = f"space.layers.{pattern}.{_KINDS[kind]}"
    return StudyError(
        f"{kind} {name!r} does not fit the layers that {pattern!r} selects ({reasons})", key=key
    )


def unscored_reason(criterion: str, group: Group) -> str | None:
    """Why the level of a group is none that a criterion scores, or None."""
    scores = plugins.create("criterion", criterion).scores
    other = {"weights": "weights", "filters": "units", "scales": "units"}.get(scores)
    return (
        f"{criterion} is for {other}, this group is of {group.level}"
        if other not in (None, group.level)
        else None
    )


def fits(technique: str, group: Group) -> str | None:
    """Why a technique cannot act on a group, or None."""
    plugin = plugins.create("technique", technique)
    if plugin.level != group.level:
        return f"{technique} acts on {plugin.level}, this group is of {group.level}"
    reason: str | None = plugin.fits(group)
    return reason


def unit_techniques(variables: Sequence[Variable]) -> tuple[str, ...]:
    """Every technique that is offered for units, a user's own among them."""
    offered = (
        variable.options.techniques for variable in variables if variable.groups[0].level == "units"
    )
    return tuple(dict.fromkeys(name for names in offered for name in names))


def uniform(variables: Sequence[Variable], techniques: Sequence[str], ratio: float) -> Plan:
    """`ratio` (clipped to its range) everywhere with the first of `techniques` that a variable
    offers."""
    choices: dict[str, Choice] = {}
    for variable in variables:
        technique = next((name for name in techniques if name in variable.options.techniques), None)
        if technique is not None:
            low, high = variable.options.ratio
            choices |= variable.choices(
                technique, min(max(ratio, low), high), variable.options.criteria[0]
            )
    return Plan(choices)


def highest_ratio(variables: Sequence[Variable], techniques: Sequence[str]) -> float:
    """The highest that a variable with one of `techniques` may be removed; 0 where none has one."""
    offering = (
        variable for variable in variables if set(techniques) & set(variable.options.techniques)
    )
    return max((variable.options.ratio[1] for variable in offering), default=0.0)


def matches(pattern: str, layer: str) -> bool:
    """Whether a pattern names a layer, or a module that holds it; `*` and `?` as in file names."""
    return any(
        fnmatch.fnmatchcase(name, pattern) for name in accumulate(layer.split("."), "{}.{}".format)
    )
