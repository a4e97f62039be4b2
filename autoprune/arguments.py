"""What a Python caller gave, checked: every error says what came, what is needed and what to do."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, IterableDataset

from autoprune import faults
from autoprune.errors import InputError, ModelError, StudyError
from autoprune.task import Batch, default_adapter

__all__ = ["as_list", "batches", "callable_", "mapping", "module", "name_errors", "text", "whole"]

_MOST = 512  # batches kept of an iterator: a repair reads no more inputs
# The start of a key in a study -> what stands for it in Python; nothing where the message says it
# itself
_OWN = {
    "task.metric.goal": "goal",
    "task.metric.name": "metric",
    "task.metric.function": "metric",
    "task.data": "",
    "task.": "",
    "search.": "",
    "export.": "",
}


def module(model: Any, inputs: Any = None, *, cut: bool = True) -> nn.Module:
    """`model`, where it is a module with weights and, to be `cut`, with code that can be followed.
    Else ModelError."""
    if isinstance(model, type):
        raise ModelError(
            f"model is the class {model.__name__}; give an instance of it, as in {model.__name__}()"
        )
    if not isinstance(model, nn.Module):
        came = type(model).__name__
        if isinstance(inputs, nn.Module):
            raise ModelError(
                f"model and inputs are swapped: model is a {came}; the model comes first, then "
                "its inputs"
            )
        raise ModelError(f"model must be a torch.nn.Module, got a {came}")
    lazy = [
        name
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
        if is_lazy(tensor)
    ]
    if lazy:
        raise ModelError(
            f"the lazy module has no weights yet ({', '.join(lazy[:3])}); call model(inputs) once "
            "before"
        )
    for name, part in model.named_modules() if cut else ():
        where = f"the module {name!r}" if name else "the model"
        if hasattr(part, "_orig_mod"):
            raise ModelError(
                f"{where} is compiled (torch.compile); prune the original module, compile the "
                "result"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is scripted or traced (torch.jit), its code cannot change; prune the "
                "original"
            )
    return model


def whole(value: Any, name: str) -> int:
    """`value`, where it is a whole number of at least 1. Else InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is a whole number of at least 1; got {value!r}")
    return value


def text(value: Any, name: str, example: str) -> str:
    """`value`, where it is text. Else InputError."""
    if not isinstance(value, str):
        raise InputError(f"{name} is a name, as in {example!r}; got {value!r}")
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """`value` as a dictionary. InputError where it is no mapping."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is a dictionary, as in a study's YAML; got {value!r}")
    return dict(value)


def as_list(value: Any, name: str) -> list[Any]:
    """`value` as a list. InputError where it is one text, or no iterable."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{name} is a list of names; got {value!r}")
    return list(value)


def callable_(value: Any, name: str, *, or_name: bool = False) -> Any:
    """`value`, where it can be called, or may be and is the name of what can. Else InputError."""
    if not callable(value) and not (or_name and isinstance(value, str)):
        raise InputError(f"{name} must be a function; got {value!r}")
    return value


def batches(given: Any, adapter: Callable[[Any], Batch]) -> Callable[[], Iterator[Batch]] | None:
    """A function that starts adapted batches anew, or None without any. InputError where `given`
    holds no batches.

    What an iterator gives is kept as it is read, as it can be read only once.
    """
    if given is None:
        return None
    callable_(adapter, "adapter")
    _check_batches(given, single=adapter is default_adapter)
    source = _Replayed(given) if isinstance(given, Iterator) else given
    return lambda: _adapt_batches(source, adapter)


def _adapt_batches(source: Iterable[Any], adapter: Callable[[Any], Batch]) -> Iterator[Batch]:
    for number, batch in enumerate(faults.draw_samples(source, "batches"), start=1):
        with faults.code(f"the adapter, on batch {number},"):
            adapted = adapter(batch)
        yield adapted


def _check_batches(given: Any, *, single: bool) -> None:
    needed = "batches are a data loader, or a list of (inputs, target)"
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise InputError(
            f"{needed}; got a data set of single samples: give DataLoader(data_set, batch_size=64)"
        )
    if isinstance(given, str) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise InputError(f"{needed}; got {given!r}")
    if isinstance(given, (Tensor, Mapping)):
        raise InputError(
            f"{needed}; got one {type(given).__name__}: wrap a single batch in a list, as in [(x, "
            "y)]"
        )
    if single and isinstance(given, (tuple, list)) and given and isinstance(given[0], Tensor):
        raise InputError(
            f"{needed}; this looks like a single batch: wrap it in a list, as in batches=[(x, y)]"
        )


class _Replayed:
    """The first batches of an iterator, any number of times."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._read = itertools.islice(source, _MOST), list[Any]()

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count():
            if number == len(self._read):
                fresh = next(self._source, self)
                if fresh is self:
                    return
                self._read.append(fresh)
            yield self._read[number]


@contextlib.contextmanager
def name_errors() -> Iterator[None]:
    """Let a StudyError from inside name the argument, not the key of a study's YAML; no code ends
    the process."""
    try:
        with faults.boundary():
            yield
    except StudyError as error:
        if error.key is None or error.file is not None:
            raise
        start = next((start for start in _OWN if error.key.startswith(start)), "")
        argument, _, rest = (_OWN.get(start, "") + error.key.removeprefix(start)).partition(".")
        place = f"argument {argument}{f', at {rest!r}' if rest else ''}: " if argument else ""
        raise StudyError(f"{place}{error.message}") from error
