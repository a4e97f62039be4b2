"""Stages: groups that `share: stage` decides as one, by the resolution of their activations, or by
equal shape."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoprune.group import Group

__all__ = ["positions_of", "with_stages"]

_Key = tuple[str, int, tuple[int, ...]]


def with_stages(groups: Sequence[Group], positions: Mapping[str, int]) -> tuple[Group, ...]:
    """The groups, each with the name of its stage; `positions` are those of each layer's output
    (pixels, steps).

    Convolutions on more than one position make a stage by their number, the resolution; whatever
    else (linear, attention, recurrent layers, convolutions of pooled maps) by number and shape:
    repeated blocks are alike in both. The first layer of a group decides. Names are those of the
    modules that hold all of a stage and nothing else.
    """
    members: dict[_Key, list[Group]] = defaultdict(list)
    for group in groups:
        if group.level != "blocks":
            members[_key(group, positions)].append(group)
    names = {
        group.key: name
        for level in ("units", "weights")
        for group, name in _name_stages(level, members)
    }
    return tuple(replace(group, stage=names.get(group.key, "")) for group in groups)


def positions_of(kind: str, shape: Sequence[int], batch: int) -> int:
    """Pixels, steps or tokens of each input in an activation of this shape that a layer of this
    kind gives."""
    channels = shape[1] if kind == "conv" and len(shape) > 1 else shape[-1]
    return int(math.prod(shape) // max(1, batch * channels))


def _key(group: Group, positions: Mapping[str, int]) -> _Key:
    count = positions.get(group.layers[0], 0)
    by_resolution = group.kinds[0] == "conv" and count > 1
    return group.level, count, () if by_resolution else group.shape


def _name_stages(level: str, members: Mapping[_Key, Sequence[Group]]) -> list[tuple[Group, str]]:
    """The groups of a level, each with its stage's name."""
    mine = [stage for key, stage in members.items() if key[0] == level]
    paths = [[group.name.split(".") for group in stage] for stage in mine]
    named = []
    for stage, own in zip(mine, paths, strict=True):
        others = [path for other in paths if other is not own for path in other]
        depth = _common(own)
        name = stage[0].name
        if depth and not any(path[:depth] == own[0][:depth] for path in others):
            name = ".".join(own[0][:depth])
        elif all(path[depth : depth + 1] for path in own):
            parts = list(dict.fromkeys(path[depth] for path in own))
            if not any(
                path[:depth] == own[0][:depth] and {*path[depth : depth + 1]} & {*parts}
                for path in others
            ):
                name = ".".join([*own[0][:depth], f"{parts[0]}-{parts[-1]}"])
        named += [(group, name) for group in stage]
    return named


def _common(paths: Sequence[Sequence[str]]) -> int:
    """How many names all paths begin with."""
    depth = 0
    while all(len(path) > depth and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return depth
