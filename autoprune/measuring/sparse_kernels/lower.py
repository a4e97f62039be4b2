"""Lowering: a layer whose weight has zeros runs on the kernel measured fastest for it on this
target, or stays dense.

Each layer is timed against itself, dense, interleaved, on the inputs that it gets in the model's
own forward. The best of a short look at every kernel is measured anew (the winner of many noisy
figures is too good), and taken only where the whole 95 % interval of its ratio is below 0.98. At
the end the whole lowered model must beat the dense one as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from autoprune.errors import InputError, MissingPackage, ModelError
from autoprune.measuring import measure
from autoprune.measuring.sparse_kernels.choose import (
    DENSE,
    Decisions,
    LayerRecord,
    decide,
    settings,
    zeros,
)
from autoprune.measuring.sparse_kernels.kernels import patterns
from autoprune.measuring.sparse_kernels.layers import (
    LoweredLinear,
    densify,
    lower_layer,
    replace_layers,
)
from autoprune.measuring.sparse_kernels.sites import place, sites
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = [
    "LayerRecord",
    "Lowered",
    "densify",
    "lower",
    "lowers",
    "openvino_config",
    "patterns",
    "rebuild",
    "rows",
]

# Seconds for the whole lowered model beside the dense one
_WHOLE_S = 1.0


@dataclass(frozen=True)
class Lowered:
    """`model`: a copy with the layers replaced, frozen and in eval mode; a plain copy where `used`
    is False.

    `ratio` of the whole lowered model to the dense one, None where no layer had a faster kernel.
    """

    model: nn.Module
    records: tuple[LayerRecord, ...]
    target: Target
    used: bool = False
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def kernels(self) -> dict[str, str]:
        """Layer -> kernel, of the layers that were replaced."""
        return {
            record.layer: record.kernel
            for record in self.records
            if self.used and record.kernel != DENSE
        }

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `rebuild` makes the same model out of the dense one."""
        whole = {name: getattr(self, name) for name in ("used", "ratio", "ratio_low", "ratio_high")}
        layers = [asdict(record) for record in self.records]
        return {
            "version": 1,
            "target": self.target.to_json(),
            **whole,
            "kernels": self.kernels,
            "layers": layers,
        }


def lowers(target: Target) -> bool:
    """Whether models are lowered for this target: on the runtime `eager_sparse`, on a CPU in fp32
    alone."""
    return target.runtime == "eager_sparse" and (
        target.dtype == "fp32" or target.device.startswith("cuda")
    )


def lower(
    model: nn.Module, inputs: Inputs, target: Target, decisions: Decisions | None = None
) -> Lowered:
    """A copy of `model` whose layers with zeros run on the kernel measured fastest on `target`;
    `model` is untouched.

    `inputs` are cut or repeated to the target's batch. `decisions` holds what was measured of
    layers before, by a key of all that it depends on (shapes, sparsity to 1 %, kernels that fit,
    target), and is added to. Same function as `model` to 1e-5 relative. Raises InputError for a
    runtime other than eager_sparse, or a device that is not here.
    """
    if not lowers(target):
        raise InputError(
            "models are lowered for the runtime eager_sparse, on a CPU in fp32; target "
            f"{target.name!r} has runtime {target.runtime!r} and dtype {target.dtype!r}"
        )
    decisions = {} if decisions is None else decisions
    batch = inputs.rows(target.batch)
    here, moved = place(model, batch, target)
    with settings(target):
        records = tuple(decide(site, target, decisions) for site in sites(here, moved))
    kernels = {record.layer: record.kernel for record in records if record.kernel != DENSE}
    if not kernels:
        return Lowered(_copy_model(model), records, target)
    sparse = _replace_by_kernels(_copy_model(model), kernels)
    whole = measure.time_artefact(sparse, model, batch, target, budget_s=_WHOLE_S)
    assert whole.ratio_high is not None  # the dense model was given
    used = whole.ratio_high < 1
    return Lowered(
        sparse if used else _copy_model(model),
        records,
        target,
        used,
        whole.ratio,
        whole.ratio_low,
        whole.ratio_high,
    )


def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """A copy of dense `model` lowered as `record`, made by `Lowered.to_json`, says; nothing is
    measured.

    Raises ModelError for a record that is broken, or does not fit the model or this machine.
    """
    try:
        kernels = {str(name): str(kernel) for name, kernel in record["kernels"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the lowering record is broken: {type(error).__name__}: {error}"
        ) from error
    return _replace_by_kernels(_copy_model(model), kernels)


def rows(result: Lowered) -> list[dict[str, Any]]:
    """One row for each layer with zeros, for a table: plain values, milliseconds by kernel."""
    return [
        {
            "layer": record.layer,
            "zeros": record.sparsity,
            "kernel": record.kernel,
            "dense_ms": record.dense_ms,
            "tried_ms": dict(record.tried or {}),
            "speed_up": record.speed_up,
            "note": record.note,
        }
        for record in result.records
    ]


def openvino_config(model: nn.Module) -> dict[str, float]:
    """The property with which OpenVINO's CPU plug-in decompresses sparse weights, for
    `core.compile_model`.

    The rate is the lowest share of zeros of the linear layers with at least half zeros; {} where
    there is none. Raises MissingPackage without OpenVINO.
    """
    import importlib.util

    if importlib.util.find_spec("openvino") is None:
        raise MissingPackage(
            "sparse weights decompression needs the package 'openvino': pip install openvino"
        )
    weights = [
        module.weight
        for module in model.modules()
        if isinstance(module, (nn.Linear, LoweredLinear))
    ]
    shares = [share for share in map(zeros, weights) if share >= 0.5]
    return {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": min(shares)} if shares else {}


def _copy_model(model: nn.Module) -> nn.Module:
    return replace_tensors(model, lambda _, tensor: tensor.clone()).eval()


def _replace_by_kernels(model: nn.Module, kernels: Mapping[str, str]) -> nn.Module:
    """`model` itself with those layers lowered, frozen."""
    layers: dict[str, nn.Module] = {}
    for name, kernel in kernels.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(
                f"the lowering record names {name!r}, which the model does not have"
            ) from error
        layers[name] = lower_layer(layer, kernel, name)
    replace_layers(model, layers)
    return model.requires_grad_(False)
