"""What the code of a forward pass demands of a cut, written down as it runs and settled once every
union is known.

Whether a view keeps its meaning after a cut depends on which channels turn out to be one unit:
`view(B, N, heads, width)` is a matter of heads where the heads become units, and of widths where
not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoprune.pruning.tracing.channel_ids import Balance, Ids, Use, compact, varying, vector_along

__all__ = ["Constraints"]


@dataclass
class Constraints:
    """Constraints on the ids of one forward pass, in the order in which they came up."""

    ids: Ids
    # Whether it holds; True: make it hold
    _unions: list[Callable[[bool], bool]] = field(default_factory=list)
    _checks: list[Callable[[], None]] = field(default_factory=list)

    def settle(self) -> None:
        """Unite, balance, tie or freeze until every demand holds; what holds by other unions costs
        nothing."""
        waiting = list(self._unions)
        while waiting := [union for union in waiting if not union(False)]:
            waiting.pop(0)(True)
        for check in self._checks:
            check()

    def grid(self, table: Tensor, dims: Sequence[int], why: str) -> None:
        """A dimension with channels that is laid out in several, the `dims` of `table`, must stay a
        grid when units go.

        It does where the units lie along one of them. Otherwise the last is taken: what lies along
        the others unites.
        """
        table = compact(table)

        def union(force: bool) -> bool:
            roots = self.ids.roots(table)
            axes = [axis for axis in varying(roots) if axis in dims]
            if len(axes) > 1 and force:
                self.ids.unite_along(roots, axes[:-1], why)
            return len(axes) <= 1

        self._unions.append(union)

    def columns(self, table: Tensor, dim: int, why: str, use: Callable[[Tensor], None]) -> None:
        """Something acts on whole `dim`: where its channels are several units, each column is one;
        `use` gets them."""
        table = compact(table)
        dim %= table.dim()

        def rest() -> list[int]:
            axes = varying(self.ids.roots(table))
            return [axis for axis in axes if axis != dim] if dim in axes else []

        def union(force: bool) -> bool:
            others = rest()
            if others and force:
                self.ids.unite_along(self.ids.roots(table), others, why)
            return not others

        def check() -> None:
            roots = self.ids.roots(table)
            vector = vector_along(roots, dim)
            if vector is not None and table.shape[dim] > 1 and dim in varying(roots):
                use(vector)

        self._unions.append(union)
        self._checks.append(check)

    def never(self, table: Tensor, why: str) -> None:
        """None of it may be cut; said after what came up before."""
        table = compact(table)
        self._checks.append(lambda: self.ids.freeze(table, why))

    def one_unit(self, table: Tensor, dim: int, why: str) -> None:
        """What lies along `dim` is one unit wherever it is, or none of it may be cut."""
        table = compact(table)

        def check() -> None:
            if dim % table.dim() in varying(self.ids.roots(table)):
                self.ids.freeze(table, why)

        self._checks.append(check)

    def part(self, table: Tensor, dim: int, blocks: int, rebindable: bool, why: str) -> None:
        """A part of `dim` is taken. One of `blocks` even ones keeps its place where every block
        loses the same count.

        `blocks` = 0: not one of several even ones; then the bounds must be `rebindable`, or none of
        it may be cut.
        """
        table = compact(table)
        dim %= table.dim()

        def check() -> None:
            roots = self.ids.roots(table)
            if dim not in varying(roots):
                return
            vector = vector_along(roots, dim)
            if vector is None or not (blocks or rebindable):
                self.ids.freeze(table, f"{why} with bounds written into the code")
            elif blocks:
                self.ids.balances.append(Balance(vector, blocks, why, soft=rebindable))

        self._checks.append(check)

    def tie(self, name: str, shape: torch.Size, places: Tensor, table: Tensor, why: str) -> None:
        """A parameter of this shape lies, at the flat `places`, over an activation with the ids of
        `table`.

        A dimension of it whose entries each meet one unit is cut with them. One that does not is
        not cut: it must not lie along an axis of the activation that is.
        """
        axes = {*varying(table), *varying(places)}
        for axis in range(table.dim()):
            if axis not in axes:
                table, places = table.narrow(axis, 0, 1), places.narrow(axis, 0, 1)
        table, places = table.clone(), places.clone()

        def check() -> None:
            roots = self.ids.roots(table)
            cut = varying(roots)
            rest = places
            for dim in reversed(range(len(shape))):
                index, rest = rest % shape[dim], rest // shape[dim]
                if shape[dim] == 1 or not set(varying(index)) & set(cut):
                    continue
                vector = torch.full((shape[dim],), -1, dtype=torch.int64)
                vector[index.flatten()] = roots.flatten()
                if not bool((vector[index] == roots).all()):
                    self.ids.freeze(table, why)
                elif bool((vector > 0).any()):
                    self.ids.uses.append(Use(name, dim, vector, "carry"))

        self._checks.append(check)
