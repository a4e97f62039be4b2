"""Fingerprint of a data set: the same for the same data, without reading all of it."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import IterableDataset

__all__ = ["fingerprint"]

# Of each split: the whole of it would have to be read at every start
_BATCHES = 2


def fingerprint(data: Any) -> bytes:
    """Length and a few samples of a data set; of a loader, of its data set where numbers index it,
    else a few batches.

    Random augmentation draws from global random states, which are seeded meanwhile: the same in
    every process.
    """
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            numpy.random.seed(0)
            return _samples(data)
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _samples(data: Any) -> bytes:
    loader, data = data, getattr(data, "dataset", data)
    try:
        return _digest_samples(data)
    except Exception:
        # a data set that its sampler indexes by lists, names, ...; what is broken raises again
        if loader is data:
            raise
    state = hashlib.sha256()
    for batch in itertools.islice(iter(loader), _BATCHES):
        for leaf in tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)[0]:
            state.update(_content(leaf))
    return state.digest()


def _digest_samples(data: Any) -> bytes:
    if isinstance(data, IterableDataset) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        return type(data).__qualname__.encode()
    state = hashlib.sha256(str(len(data)).encode())
    for index in (
        sorted({int(share * (len(data) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
        if len(data)
        else []
    ):
        for leaf in tree_flatten(data[index])[0]:
            state.update(_content(leaf))
    return state.digest()


def _content(leaf: Any) -> bytes:
    """The bytes of a tensor, an array or an image; else what it shows, unless that is its place in
    memory."""
    if isinstance(leaf, Tensor):
        return (
            leaf.detach().cpu().contiguous().numpy().tobytes()
            if leaf.dtype != torch.bfloat16
            else repr(leaf).encode()
        )
    if callable(raw := getattr(leaf, "tobytes", None)):
        return bytes(raw())
    shown = repr(leaf)
    return type(leaf).__qualname__.encode() if " object at 0x" in shown else shown.encode()
