"""The one way in which a module becomes a graph: torch.export with a dynamic batch, then ONNX,
parameters by name.

Every exported ONNX model keeps each parameter and buffer as an initializer of its own, under its
name in the module and bit for bit. The exporter would merge equal ones and fold batch norms into
convolutions; ONNX Runtime folds them by itself when it opens the model, so the latency is the same
(tried: the optimised graphs have the same operators).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from autoprune.errors import ModelError
from autoprune.task import Inputs

__all__ = ["eval_mode", "onnx_model", "outputs_of", "program", "quiet", "strip", "tensor_aliases"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: warnings, progress on stdout, and the loggers of torch and
    onnxscript."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode; afterwards every module's training flag is what it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in flags:
            module.training = training


def outputs_of(output: Any) -> list[Tensor]:
    """Every tensor of a model's output, in the order in which exported graphs give them."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def program(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """`model` traced with a dynamic batch: the first dimension of every input whose length there is
    the batch size.

    Raises ModelError for a model that cannot be traced, or that fixes its batch size.
    """
    # A batch of 1 would be taken for a constant
    example = inputs.rows(max(2, inputs.batch_size))
    batch = torch.export.Dim("batch", min=1)
    size = example.batch_size

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        return (
            {0: batch}
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size
            else None
        )

    arguments = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    shapes = {name: tree_map(dynamic, given) for name, given in arguments.items()}
    with quiet(), eval_mode(model), torch.no_grad():
        try:
            return torch.export.export(
                model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False
            )
        # torch.export raises anything that the traced code raises, and kinds of its own
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"the model cannot be exported with a dynamic batch: {type(error).__name__}: "
                f"{' '.join(reason)[:600]}. Its forward must be traceable by torch.export "
                "for every batch size: no shapes written as numbers, no branches on values"
            ) from error


def onnx_model(model: nn.Module, inputs: Inputs, *, shapes: bool = False) -> Any:
    """An `onnx.ModelProto` of `model`: dynamic batch, each parameter an initializer under its own
    name.

    Costs 1-5 s. `shapes` keeps the shapes of intermediate values. Raises ModelError where it cannot
    be exported.
    """
    proto = to_onnx(program(model, inputs), tensor_aliases(model))
    return proto if shapes else strip(proto)


def to_onnx(exported: torch.export.ExportedProgram, aliases: dict[str, str]) -> Any:
    """ONNX of an exported program; see `onnx_model`."""
    with quiet():
        try:
            result = torch.onnx.export(
                # Optimised below, when the parameters are out of its reach
                exported,
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's own kinds are private
            raise ModelError(
                "the model has an operator that ONNX export does not know: "
                f"{type(error).__name__}: "
                f"{' '.join(str(error).split())[:600]}"
            ) from error
        assert result is not None
        graph = result.model.graph
        held = {
            name: graph.initializers[name] for name in list(graph.initializers) if name in aliases
        }
        constants = {name: value.const_value for name, value in held.items()}
        # As inputs they can be neither merged nor folded by the optimizer
        for name, value in held.items():
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
        result.optimize()
        graph = result.model.graph
        for value in [value for value in graph.inputs if value.name in held]:
            graph.inputs.remove(value)
            value.const_value = constants[str(value.name)]
            graph.register_initializer(value)
        return result.model_proto


def strip(proto: Any) -> Any:
    """The same graph without what no runtime needs: intermediate shapes, stack traces with paths of
    this machine."""
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for part in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def tensor_aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> its first name; they differ where tensors are
    tied."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            aliases[name] = first.setdefault(id(tensor), name)
    return aliases
