"""Task: what is pruned and how it is judged: model factory, data, loss, metric, batch adapter,
training recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from autoprune import faults
from autoprune.errors import CodeError, ModelError
from autoprune.fingerprint import fingerprint

__all__ = ["Batch", "Data", "Inputs", "Metric", "Recipe", "Task", "default_adapter", "main_output"]

# Batches of a split without a length: ImageNet has 40,000 of 32; a stream that repeats has no end
_ENDLESS = 100_000

# Positional arguments, keyword arguments, target
Batch = tuple[tuple[Any, ...], dict[str, Any], Any]


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call: tensors, batch first, alone or in tuples and
    dictionaries."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> Inputs:
        """A tensor, a tuple of positional arguments, a dictionary of keyword arguments, or Inputs,
        as Inputs."""
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Mapping):
            return cls((), dict(given))
        return cls(tuple(given) if isinstance(given, (tuple, list)) else (given,))

    def call(self, model: Callable[..., Any]) -> Any:
        """`model(*args, **kwargs)`; a CodeError where it would end the process, as sys.exit
        does."""
        try:
            return model(*self.args, **self.kwargs)
        except (*faults.PASS, Exception):
            raise
        except BaseException as error:
            raise CodeError(f"the model's forward failed with {faults.Fault.of(error)}") from error

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order in which exported graphs take them."""
        return [
            leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Tensor)
        ]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same structure with `function` applied to every tensor."""
        args, kwargs = tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Inputs(args, kwargs)

    def with_tensors(self, tensors: list[Tensor]) -> Inputs:
        """The same structure with other tensors, in the order of `tensors()`."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        fresh = iter(tensors)
        args, kwargs = tree_unflatten(
            [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
        return Inputs(args, kwargs)

    @property
    def batch_size(self) -> int:
        """Length of the first dimension of the first tensor that has one."""
        for tensor in self.tensors():
            if tensor.dim():
                return tensor.shape[0]
        return 1

    def rows(self, count: int) -> Inputs:
        """The first `count` inputs, repeated from the start where there are fewer."""
        have = self.batch_size
        index = torch.arange(count, device="cpu") % have
        return self.map(lambda t: t[index.to(t.device)] if t.dim() and t.shape[0] == have else t)

    def to(self, device: torch.device | str) -> Inputs:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device))


