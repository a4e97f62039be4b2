"""Cut channels out of tensors and modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.errors import PlanError
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.parametrizations import Reparametrised, kept_function

__all__ = [
    "Cut",
    "Skipped",
    "copy_tensors",
    "named_tensors",
    "removed_blocks",
    "replace_tensors",
    "resize",
    "shrink",
    "take",
    "widths",
]

# Private, but the only class that all batch and instance norms share; the same of convolutions
_NORMS = (nn.modules.batchnorm._NormBase,)
_CONVS = (nn.modules.conv._ConvNd,)
# Tables of parameters, hooks and flags, which torch gives to every module
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Cut:
    """What is kept of one parameter or buffer along one dimension.

    With `groups` > 1, `dim` is the input dimension of a grouped (not depthwise) convolution and
    `keep` has `groups * size(dim)` entries in channel order, every group keeping the same number.
    """

    tensor: str
    dim: int
    keep: Tensor
    groups: int = 1


def take(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """`tensor` with every cut applied, contiguous; the cuts' `keep` refer to the uncut tensor."""
    # Grouped inputs first: they pair rows with inputs
    for cut in sorted(cuts, key=lambda cut: -cut.groups):
        if cut.groups == 1:
            tensor = tensor.index_select(cut.dim, cut.keep.nonzero()[:, 0].to(tensor.device))
            continue
        # The output channels of each group read the inputs of that group
        rows = tensor.chunk(cut.groups, dim=0)
        keeps = cut.keep.chunk(cut.groups)
        tensor = torch.cat(
            [
                row.index_select(cut.dim, keep.nonzero()[:, 0].to(row.device))
                for row, keep in zip(rows, keeps, strict=True)
            ]
        )
    return tensor.contiguous()


