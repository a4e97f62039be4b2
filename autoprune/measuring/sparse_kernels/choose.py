"""Which kernel runs a layer: measured against the layer itself, dense, interleaved, on its own
inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.measuring.sparse_kernels import kernels
from autoprune.measuring.sparse_kernels.layers import LoweredLayer, lower_layer
from autoprune.measuring.sparse_kernels.sites import Site
from autoprune.measuring.timing import latency
from autoprune.target import Target

__all__ = ["DENSE", "Decisions", "LayerRecord", "decide", "settings", "zeros"]

DENSE = "dense"
# Fewer are not timed: an index takes as much memory as a weight, so CSR needs half to break even
FEWEST_ZEROS = 0.3
# The upper end of the interval of a chosen kernel's ratio to dense is at most this
GAIN = 0.98
# Sums in another order round otherwise: by some 80 units of the last place in fp32, 5 in the others
_TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# A short look at every kernel, then the best again: the winner of many noisy figures is too good
_LOOK_S, _CONFIRM_S = 0.06, 0.4


class Decisions(Protocol):
    """What was measured of layers before, by a key of all that it depends on; a dictionary is
    one."""

    def get(self, key: str, /) -> dict[str, Any] | None:
        """What was measured, or None."""

    def __setitem__(self, key: str, value: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class LayerRecord:
    """What was decided for one layer, and why. `kernel` is "dense" where nothing beat it;
    milliseconds are medians.

    `tried` has every kernel that was timed, on all of the layer's distinct inputs once each.
    `ratio` to dense, with its 95 % interval, is the chosen kernel's second measurement. `note` says
    "zero gain", or why nothing was timed.
    """

    layer: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    sparsity: float
    kernel: str = DENSE
    dense_ms: float | None = None
    tried: Mapping[str, float] | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    note: str = ""

    @property
    def speed_up(self) -> float:
        """How many times as fast as dense; 1 where it stays dense."""
        return 1.0 if self.kernel == DENSE or not self.ratio else 1 / self.ratio

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerRecord:
        """What `asdict` and JSON made of one. Raises TypeError or KeyError for anything else."""
        inputs = tuple(tuple(shape) for shape in data["inputs"])
        return cls(**{**data, "shape": tuple(data["shape"]), "inputs": inputs})


def decide(site: Site, target: Target, decisions: Decisions) -> LayerRecord:
    """The record of one layer: taken over from one alike, or measured."""
    weight = site.layer.weight.detach().reshape(len(site.layer.weight), -1)
    shapes = tuple(tuple(tensor.shape) for tensor in site.inputs)
    record = LayerRecord(
        site.name, tuple(site.layer.weight.shape), shapes, zeros(weight), note=site.refusal
    )
    if not site.refusal and record.sparsity < FEWEST_ZEROS:
        record = replace(record, note=f"fewer than {FEWEST_ZEROS:.0%} zeros")
    if record.note:
        return record
    names = kernels.fitting(weight, weight.device)
    if not names:
        return replace(record, note=f"no sparse kernel for {weight.dtype} on {weight.device.type}")
    alike = [
        repr(site.layer),
        record.shape,
        shapes,
        # To 1 %: less moves no kernel's time
        round(record.sparsity, 2),
        names,
        target.to_json(),
    ]
    key = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()[:16]
    measured = decisions.get(key)
    if measured is None:
        decisions[key] = measured = _measure_kernels(site, names)
    return replace(record, **measured)


def _measure_kernels(site: Site, names: Sequence[str]) -> dict[str, Any]:
    """The part of a record that is measured."""
    dense = _call(site.layer, site.inputs)
    tried: dict[str, tuple[float, float]] = {}
    calls: dict[str, Callable[[], object]] = {}
    dense_ms, unfit = None, []
    for name in names:
        try:
            sparse = lower_layer(site.layer, name, site.name)
            _check(site, sparse)
        except (RuntimeError, ModelError) as error:  # torch has kernels not for every shape
            unfit.append(f"; {name} did not do: {str(error).splitlines()[0][:100]}")
            continue
        calls[name] = _call(sparse, site.inputs)
        look = latency.compare(calls[name], dense, budget_s=_LOOK_S)
        assert look.ratio is not None
        tried[name] = (look.ratio, look.ms)
        dense_ms = look.ms / look.ratio
    note = "zero gain" + "".join(unfit)
    measured: dict[str, Any] = {
        "dense_ms": dense_ms,
        "tried": {name: ms for name, (_, ms) in tried.items()},
    }
    best = min(tried, key=lambda name: tried[name][0], default=DENSE)
    if best == DENSE or tried[best][0] >= 1:
        return measured | {"note": note}
    again = latency.compare(calls[best], dense, budget_s=_CONFIRM_S)
    assert again.ratio is not None and again.ratio_high is not None
    measured["tried"][best], measured["dense_ms"] = again.ms, again.ms / again.ratio
    ratios = {"ratio": again.ratio, "ratio_low": again.ratio_low, "ratio_high": again.ratio_high}
    return measured | ratios | ({"kernel": best} if again.ratio_high <= GAIN else {"note": note})


def _check(site: Site, sparse: LoweredLayer) -> None:
    """Raise ModelError where a lowered layer is not the dense one: max|a - b| / max|a| by dtype,
    TF32 as fp16."""
    tolerance = _TOLERANCES[site.layer.weight.dtype]
    if site.layer.weight.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        tolerance = max(tolerance, _TOLERANCES[torch.float16])
    for tensor in site.inputs:
        expected = site.layer(tensor)
        off = float((sparse(tensor) - expected).abs().max())
        if not off <= tolerance * float(expected.abs().max()):
            raise ModelError(f"off by {off:.2g}")


def _call(layer: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], object]:
    cuda = any(tensor.is_cuda for tensor in inputs)

    def call() -> None:
        for tensor in inputs:
            layer(tensor)
        if cuda:
            torch.cuda.synchronize()

    return call


@contextlib.contextmanager
def settings(target: Target) -> Iterator[None]:
    """Inference mode and the target's threads; afterwards torch's threads are what they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def zeros(weight: Tensor) -> float:
    """Share of exact zeros."""
    return 1 - int(torch.count_nonzero(weight)) / max(1, weight.numel())