def default_adapter(batch: Any) -> Batch:
    """`(x, y)` with x a tensor, a tuple or a dictionary of arguments; or a dictionary with
    labels."""
    if isinstance(batch, Mapping):
        for name in ("labels", "label", "target", "targets"):
            if name in batch:
                return (), {key: value for key, value in batch.items() if key != name}, batch[name]
        raise ModelError(
            f"a batch that is a dictionary needs a key 'labels'; got {sorted(batch)}; or give an "
            "adapter"
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ModelError(
            "a batch must be (inputs, target) or a dictionary with labels, got "
            f"{type(batch).__name__}; give an adapter"
        )
    _refuse_samples(batch[0], batch[1])
    inputs = Inputs.of(batch[0])
    return inputs.args, inputs.kwargs, batch[1]


def _refuse_samples(inputs: Any, targets: Any) -> None:
    """A list with an image for each sample, as torchvision's detection data gives, would be taken
    for arguments."""
    lists = isinstance(inputs, (tuple, list)) and isinstance(targets, (tuple, list))
    if (
        lists
        and len(inputs) == len(targets)
        and any(isinstance(target, Mapping) for target in targets)
    ):
        raise ModelError(
            f"a batch is a list of {len(inputs)} inputs and one of as many targets, as detection "
            "models take them; "
            "needed is one tensor with the batch first: give an adapter that makes it (inputs of "
            "one size, stacked), "
            "or a loader whose collate_fn does"
        )


def main_output(output: Any) -> Tensor:
    """The tensor that built-in losses and metrics read: the output, its `logits` or `out`, or its
    first tensor."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    tensors = [
        leaf
        for leaf in tree_flatten(dict(output) if isinstance(output, Mapping) else output)[0]
        if isinstance(leaf, Tensor)
    ]
    if not tensors:
        raise ModelError(f"the model's output holds no tensor: {type(output).__name__}")
    return tensors[0]


@dataclass(frozen=True)
class Data:
    """Train and validation data, and optionally test data: each a data set or a data loader."""

    train: Any
    validation: Any
    test: Any = None


@dataclass(frozen=True)
class Metric:
    """Quality: `function(outputs, targets) -> float` over a whole split; `goal` says which way is
    better."""

    name: str
    function: Callable[[Any, Any], float]
    goal: Literal["maximize", "minimize"] = "maximize"

    def better(self, first: float, second: float) -> bool:
        """Whether `first` is strictly better than `second`."""
        return first > second if self.goal == "maximize" else first < second


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `distill` is the weight of the dense model's outputs in the loss, in
    [0, 1].

    A pruned one starts, with `repair`, from layers solved anew by least squares (`pruning.repair`;
    what is frozen stays), else from the weights as cut. It is cut in so many `iterations`, with
    training between (Han et al. 2015, arXiv:1506.02626): of n, each but the last has epochs // (n +
    1), the last what is left; where that is none, it is cut at once. The repair is that of the
    first cut.

    The learning rate rises in a line over the share `warmup` of the steps and then follows the
    `schedule`. `momentum` is SGD's (Nesterov's where it is not 0) or the first beta of Adam.
    `weight_decay` acts on weights alone.
    """

    epochs: int = 5
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    distill: float = 0.0
    temperature: float = 4.0
    repair: bool = False
    iterations: int = 1


@dataclass(frozen=True)
class Task:
    """A trained (or to be trained) model, its data and how it is judged. `build()` gives it as its
    factory does.

    `baseline` says whether the dense model is trained first: `always`, `never`, or, with `auto`,
    where neither weights nor a module were given and it guesses.
    """

    build: Callable[[], nn.Module]
    data: Data
    loss: Callable[[Any, Any], Tensor]
    metric: Metric
    training: Recipe
    adapter: Callable[[Any], Batch] = default_adapter
    weights: Path | None = None
    # The task's section of the study
    description: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()  # the user's files behind it
    given: nn.Module | None = None  # a module passed in Python, already trained
    baseline: Literal["auto", "always", "never"] = "auto"

    def batches(
        self, split: Literal["train", "validation", "test"], *, seed: int | None = None
    ) -> Iterator[Batch]:
        """Adapted batches of a split; shuffled by `seed` where one is given and the split is a data
        set."""
        loader = _loader(getattr(self.data, split), self.training, seed)
        for number, batch in self._numbered(loader, split):
            with faults.code(f"the adapter, on batch {number} of the {split} data,"):
                adapted = self.adapter(batch)
            yield adapted

    def steps(self, split: Literal["train", "validation", "test"]) -> int:
        """The number of batches of a split; an iterable without a length is gone through once to
        count them.

        Raises ModelError for an iterator, which could not be gone through again, and for a stream
        that does not end.
        """
        loader = _loader(getattr(self.data, split), self.training, None)
        if isinstance(loader, Iterator):
            raise ModelError(
                f"the {split} data is an iterator, used up after one epoch; give a data set or a "
                "loader"
            )
        length = _length(loader, split)
        return sum(1 for _ in self._numbered(loader, split)) if length is None else length

    def _numbered(self, loader: Any, split: str) -> Iterator[tuple[int, Any]]:
        """The batches of a loader, counted from 1. Raises ModelError where they do not end."""
        for number, batch in enumerate(faults.draw_samples(loader, f"the {split} data"), start=1):
            if number > _ENDLESS and _length(loader, split) is None:
                raise ModelError(
                    f"the {split} data goes on after {_ENDLESS:,} batches, and has no length; an "
                    "epoch has to end: give it a length (`__len__`), or cut it with "
                    "itertools.islice"
                )
            yield number, batch

    def calibration(self, count: int) -> Inputs:
        """The first `count` training inputs, in the data's own order, as one batch on the CPU.

        Batches of other shapes than the first are left out; what is missing then is repeated from
        the start.
        """
        parts: list[Inputs] = []
        for args, kwargs, _ in self.batches("train"):
            part = Inputs(args, kwargs)
            if not parts or _shapes(part) == _shapes(parts[0]):
                parts.append(part)
            if sum(part.batch_size for part in parts) >= count:
                break
        if not parts:
            raise ModelError("the training data is empty")
        joined = parts[0].with_tensors(
            [
                torch.cat(tensors) if tensors[0].dim() else tensors[0]
                for tensors in zip(*(part.tensors() for part in parts), strict=True)
            ]
        )
        return joined.rows(count)

    def digest(self) -> str:
        """16 hexadecimal digits over the description, the user's files, the weights and a
        fingerprint of the data."""
        state = hashlib.sha256(
            json.dumps(_description_of(self.description), sort_keys=True, default=str).encode()
        )
        for path in (*self.sources, *([self.weights] if self.weights else [])):
            state.update(Path(path).read_bytes())
        for split in ("train", "validation"):
            state.update(fingerprint(getattr(self.data, split)))
        if self.given is not None:
            for name, tensor in self.given.state_dict().items():
                state.update(
                    name.encode()
                    + tensor.detach()
                    .cpu()
                    .contiguous()
                    .view(-1)
                    .view(torch.uint8)
                    .numpy()
                    .tobytes()
                )
        return state.hexdigest()[:16]


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in inputs.tensors()]


_LATER = {"baseline": "auto", "momentum": 0.9, "schedule": "cosine", "warmup": 0.05}


def _description_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys of `training` that came later and say what was so before: runs from then go
    on."""
    training = section.get("training")
    if not isinstance(training, Mapping):
        return dict(section)
    return {
        **section,
        "training": {key: value for key, value in training.items() if _LATER.get(key) != value},
    }


def _length(loader: Any, split: str) -> int | None:
    """The number of batches of a loader; None where it does not know it."""
    try:
        with faults.code(f"the length of the {split} data"):
            return len(loader)
    except CodeError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        return None


def _loader(data: Any, recipe: Recipe, seed: int | None) -> Any:
    """`data` itself where it already gives batches, else a loader over it."""
    from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

    if isinstance(data, DataLoader) or not (
        isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    ):
        return data
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    if type(data) is TensorDataset and not recipe.workers:
        return _TensorBatches(data.tensors, recipe.batch_size, generator)
    shuffle = seed is not None and not isinstance(data, IterableDataset)
    return DataLoader(
        data, recipe.batch_size, shuffle=shuffle, num_workers=recipe.workers, generator=generator
    )


@dataclass(frozen=True)
class _TensorBatches:
    """The batches that a DataLoader would make of a TensorDataset, without collating sample by
    sample."""

    tensors: tuple[Tensor, ...]
    batch_size: int
    generator: torch.Generator | None

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self.tensors[0])
        order = (
            torch.arange(count)
            if self.generator is None
            else torch.randperm(count, generator=self.generator)
        )
        for indices in torch.split(order, self.batch_size) if count else ():
            yield tuple(tensor[indices] for tensor in self.tensors)
