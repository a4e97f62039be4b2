"""Plans from what a Python caller gives, a ratio or patterns on layer names, and what they did not
come to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import nn

from autoprune import arguments, plugins
from autoprune.errors import InputError, PlanError, StudyError
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.coupling import tensor_of
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.thresholds import Threshold
from autoprune.space import Options, Space, fits, matches, uniform, unscored_reason

__all__ = ["Request", "resolve_request"]

_RANGE = (0.0, 0.999)
_KEYS = {"technique", "ratio", "criterion", "multiple_of", "scope"}
_SCOPES = ("layer", "global")
# A share that is further from the ratio asked for is told: widths come in steps, so none is exact
_OFF = 0.1
_SHOWN = 8  # groups in one warning


@dataclass(frozen=True)
class Request:
    """A plan, the choices asked for before rounding, and the groups left uncut with the reason, by
    key."""

    plan: Plan
    asked: Mapping[str, Choice]
    left: Mapping[str, str] = field(default_factory=dict)
    told: Sequence[str] = ()  # of patterns, what their blocks cannot come to

    def tell(self, smaller: nn.Module, pruner: Pruner) -> None:
        """Warn of the groups left uncut, and of those whose share removed is far from the ratio
        asked for."""
        uncut = [f"{key} is left uncut: {reason}" for key, reason in self.left.items()]
        coupling = pruner.coupling
        got = _removed_shares(self.plan, smaller, pruner)
        lines = [*uncut, *self.told]
        lines += [
            f"{key}: asked {asked.ratio:.2f}, removed {got[key]:.2f} "
            f"({_steps(coupling.group(key), asked.technique)})"
            for key, asked in self.asked.items()
            if key in got and _differs(coupling.group(key), asked.ratio, got[key])
        ]
        if lines:
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            text = "autoprune.prune did not remove what was asked everywhere:\n  " + "\n  ".join(
                lines[:_SHOWN] + more
            )
            warnings.warn(text, stacklevel=3)


def resolve_request(
    given: Any, found: Sequence[Group], importance: Importance, criterion: str, multiple_of: int
) -> Request:
    """The plan that a ratio, a Plan or patterns ask for. Raises PlanError."""
    if isinstance(given, Plan):
        return Request(given, given.choices)
    if isinstance(given, Mapping):
        return _by_patterns(given, found, importance, criterion, multiple_of)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise PlanError(
            "plan is a ratio, the share removed, between 0 and 1, as in 0.5; or a Plan; or "
            f"{{pattern: {{technique, ratio}}}}; got {given!r:.60} ({type(given).__name__})"
        )
    if not 0 < given < 1:  # type: ignore[operator]
        raise PlanError(
            f"the ratio is the share removed, between 0 and 1, neither included; got {given!r}"
        )
    return _by_ratio(float(given), found, importance, criterion, multiple_of)


def _by_ratio(
    ratio: float, found: Sequence[Group], importance: Importance, criterion: str, multiple_of: int
) -> Request:
    units = [group for group in found if group.level == "units"]
    free = [group for group in units if not group.refusal]
    if not free:
        reasons = "; ".join(f"{group.name}: {group.refusal}" for group in units)
        raise PlanError(
            f"nothing can be cut in this model: {reasons or 'it has no layer whose units could go'}"
        )
    if unscored_reason(criterion, free[0]):
        pattern = {"*": {"technique": "weight", "ratio": ratio, "criterion": criterion}}
        raise PlanError(
            f"a ratio cuts units, and {criterion} ranks single weights; give patterns, as in "
            f"{pattern}"
        )
    techniques = plugins.of_level("units")
    left = {
        group.key: reason
        for group in free
        if (reason := _unfit(group, techniques, criterion, importance))
    }
    if len(left) == len(free):
        raise PlanError(
            "nothing can be cut: " + "; ".join(f"{key}: {reason}" for key, reason in left.items())
        )
    variables = Space(Options(techniques, _RANGE, (criterion,))).resolve(
        found, multiple_of, importance.refuses
    )
    plan = uniform(variables, techniques, ratio)
    asked = {
        group.key: Choice(techniques[0], ratio, criterion)
        for group in free
        if group.key not in left
    }
    return Request(plan, asked, left)


def _unfit(
    group: Group, techniques: Sequence[str], criterion: str, importance: Importance
) -> str | None:
    """Why none of the techniques, or not the criterion, can be used on a group, or None."""
    reasons = [fits(technique, group) for technique in techniques]
    return "; ".join(map(str, reasons)) if all(reasons) else importance.refuses(criterion, group)


def _by_patterns(
    given: Mapping[Any, Any],
    found: Sequence[Group],
    importance: Importance,
    criterion: str,
    multiple_of: int,
) -> Request:
    if not given:
        raise PlanError(
            "the plan names no layer, so nothing would be cut; give {pattern: {technique, ratio, "
            "criterion}}"
        )
    choices: dict[str, Choice] = {}
    asked: dict[str, Choice] = {}
    left: dict[str, str] = {}
    told: list[str] = []
    for pattern, wanted in given.items():
        choice = _choice(pattern, wanted, criterion)
        step = wanted.get("multiple_of", multiple_of)
        fresh = _choose_groups(pattern, choice, found, importance, step)
        wished = dict.fromkeys(fresh, choice)
        if plugins.create("technique", choice.technique).level == "blocks":
            fresh = wished = _blocks(fresh, choice, found, importance)
            gone = sum(group.ratio == 1 for group in fresh.values())
            if abs(choice.ratio - gone / len(fresh)) > _OFF or (choice.ratio and not gone):
                what = f"{len(fresh)} block" + "s" * (len(fresh) > 1)
                told.append(
                    f"{pattern}: asked {choice.ratio:.2f} of {what}, {gone} go{'es' * (gone == 1)}"
                )
        elif wanted.get("scope") == "global":
            fresh = wished = _globally(pattern, fresh, choice, found, importance)
        elif choice.ratio == 1:
            raise PlanError(f"{pattern!r}: the ratio is the share removed, in [0, 1); got 1")
        taken = set(fresh) & set(choices)
        if taken:
            raise PlanError(
                f"{pattern!r} and an earlier pattern both decide {', '.join(sorted(taken))}"
            )
        choices |= fresh
        asked |= wished
        named = (group for group in found if any(matches(pattern, layer) for layer in group.layers))
        fitting = (group for group in named if not (group.refusal or fits(choice.technique, group)))
        left |= {
            group.key: why
            for group in fitting
            if (why := importance.refuses(choice.criterion, group))
        }
    return Request(Plan(choices), asked, left, tuple(told))


def _choice(pattern: Any, wanted: Any, criterion: str) -> Choice:
    """What a pattern asks for. Raises PlanError."""
    if not isinstance(pattern, str):
        raise PlanError(f"patterns on layer names are text; got {pattern!r}")
    if (
        not isinstance(wanted, Mapping)
        or set(wanted) - _KEYS
        or not {"technique", "ratio"} <= set(wanted)
    ):
        raise PlanError(
            f"{pattern!r} needs technique and ratio, and may have criterion, multiple_of and "
            f"scope; got {wanted!r}"
        )
    ratio = wanted["ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:  # type: ignore[operator]
        raise PlanError(
            f"{pattern!r}: the ratio is the share removed, in [0, 1), of blocks [0, 1]; got "
            f"{ratio!r}"
        )
    if wanted.get("scope", "layer") not in _SCOPES:
        raise PlanError(
            f"{pattern!r}: scope is one of {', '.join(_SCOPES)}; got {wanted['scope']!r}"
        )
    try:
        arguments.whole(wanted.get("multiple_of", 1), "multiple_of")
    except InputError as error:
        raise PlanError(f"{pattern!r}: {error}") from error
    return Choice(str(wanted["technique"]), float(ratio), str(wanted.get("criterion", criterion)))


def _choose_groups(
    pattern: str, choice: Choice, found: Sequence[Group], importance: Importance, multiple_of: int
) -> dict[str, Choice]:
    """The choices for all groups that a pattern names and its technique fits. Raises PlanError."""
    options = Options((choice.technique,), _RANGE, (choice.criterion,), multiple_of)
    space = Space(Options((), (0.0, 0.0), ()), {pattern: options})
    try:
        variables = space.resolve(found, multiple_of, importance.refuses)
    except StudyError as error:
        place = "" if repr(pattern) in error.message else f"{pattern!r}: "
        raise PlanError(f"{place}{error.message}") from error
    return {
        key: chosen
        for variable in variables
        for key, chosen in variable.choices(
            choice.technique, choice.ratio, choice.criterion
        ).items()
    }


def _globally(
    pattern: str,
    chosen: Mapping[str, Choice],
    choice: Choice,
    found: Sequence[Group],
    importance: Importance,
) -> dict[str, Choice]:
    """The ratio of each layer where one threshold over the weights of all of them removes what the
    choice says."""
    plugin = plugins.create("technique", choice.technique)
    if plugin.level != "weights" or hasattr(plugin, "steps"):
        raise PlanError(
            f"{pattern!r}: scope: global is for weight and sparse, which rank single weights"
        )
    if choice.ratio == 1:
        raise PlanError(f"{pattern!r}: the ratio is the share removed, in [0, 1); got 1")
    scores = {
        group.key: importance.weights(group, choice.criterion)
        for group in found
        if group.key in chosen
    }
    return {
        key: replace(choice, ratio=ratio)
        for key, ratio in Threshold(scores).ratios(choice.ratio).items()
    }


def _blocks(
    keys: Collection[str], choice: Choice, found: Sequence[Group], importance: Importance
) -> dict[str, Choice]:
    """Of all blocks that a pattern names the least important go, as many as the ratio says."""
    groups = [group for group in found if group.key in keys]
    scores = [float(importance.blocks(group, choice.criterion)) for group in groups]
    gone = sorted(range(len(groups)), key=scores.__getitem__)[
        : math.floor(choice.ratio * len(groups) + 0.5)
    ]
    return {
        group.key: replace(choice, ratio=float(place in gone)) for place, group in enumerate(groups)
    }


def _removed_shares(plan: Plan, smaller: nn.Module, pruner: Pruner) -> dict[str, float]:
    """The share of each group that is gone, by key; of a weights group what is zero. Those of
    removed blocks lack."""
    resolved, coupling = pruner.resolve(plan), pruner.coupling
    keep, said = resolved.kept, resolved.plan.choices
    alive, weights = coupling.kept_mask(keep), dict(smaller.named_parameters())
    shares: dict[str, float] = {}
    for group in coupling.groups:
        if group.key in plan.choices and group.key not in said:
            continue
        if group.key in coupling.members:
            shares[group.key] = 1 - float(alive[coupling.members[group.key]].double().mean())
        elif group.level == "blocks":
            shares[group.key] = (
                1 - float(keep[group.key].double().mean()) if group.key in keep else 0.0
            )
        elif (weight := weights.get(tensor_of(pruner.model, group.name))) is not None:
            shares[group.key] = float((weight == 0).double().mean())
    return shares


def _differs(group: Group, asked: float, got: float) -> bool:
    """Whether a share is worth a word: by a whole unit, not as all but one of each cell went, or
    zeros were before."""
    most, off = 1 - group.cells / group.size, max(_OFF, 1 / group.size)
    short = min(asked, most) - got > off or (asked > 0 and got == 0)
    return short or (got - asked > off and group.level != "weights")


def _steps(group: Group, technique: str) -> str:
    """In which steps a group can lose."""
    plugin = plugins.create("technique", technique)
    if hasattr(plugin, "steps"):
        return f"{technique} removes in steps of 1/{plugin.steps(group.shape)}"
    what = f"of {group.size} {group.level}"
    return what if group.cells == 1 else f"{what} in {group.cells} cells that lose the same count"
