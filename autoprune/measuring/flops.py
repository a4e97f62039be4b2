"""FLOPs in fvcore's convention: one multiply-add counts 1.

By that convention normalisations, interpolation and adaptive average pooling count a few operations
an element, and element-wise operations, other pooling and data movement count 0. What fvcore counts
as zero in silence is counted here: attention, recurrent layers and cells, convolutions with padding
by name. Any other operator is named in `uncounted`. Zeros in a weight change nothing: these are
dense FLOPs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import eval_mode, outputs_of
from autoprune.measuring.einsum_flops import einsum_flops
from autoprune.task import Inputs

__all__ = ["Flops", "count"]


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass: `total`, of every module by name, and the operators that could not
    be counted."""

    total: int
    by_module: dict[str, int]
    uncounted: tuple[str, ...] = ()


# Operators that count 0, beside the element-wise ones that torch itself tags as such. Names without
# `aten::`.
_FREE_NAMES = """
    fill zero alias argmax argmin as_strided atleast_1d broadcast_tensors broadcast_to cat
    channel_shuffle chunk clone column_stack concat concatenate constant_pad_nd contiguous copy
    count_nonzero detach diagonal dstack dropout alpha_dropout feature_dropout embedding empty
    empty_like expand expand_as eye feature_alpha_dropout flatten flip full full_like gather
    hstack im2col col2im index index_add index_copy index_fill index_put index_select item
    linspace masked_fill masked_scatter masked_select meshgrid moveaxis movedim narrow
    native_channel_shuffle new_empty new_full new_ones new_zeros nonzero numpy_T one_hot ones
    ones_like pad permute pixel_shuffle pixel_unshuffle rand randn reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg roll rot90
    scalar_tensor scatter scatter_add select slice sort split split_with_sizes squeeze stack
    swapaxes swapdims t tensor tensor_split take take_along_dim tile to topk transpose tril triu
    type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vstack
    zeros zeros_like arange argsort bucketize tril_indices triu_indices mT mH T H real
    view_as_real view_as_complex _shape_as_tensor size numel dim Int Float Bool ScalarImplicit
    IntImplicit FloatImplicit is_nonzero sym_size _cast_Float _cast_Long lift_fresh lift
    _unsafe_view _reshape_alias _pack_padded_sequence _pad_packed_sequence requires_grad all any
    amax amin max min mean sum std std_mean var var_mean prod median norm linalg_vector_norm
    cumsum cumprod logsumexp softmax log_softmax _softmax _log_softmax softmin normalize nansum
    nanmean aminmax logcumsumexp cosine_similarity adaptive_avg_pool1d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices glu prelu hardswish softsign log_sigmoid tanhshrink floor_divide
    multiply divide subtract true_divide greater greater_equal less less_equal not_equal uniform
    normal bernoulli absolute negative conj complex polar cummax cummin diag diag_embed diff
    trace scatter_reduce index_reduce searchsorted rrelu _prelu_kernel upsample_nearest1d
    upsample_nearest3d outer ger embedding_bag
"""
_FREE = frozenset(_FREE_NAMES.split())


