"""Every kind of data set and loader that torch.utils.data documents: the same samples, in batches, wherever they go."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from autoprune.errors import ModelError
from autoprune.fingerprint import fingerprint
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.training import data as training_data
from autoprune.training.batches import sample
from autoprune.training.judging import calibration
from autoprune.training.loop import evaluate, train

pytestmark = pytest.mark.promise("loaders")
COUNT, BATCH = 22, 4


class Rows(Dataset[Any]):
    """A map-style data set of (x, y), or of what `form` makes of them; indexed by a list it gives a whole batch."""

    def __init__(
        self, first: int = 0, last: int = COUNT, form: Callable[[Tensor, Tensor], Any] | None = None
    ) -> None:
        x = torch.arange(first, last).float()
        self.x, self.y, self.form = (
            torch.stack([x, x**2 / 100, -x], dim=1),
            (x % 3).long(),
            form or (lambda x, y: (x, y)),
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        return self.form(self.x[index], self.y[index])


class Several(Rows):
    """Gives several samples at once, as loaders ask for where it is there."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class Batched(Rows):
    """Is indexed by lists of numbers alone."""

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, list)
        return super().__getitem__(index)


class Named(Dataset[Any]):
    """Is indexed by names."""

    def __init__(self) -> None:
        self.rows = {f"row {number}": Rows()[number] for number in range(COUNT)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Any:
        return self.rows[name]


class Stream(IterableDataset[Any]):
    """Can only be gone through; in `batches` whole ones."""

    def __init__(self, first: int = 0, last: int = COUNT, batches: bool = False) -> None:
        self.rows, self.batches = Rows(first, last), batches

    def __iter__(self) -> Iterator[Any]:
        whole = DataLoader(self.rows, BATCH)
        return iter(
            whole if self.batches else [self.rows[index] for index in range(len(self.rows))]
        )


class Own:
    """A loader of the user's own: whole batches, without a length or any state that is used up."""

    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(Rows(), BATCH)


class Stateful(Own):
    """One that has a length, and remembers where it is."""

    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return -(-COUNT // BATCH)

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}


def labelled(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"x": x, "labels": y}


def collated(samples: list[Any]) -> Any:
    x, y = default_collate(samples)
    return UserDict(x=x, labels=y)


EVERY = range(COUNT)
KINDS: dict[str, tuple[Callable[[], Any], Any]] = {  # and the samples of one epoch, None where they are drawn
    "a data set": (Rows, EVERY),
    "a data set of dictionaries": (lambda: Rows(form=labelled), EVERY),
    "several at once": (Several, EVERY),
    "a list": (lambda: [Rows()[index] for index in EVERY], EVERY),
    "TensorDataset": (lambda: TensorDataset(Rows().x, Rows().y), EVERY),
    "Subset": (lambda: Subset(Rows(), range(5, 15)), range(5, 15)),
    "Subset of TensorDataset": (lambda: Subset(TensorDataset(Rows().x, Rows().y), [3, 1, 2]), [1, 2, 3]),
    "random_split": (lambda: random_split(Rows(), [COUNT, 0])[0], EVERY),
    "ConcatDataset": (lambda: ConcatDataset([Rows(0, 9), Rows(9, COUNT)]), EVERY),
    "StackDataset": (lambda: StackDataset(Rows().x, Rows().y), EVERY),
    "StackDataset of names": (lambda: StackDataset(x=Rows().x, labels=Rows().y), EVERY),
    "IterableDataset": (Stream, EVERY),
    "ChainDataset": (lambda: ChainDataset([Stream(0, 9), Stream(9, COUNT)]), EVERY),
    "a loader": (lambda: DataLoader(Rows(), BATCH), EVERY),
    "shuffle": (lambda: DataLoader(Rows(), BATCH, shuffle=True), EVERY),
    "drop_last": (lambda: DataLoader(Rows(), BATCH, drop_last=True), range(COUNT // BATCH * BATCH)),
    "a batch larger than all": (lambda: DataLoader(Rows(), 100), EVERY),
    "a loader of a stream": (lambda: DataLoader(Stream(), BATCH), EVERY),
    "a worker": (lambda: DataLoader(Rows(), BATCH, num_workers=1), EVERY),
    "SubsetRandomSampler": (lambda: DataLoader(Rows(), BATCH, sampler=SubsetRandomSampler(range(9))), range(9)),
    "WeightedRandomSampler": (
        lambda: DataLoader(Rows(), BATCH, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)), None,
    ),
    "RandomSampler": (lambda: DataLoader(Rows(), BATCH, sampler=RandomSampler(Rows(), True, 10)), None),
    "DistributedSampler": (lambda: DataLoader(Rows(), BATCH, sampler=DistributedSampler(Rows(), 1, 0)), EVERY),
    "batch_sampler": (
        lambda: DataLoader(Rows(), batch_sampler=BatchSampler(SequentialSampler(Rows()), BATCH, False)), EVERY,
    ),
    "a list of batches of indices": (lambda: DataLoader(Rows(), batch_sampler=[[0, 1], [2, 3, 4]]), range(5)),
    "sampler=BatchSampler": (
        lambda: DataLoader(Rows(), sampler=BatchSampler(SequentialSampler(Rows()), BATCH, False), batch_size=None),
        EVERY,
    ),
    "indexed by lists alone": (
        lambda: DataLoader(Batched(), sampler=BatchSampler(SequentialSampler(Rows()), BATCH, False), batch_size=None),
        EVERY,
    ),
    "indexed by names": (lambda: DataLoader(Named(), BATCH, sampler=[f"row {index}" for index in EVERY]), EVERY),
    "batch_size=None": (lambda: DataLoader(Stream(batches=True), batch_size=None), EVERY),
    "collate_fn": (lambda: DataLoader(Rows(), BATCH, collate_fn=collated), EVERY),
    "a loader of dictionaries": (lambda: DataLoader(Rows(form=labelled), BATCH), EVERY),
    "an iterable of batches": (Own, EVERY),
    "a stateful loader": (Stateful, EVERY),
}  # fmt: skip
every_kind = pytest.mark.parametrize(("make", "numbers"), KINDS.values(), ids=KINDS)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def task_of(make: Callable[[], Any], workers: int = 0) -> Task:
    data = training_data.check_data({"train": make(), "validation": make()})
    recipe = Recipe(epochs=1, batch_size=BATCH, workers=workers, device="cpu")
    return Task(
        Net,
        data,
        functional.cross_entropy,
        Metric("rows", lambda outputs, targets: float(len(targets))),
        recipe,
    )


def rows_of(batches: Iterator[Any]) -> tuple[list[Tensor], list[int]]:
    """The inputs of each batch, and the numbers of all samples."""
    found, numbers = [], list[int]()
    for args, kwargs, target in batches:
        x = args[0] if args else kwargs["x"]
        assert x.shape == (len(target), 3) and target.shape == (len(x),)
        assert torch.equal(target, (x[:, 0] % 3).long())  # each with its own target
        found.append(x)
        numbers += [int(each) for each in x[:, 0]]
    return found, numbers


@every_kind
def test_training_and_judging_see_every_sample_once_in_batches(
    make: Callable[[], Any], numbers: Any
) -> None:
    task = task_of(make)
    batches, seen = rows_of(task.batches("train", seed=1))
    assert task.steps("train") == len(batches)
    assert all(len(batch) <= max(BATCH, len(batches[0])) for batch in batches)
    if numbers is not None:
        assert sorted(seen) == sorted(numbers)
    again, _ = rows_of(task.batches("train", seed=1))
    assert len(again) == len(batches)
    model = task.build()
    assert evaluate(model, task, "validation", "cpu").metric == len(seen)
    steps = list[float]()
    train(model, task, task.training, seed=0, report=steps.append)
    assert len(steps) == len(batches) and steps[-1] == 1.0


@every_kind
def test_a_part_to_judge_on_and_inputs_to_calibrate_by_are_samples_of_it(
    make: Callable[[], Any], numbers: Any
) -> None:
    task = task_of(make)
    known = set(EVERY if numbers is None else numbers)
    part = replace(task, data=replace(task.data, validation=sample(task.data.validation, 6)))
    batches, seen = rows_of(part.batches("validation"))
    largest = max(BATCH, *(len(batch) for batch in batches), 0)
    assert min(6, len(known)) <= len(seen) < 6 + largest and set(seen) <= known
    _, again = rows_of(part.batches("validation"))
    assert len(again) == len(seen)
    for count in (1, 2, 6):
        inputs = task.calibration(count)
        (x,) = inputs.tensors()
        assert x.shape == (count, 3) and {int(each) for each in x[:, 0]} <= known
    assert all(each.tensors()[0].shape[1:] == (3,) for each in calibration(task))
    assert fingerprint(make()) == fingerprint(make()) == fingerprint(task.data.train)


@pytest.mark.parametrize(
    "make",
    [
        make
        for name, (make, _) in KINDS.items()
        if name in ("a data set", "TensorDataset", "IterableDataset")
    ],
)
def test_workers_of_the_recipe_give_the_same_samples(make: Callable[[], Any]) -> None:
    _, seen = rows_of(task_of(make, workers=1).batches("train", seed=1))
    assert sorted(seen) == list(EVERY)


def test_what_is_read_in_another_order_has_another_fingerprint() -> None:
    first = DataLoader(Batched(), sampler=[[0, 1], [2, 3]], batch_size=None)
    second = DataLoader(Batched(), sampler=[[4, 5], [2, 3]], batch_size=None)
    assert fingerprint(first) != fingerprint(second)


def test_batches_of_other_lengths_do_not_stop_calibration() -> None:
    lengths = (3, 5, 4, 3)
    batches = [
        (torch.full((1, length), float(length)), torch.zeros(1).long()) for length in lengths
    ]
    task = replace(task_of(Rows), data=Data(_Batches(batches), _Batches(batches)))
    (x,) = task.calibration(2).tensors()
    assert x.tolist() == [[3.0] * 3] * 2


class _Batches:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _Stream:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_stream_without_an_end_is_refused(split: Any) -> None:
    stream = _Stream((torch.zeros(1, 3), torch.zeros(1).long()))
    task = replace(task_of(Rows), data=Data(stream, stream))
    with pytest.raises(ModelError, match=f"the {split} data goes on after 100,000 batches"):
        task.steps(split)
    with pytest.raises(ModelError, match=r"give it a length \(`__len__`\), or cut it"):
        for _ in task.batches(split):
            pass
