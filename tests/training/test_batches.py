"""A part of a data set: the same each time, no larger than asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autoprune.training.batches import sample

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(50))


def _batches(count: int) -> Callable[[int], DataLoader[Any]]:
    return lambda size: DataLoader(TensorDataset(torch.arange(count)), size)


def test_a_sample_is_the_same_each_time_and_no_larger_than_asked() -> None:
    data = TensorDataset(torch.arange(100))
    few = sample(data, 10)
    assert len(few) == 10 and few.tensors[0].tolist() == sample(data, 10).tensors[0].tolist()
    assert len(set(few.tensors[0].tolist())) == 10 and few.tensors[0].max() > 50
    assert sample(data, 100) is data
    assert [int(each) for each in sample(list(range(50)), 5)] == [
        int(each) for each in sample(list(range(50)), 5)
    ]
    assert sum(len(batch[0]) for batch in sample(_batches(100)(8), 20)) == 24
    stream = sample(Stream(), 7)
    assert isinstance(stream, IterableDataset) and list(stream) == list(range(7)) == list(stream)
