"""Whether a model's forward goes another way in training mode: auxiliary heads, `if
self.training:`, other outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from autoprune.pruning.surgery.forward import output_tensors, plain_forward, steady_forward
from autoprune.pruning.surgery.shrink import named_tensors
from autoprune.pruning.surgery.without_chance import DROPOUTS, RECURRENT
from autoprune.task import Inputs

__all__ = ["TrainingPath", "training_path"]

# Names in one sentence
_SHOWN = 4
# Arguments, of which the rest depends on the mode alone
_TELLING = {"batch_norm": 5, **dict.fromkeys(RECURRENT, 4)}


@dataclass(frozen=True)
class TrainingPath:
    """Whether training takes another path than evaluation, and why that cannot be followed, or
    None."""

    differs: bool
    unfollowed: str | None = None


def training_path(model: nn.Module, inputs: Inputs) -> TrainingPath:
    """Run both modes once, without chance, and compare every call: its numbers, parameters, whose
    output it reads.

    `model` is run as it is: give a copy, its buffers may be written into. An error in eval mode is
    left to the trace.
    """
    evaluation = _Calls(model)
    try:
        evaluation.run(model, inputs, training=False)
    except Exception:
        return TrainingPath(False)
    training = _Calls(model)
    try:
        training.run(model, inputs, training=True)
    except Exception as error:
        return TrainingPath(False, _unfollowed_reason(model, error, evaluation.used))
    return TrainingPath(training.made != evaluation.made)


class _Calls(TorchFunctionMode):
    """Every call of a forward in a form that compares."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(model)}
        self.made: list[Any] = []
        self.used: set[str] = set()  # parameters and buffers that some call reads
        # Id -> call that gave it; kept, so that ids stay theirs
        self.outputs: dict[int, tuple[int, Any]] = {}

    def run(self, model: nn.Module, inputs: Inputs, training: bool) -> None:
        """One forward; `made` ends with its outputs."""
        inputs = inputs.map(lambda tensor: tensor.clone())
        for place, tensor in enumerate(inputs.tensors()):
            self.outputs[id(tensor)] = (-1 - place, tensor)
        with self, steady_forward(model) if training else plain_forward(model):
            output = inputs.call(model)
        self.made.append([self._leaf(tensor) for tensor in output_tensors(output)])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        if func in DROPOUTS:
            self._pass_output_on(args[0] if args else kwargs["input"], out)
        elif name != "__get__" and not _counts(args):
            given = args[: _TELLING.get(name, len(args))]
            self.made.append(
                (func, [self._leaf(leaf) for leaf in tree_flatten((given, kwargs))[0]])
            )
            for tensor in tree_flatten(out)[0]:
                self.outputs[id(tensor)] = (len(self.made), tensor)
        return out

    def _pass_output_on(self, tensor: Tensor, out: Tensor) -> None:
        """A call that gives what it is given is none."""
        self.outputs[id(out)] = self.outputs.get(id(tensor), (0, None))[0], out

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            name = self.names.get(id(leaf))
            if name is not None:
                self.used.add(name)
                return name
            return self.outputs.get(id(leaf), (0, leaf))[0], tuple(leaf.shape)
        plain = leaf is None or isinstance(
            leaf, (int, float, str, slice, torch.dtype, type(Ellipsis))
        )
        return repr(leaf) if plain else type(leaf).__name__


def _counts(args: tuple[Any, ...]) -> bool:
    """Whether a call counts steps, as batch norm does in training."""
    first = args[0] if args else None
    return isinstance(first, Tensor) and first.dim() == 0 and not first.is_floating_point()


def _unfollowed_reason(model: nn.Module, error: Exception, used: set[str]) -> str:
    """What fails in training mode, where, and what evaluation does not run."""
    names = {id(module): name for name, module in model.named_modules()}
    where, trace = "", error.__traceback__
    while trace is not None:
        name = names.get(id(trace.tb_frame.f_locals.get("self")))
        where, trace = name or where, trace.tb_next
    said = (str(error).splitlines() or [""])[0][:120]
    alone = _unused_modules(model, used)
    listed = (
        f" ({', '.join(alone[:_SHOWN])}{' ...' if len(alone) > _SHOWN else ''})" if alone else ""
    )
    return (
        f"in training mode the forward fails on these inputs{f' in {where}' if where else ''} "
        f"({type(error).__name__}: {said}); only the path of evaluation is followed and verified, "
        "and what runs in "
        f"training alone{listed} may break after a cut"
    )


def _unused_modules(model: nn.Module, used: set[str]) -> list[str]:
    """The outermost modules with parameters of which evaluation reads none."""
    unused: list[str] = []
    for name, module in model.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if (
            name
            and own
            and not own & used
            and not name.startswith(tuple(f"{tensor}." for tensor in unused))
        ):
            unused.append(name)
    return unused
