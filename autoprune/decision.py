"""Decision: what is done about one variable of a space; and Decisions about all of them, which come
to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autoprune.plan import Choice, Plan
from autoprune.space import NONE, Variable

__all__ = ["Decision", "Decisions"]


@dataclass(frozen=True)
class Decision:
    """A technique, a ratio and a criterion for the groups of a `variable`.

    The technique `NONE` leaves them as they are; ratio and criterion then wait for one to be
    chosen.
    """

    variable: Variable
    technique: str
    ratio: float
    criterion: str

    @property
    def acts(self) -> bool:
        """Whether there is a technique."""
        return self.technique != NONE

    @property
    def removed(self) -> float:
        """The share that goes: 0 without a technique, of a block 0 or 1."""
        ratio = self.ratio if self.acts else 0.0
        variable = self.variable
        return variable.round_ratio(variable.groups[0], ratio) if variable.whole else ratio

    @property
    def choices(self) -> dict[str, Choice]:
        """The choice for each group, by its key."""
        if not self.acts:
            return {}
        return self.variable.choices(self.technique, self.ratio, self.criterion)

    def at(self, ratio: float, technique: str | None = None) -> Decision:
        """The same at another ratio, moved into the variable's range; by another technique where
        one is given."""
        low, high = self.variable.options.ratio
        return replace(
            self, ratio=min(max(ratio, low), high), technique=technique or self.technique
        )


class Decisions(Mapping[str, Decision]):
    """One decision about every variable of a space, by its name."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        """In the order of the variables."""
        self._by_name = {decision.variable.name: decision for decision in decisions}

    @classmethod
    def of_plan(cls, variables: Sequence[Variable], plan: Plan) -> Decisions:
        """Those that come to `plan`; what it does not name is left as it is."""
        decisions = []
        for variable in variables:
            untouched = Decision(
                variable, NONE, variable.options.ratio[0], variable.options.criteria[0]
            )
            choice = plan.choices.get(variable.groups[0].key)
            decision = replace(untouched, criterion=choice.criterion) if choice else untouched
            decisions.append(decision.at(choice.ratio, choice.technique) if choice else decision)
        return cls(decisions)

    def __getitem__(self, name: str) -> Decision:
        """The decision about a variable."""
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the variables."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """How many variables there are."""
        return len(self._by_name)

    def evolve(self, *decisions: Decision) -> Decisions:
        """A copy with some decisions replaced."""
        changed = {decision.variable.name: decision for decision in decisions}
        return Decisions([*{**self._by_name, **changed}.values()])

    @cached_property
    def plan(self) -> Plan:
        """The plan that they come to."""
        choices: dict[str, Choice] = {}
        for decision in self.values():
            choices |= decision.choices
        return Plan(choices)
