"""What a module costs: FLOPs, parameters, size of the file that the target runs, latency on the
target."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.formats.safetensors import Safetensors
from autoprune.measuring import flops, quantization, resources
from autoprune.measuring.onnx_slicing import slicer
from autoprune.measuring.sparse_kernels.layers import densify
from autoprune.measuring.timing import latency, subprocesses
from autoprune.measuring.timing.latency import Latency
from autoprune.score import Score
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["artefact", "costs", "measure", "size_bytes", "time_artefact", "with_latency"]


def measure(
    model: nn.Module,
    inputs: Inputs,
    target: Target,
    against: nn.Module | None = None,
    *,
    processes: int = 0,
    budget_s: float = 0.4,
) -> Score:
    """Every cost figure of `model` for one call of the target's batch; with `against`, the ratio to
    that module too.

    With `processes` the latency is measured in so many fresh processes, else in this one; memory
    and energy always in one of their own, and what cannot be measured here is named in
    `unavailable`. Neither module is changed. Raises ModelError for a model that cannot be traced or
    exported, InputError for a target that is not here.
    """
    batch = inputs.rows(target.batch)
    candidate = artefact(model, batch, target)
    dense = artefact(against, batch, target) if against is not None else None
    score = replace(costs(model, batch), size_bytes=size_bytes(candidate))
    measured = time_artefact(
        candidate, dense, batch, target, processes=processes, budget_s=budget_s
    )
    return _apart(with_latency(score, measured, target.batch), candidate, batch, target)


def costs(model: nn.Module, inputs: Inputs) -> Score:
    """FLOPs of one call of the batch as given, parameters (tied ones once), and those that are not
    zero."""
    model = densify(model)
    counted = flops.count(model, inputs)
    parameters = list(model.parameters())
    return Score(
        flops=counted.total,
        params=sum(parameter.numel() for parameter in parameters),
        nonzero_params=sum(
            int(torch.count_nonzero(parameter.detach())) for parameter in parameters
        ),
        uncounted=counted.uncounted,
    )


def artefact(
    model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
) -> bytes | nn.Module:
    """What the target's runtime takes: ONNX bytes (exported anew, 1-5 s) in the target's dtype, or
    the module itself.

    `calibration`: batches of real inputs, for int8; without them `inputs`, which is enough to
    measure latency.
    """
    runtime = plugins.load("runtime", target.runtime)()
    if runtime.artefact != "onnx":
        return model
    return quantization.fit_to_dtype(
        slicer.export(densify(model), inputs), runtime, target, calibration or [inputs]
    )


def size_bytes(artefact: bytes | nn.Module) -> int:
    """Size of the file that the target runs: the ONNX file, or a module's safetensors file."""
    return len(artefact if isinstance(artefact, bytes) else Safetensors.dump(artefact))


def time_artefact(
    candidate: Any,
    dense: Any | None,
    inputs: Inputs,
    target: Target,
    *,
    processes: int = 0,
    budget_s: float = 0.4,
) -> Latency:
    """Latency of an artefact (see `artefact`), interleaved with the dense one; in `processes` fresh
    ones, or 0: here.

    torch's number of threads is the target's meanwhile, and what it was afterwards.
    """
    with _threads_kept():
        if processes:
            return subprocesses.fresh(candidate, dense, inputs, target, processes, budget_s)
        runtime = plugins.load("runtime", target.runtime)()
        batch = inputs.rows(target.batch)
        artefacts = [
            file_or_module for file_or_module in (candidate, dense) if file_or_module is not None
        ]
        return latency.compare_anew(
            lambda: [
                runtime.prepare(file_or_module, batch, target) for file_or_module in artefacts
            ],
            budget_s=budget_s,
            threads=target.threads,
        )


def with_latency(score: Score, measured: Latency, batch: int) -> Score:
    """`score` with the figures of a measured latency of `batch` inputs, and the throughput that
    follows from it."""
    return replace(
        score,
        latency=replace(
            score.latency,
            ms=measured.ms,
            ms_low=measured.ms_low,
            ms_high=measured.ms_high,
            ratio=measured.ratio,
            ratio_low=measured.ratio_low,
            ratio_high=measured.ratio_high,
            ms_p90=measured.p90_ms,
            ms_p99=measured.p99_ms,
            throughput=batch * 1e3 / measured.ms,
            throughput_low=batch * 1e3 / measured.ms_high,
        ),
    )


def _apart(score: Score, artefact: Any, inputs: Inputs, target: Target) -> Score:
    """`score` with the compressed size and what a call needs beside time, or the reasons why there
    is none."""
    compressed = resources.compressed_bytes(resources.stored_file(artefact))
    needs, missing = dict[str, float](), list[str]()
    for quantity in plugins.names("quantity"):
        try:
            needs |= resources.measure_resources(artefact, inputs, target, [quantity])
        except ModelError as error:
            missing.append(
                f"{quantity}: {str(error).removeprefix(f'{quantity} cannot be measured: ')}"
            )
    return replace(
        score, size_compressed_bytes=compressed, resources=needs, unavailable=tuple(missing)
    )


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