def count(model: nn.Module, inputs: Inputs) -> Flops:
    """FLOPs of `model` on `inputs`, one call of the batch as given; `model` is left as it was.

    Raises ModelError for a model that cannot be traced.
    """
    device = next(
        (tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu")
    )
    placed = inputs.to(device)
    with _quiet(), eval_mode(model), _slow_attention(), torch.no_grad():
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_Flat(model, placed), tuple(placed.tensors()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
            "none"
        )
        analysis.set_op_handle(**_HANDLERS)
        try:
            by_module = {name: int(flops) for name, flops in analysis.by_module().items()}
        except Exception as error:  # the traced code raises anything
            raise ModelError(
                f"the model cannot be traced to count FLOPs: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:600]}"
            ) from error
        unsupported = analysis.unsupported_ops()
    uncounted = tuple(sorted(kind for kind in unsupported if not _free(kind)))
    inner = {
        name.removeprefix("model").removeprefix("."): flops
        for name, flops in by_module.items()
        if name
    }
    return Flops(by_module[""], inner, uncounted)


class _Flat(nn.Module):
    """A model that takes tensors by position and gives tensors, as tracing needs it."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.training = model.training

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs_of(self.inputs.with_tensors(list(tensors)).call(self.model)))


def _free(kind: str) -> bool:
    """Whether an operator counts 0 by convention: element-wise, or data movement, reduction and
    pooling."""
    space, _, name = kind.partition("::")
    if space != "aten":
        return space == "prim" and not name.startswith(("PythonOp", "CallFunction"))
    plain = name if name.startswith("__") else name.rstrip("_")
    if plain in _FREE or name.startswith("__"):
        return True
    packet = getattr(torch.ops.aten, plain, None)
    if packet is None:
        return False
    return any(
        torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()
    )


def _shape(value: Any) -> list[int]:
    """Shape of a tensor in a traced graph."""
    sizes = value.type().sizes() if isinstance(value.type(), torch._C.TensorType) else None
    if sizes is None:
        raise ModelError("a traced tensor has no shape")
    return list(sizes)


def _numbers(value: Any) -> list[int]:
    """The numbers in a list of a traced graph; none where it is None."""
    node = value.node()
    return (
        [operand.toIValue() for operand in node.inputs()]
        if node.kind() == "prim::ListConstruct"
        else value.toIValue() or []
    )


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """softmax(q kᵀ) v: (..., L, d), (..., S, d), (..., S, e) -> L S (d + e) a head; a causal mask
    saves nothing."""
    width, keys, values = _shape(inputs[0])[-1], _shape(inputs[1])[-2], _shape(inputs[2])[-1]
    # Of the result: batches broadcast
    return math.prod(_shape(outputs[0])[:-1]) * keys * (width + values)


def _recurrent(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """LSTM, GRU, RNN of any depth, direction, projection: each matrix is applied once to each step
    of each row.

    A padded batch is (T, B, I), a packed one (steps, I): either way all dimensions but the last are
    steps.
    """
    steps = math.prod(_shape(inputs[0])[:-1])
    lists = [
        list(operand.node().inputs())
        for operand in inputs
        if operand.node().kind() == "prim::ListConstruct"
    ]
    tensors = [
        operand
        for group in lists
        for operand in group
        if isinstance(operand.type(), torch._C.TensorType)
    ]
    matrices = [shape for shape in map(_shape, tensors) if len(shape) == 2]
    return steps * sum(rows * columns for rows, columns in matrices)


def _cell(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """One step of a cell: (B, I) and its two weight matrices."""
    rows = _shape(inputs[0])[0]
    return rows * sum(math.prod(_shape(matrix)) for matrix in inputs[2:4])


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A convolution whose padding is given by name ("same", "valid"): (O, I/groups, ...) for each
    output position."""
    (batch, _, *positions), (channels, *kernel) = _shape(outputs[0]), _shape(inputs[1])
    return batch * math.prod(positions) * channels * math.prod(kernel)


def _batched_matmul(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """baddbmm(input, (B, n, m), (B, m, p)) -> B n m p."""
    return math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


def _matmul(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of vectors, matrices and batches that broadcast: each element of the result is one row times
    one column."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Each element of the result is a sum over the contracted dimensions."""
    shape = _shape(inputs[0])
    return math.prod(_shape(outputs[0])) * math.prod(shape[dim] for dim in _numbers(inputs[2]))


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Products in torch's own order of contraction; what is in one operand alone is summed
    beforehand, for nothing."""
    shapes = [_shape(operand) for operand in inputs[1].node().inputs()]
    return einsum_flops(inputs[0].toIValue(), shapes, _numbers(inputs[2]))


def _matrix_vector(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """mv((n, m), (m)) and dot((m), (m))."""
    return math.prod(_shape(inputs[0]))


def _bilinear(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """x1ᵀ W x2 with W (O, I1, I2): for each row O I1 I2 + O I2."""
    rows, (out, first, second) = math.prod(_shape(inputs[0])[:-1]), _shape(inputs[2])
    return rows * out * second * (first + 1)


def _rms_norm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """As fvcore's normalisations over statistics of the input: 4 operations an element, 5 with a
    weight."""
    return math.prod(_shape(inputs[0])) * (
        5 if isinstance(inputs[2].type(), torch._C.TensorType) else 4
    )


_HANDLERS: dict[str, Callable[[Sequence[Any], Sequence[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention,
    **{f"aten::{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten::{name}_cell": _cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten::_convolution_mode": _convolution,
    "aten::baddbmm": _batched_matmul,
    "aten::addbmm": _batched_matmul,
    "aten::matmul": _matmul,
    "aten::inner": _matmul,
    "aten::tensordot": _tensordot,
    "aten::einsum": _einsum,
    "aten::mv": _matrix_vector,
    "aten::dot": _matrix_vector,
    "aten::bilinear": _bilinear,
    "aten::rms_norm": _rms_norm,
}


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """The fused path of nn.MultiheadAttention and nn.TransformerEncoder is one opaque operator: off
    while counting."""
    was_on = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_on)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