def named_tensors(model: nn.Module, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its first name, or with every name that it has."""
    yield from model.named_parameters(remove_duplicate=not every_name)
    yield from model.named_buffers(remove_duplicate=not every_name)


@torch.no_grad()
def copy_tensors(model: nn.Module, source: nn.Module) -> None:
    """Give every parameter and buffer of `model` the values of its namesake in `source`, of the
    same shape."""
    tensors = dict(named_tensors(source))
    for name, tensor in named_tensors(model):
        tensor.copy_(tensors[name])


class Skipped(nn.Module):
    """In the place of a residual block that is gone: gives its first argument back."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`input`, of any shape."""
        return input


def removed_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks that are gone from a cut model."""
    return [name for name, module in model.named_modules() if isinstance(module, Skipped)]


def shrink(model: nn.Module, cuts: Sequence[Cut], removed: Sequence[str] = ()) -> nn.Module:
    """A copy of `model` with the cuts applied, `removed` blocks skipped; costs about one deep copy.

    `model` is untouched.
    """
    by_tensor: dict[str, list[Cut]] = {}
    for cut in cuts:
        by_tensor.setdefault(cut.tensor, []).append(cut)

    def new(name: str, tensor: Tensor) -> Tensor:
        return take(tensor, by_tensor[name]) if name in by_tensor else tensor.clone()

    def along(each: Reparametrised) -> Tensor:
        mine = [
            cut
            for cut in by_tensor.get(each.direction, [])
            if cut.dim == each.dim and cut.groups == 1
        ]
        return take(model.get_parameter(each.direction).detach(), mine)

    return replace_tensors(model, kept_function(model, along, new), removed)


def replace_tensors(
    model: nn.Module, new: Callable[[str, Tensor], Tensor], removed: Sequence[str] = ()
) -> nn.Module:
    """A deep copy of `model`, each parameter and buffer `new(name, tensor)`; module attributes
    follow the shapes.

    Blocks that are `removed` are neither copied nor their tensors asked for.
    """
    memo: dict[int, Any] = {id(model.get_submodule(name)): Skipped() for name in removed}
    changed: set[int] = set()
    gone = tuple(f"{name}." for name in removed)
    for name, tensor in named_tensors(model):
        if name.startswith(gone) and gone:
            continue
        fresh = new(name, tensor.detach())
        if fresh.shape != tensor.shape:
            changed.add(id(tensor))
        memo[id(tensor)] = (
            nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
        )
    before = dict(model.named_modules())
    for name, module in before.items():
        if not name.startswith(gone) or not gone:
            memo |= {
                id(tensor): tensor.detach().clone()
                for tensor in _kept_aside(module)
                if id(tensor) not in memo
            }
    smaller = copy.deepcopy(model, memo)
    for module in smaller.modules():
        # Spectral norm goes on iterating where a training model's weight is read
        module.training = False
    for name, module in smaller.named_modules():
        inside = isinstance(module, nn.MultiheadAttention) or hasattr(module, "parametrizations")
        tensors = [*before[name].parameters(recurse=inside), *before[name].buffers(recurse=False)]
        if any(id(tensor) in changed for tensor in tensors):
            _follow_shapes(name, module, before[name])
    if any(isinstance(module, Attention) for module in smaller.modules()):
        # Where one is, all are: a cut model has one of two forms, not any mixture
        Attention.take_over_all(smaller)
    for name, module in smaller.named_modules():
        module.training = before[name].training
    return smaller


def _kept_aside(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in a module's own attributes: what it computed in its last forward may have a graph,
    and no deep copy."""
    for leaf in tree_leaves(
        {
            name: attribute
            for name, attribute in vars(module).items()
            if name not in _OF_EVERY_MODULE
        }
    ):
        if isinstance(leaf, Tensor):
            yield leaf


def widths(dense: nn.Module, smaller: nn.Module) -> dict[str, list[int]]:
    """Shape of every tensor of `smaller` that differs from `dense`, by name."""
    shapes = {name: tensor.shape for name, tensor in named_tensors(dense)}
    return {
        name: list(tensor.shape)
        for name, tensor in named_tensors(smaller)
        if tensor.shape != shapes[name]
    }


def resize(
    dense: nn.Module, widths: Mapping[str, Sequence[int]], removed: Sequence[str] = ()
) -> nn.Module:
    """A copy of `dense` cut to the recorded shapes; the values of the cut tensors are the first of
    each dimension.

    Raises PlanError for a name that `dense` has not, or a shape that is no cut of its tensor.
    """
    missing = set(removed) - {name for name, _ in dense.named_modules()}
    if missing:
        raise PlanError(f"the recorded blocks {sorted(missing)} are not in the dense model")
    shapes = {name: tensor.shape for name, tensor in named_tensors(dense)}
    for name, shape in widths.items():
        if name not in shapes:
            raise PlanError(
                f"the recorded widths name {name!r}, which the dense model does not have"
            )
        if len(shape) != len(shapes[name]) or any(
            not 1 <= new <= old for new, old in zip(shape, shapes[name], strict=True)
        ):
            raise PlanError(f"{name} cannot be cut from {tuple(shapes[name])} to {tuple(shape)}")
    return replace_tensors(
        dense,
        lambda name, tensor: (
            tensor[tuple(slice(int(n)) for n in widths[name])].clone()
            if name in widths
            else tensor.clone()
        ),
        removed,
    )


def _follow_shapes(name: str, module: nn.Module, dense: nn.Module) -> None:
    """Set the attributes that a module's forward reads to what its tensors' new shapes say."""
    weight = getattr(module, "weight", None)
    if type(module) is nn.MultiheadAttention:
        Attention.take_over(module)
    if isinstance(module, Attention):
        module.follow_shapes()
    elif isinstance(module, _CONVS):
        _follow_convolution(module, dense)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, _NORMS):
        held = weight if weight is not None else module.running_mean
        module.num_features = 0 if held is None else len(held)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _follow_recurrent(module)
    elif _is_foreign(module) and weight is not None:
        raise PlanError(
            f"{name}: do not know which attributes of a {type(module).__name__} must follow a cut"
        )


def _is_foreign(module: nn.Module) -> bool:
    """Whether a module is one of torch's own kinds with attributes of its own, which this file does
    not know."""
    return type(module).__module__.startswith("torch.nn.modules")


def _follow_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
    rows, reads = getattr(module, f"weight_hh{suffix}").shape
    gates = (
        4
        if isinstance(module, (nn.LSTM, nn.LSTMCell))
        else 3
        if isinstance(module, (nn.GRU, nn.GRUCell))
        else 1
    )
    module.input_size, module.hidden_size = (
        getattr(module, f"weight_ih{suffix}").shape[1],
        rows // gates,
    )
    if isinstance(module, nn.RNNBase) and module.proj_size:
        module.proj_size = reads


def _follow_convolution(module: nn.Module, dense: nn.Module) -> None:
    assert isinstance(module, nn.modules.conv._ConvNd) and isinstance(
        dense, nn.modules.conv._ConvNd
    )
    first, second = module.weight.shape[:2]
    # Depthwise: every input channel is a group
    if dense.groups == dense.in_channels and dense.groups > 1:
        per_input = dense.out_channels // dense.in_channels
        module.groups = module.in_channels = first if dense.transposed else first // per_input
        module.out_channels = module.in_channels * per_input
    elif dense.transposed:
        module.in_channels, module.out_channels = first, second * dense.groups
    else:
        module.out_channels, module.in_channels = first, second * dense.groups
