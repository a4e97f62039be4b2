"""The checks of `verify`: each gives what it found, with figures, or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.exporting import artefact, shipped
from autoprune.exporting.lowered import LOWERING
from autoprune.exporting.recorded import Recorded
from autoprune.files import check_safetensors
from autoprune.measuring import measure
from autoprune.measuring.precision import TOLERANCES
from autoprune.task import Inputs
from autoprune.training import judging, loop

__all__ = ["TOLERANCE", "Check", "Failed", "Found", "checks"]

TOLERANCE = 1e-4  # of outputs, relative to the largest recorded one; and of the metric
_OTHER_BATCHES = (1, 3)  # beside the recorded one: the batch must be dynamic

_PROCESSES, _SECONDS = 5, 1.5  # fresh ones, and the time limit of each
_LATENCIES = ("ms", "ms_low", "ms_high", "ratio", "ratio_low", "ratio_high")

Found = tuple[str, dict[str, Any]]  # what a check says, and its figures
Check = Callable[[], Found]


class Failed(Exception):
    """A check that did not pass; `figures` are what it compared."""

    def __init__(self, detail: str, **figures: Any) -> None:
        """`detail` says what was found and what was recorded."""
        super().__init__(detail)
        self.figures = figures


def checks(recorded: Recorded) -> Iterator[tuple[str, Check]]:
    """Name and function of every check that this artefact must pass."""
    yield "files", partial(_files, recorded)
    yield "widths", partial(_widths, recorded)
    yield "counts", partial(_counts, recorded)
    for name in recorded.formats:
        yield f"outputs of {name}", partial(_outputs, recorded, name)
    if (recorded.folder / LOWERING).exists():
        yield "outputs of lowered", partial(_outputs_lowered, recorded)
    if (recorded.folder / shipped.OUTPUTS).exists():
        yield "outputs of the target", partial(_outputs_shipped, recorded)
    yield "metric", partial(_metric, recorded)
    yield "size", partial(_size, recorded)
    yield "budget", partial(_budget, recorded)
    yield "latency", partial(_latency, recorded)
    for name in _further(recorded):
        yield f"latency on {name}", partial(_latency, recorded, name)


def _files(recorded: Recorded) -> Found:
    """Every file is there and is, to the byte, the one that was written."""
    listed: dict[str, dict[str, Any]] = recorded.record["files"]
    needed = {artefact.STUDY, artefact.PLAN, artefact.REFERENCE, artefact.WEIGHTS, *recorded.formats.values()}
    needed |= {str(recorded.record["runs"])} if "runs" in recorded.record else set()
    wrong = [f"{name} is not in {artefact.SCORE}" for name in sorted(needed - set(listed))]
    for name, known in listed.items():
        path = recorded.folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            wrong.append(f"{name} is missing, or no plain file of this folder")
        elif (size := path.stat().st_size) != known["size_bytes"]:
            wrong.append(f"{name} has {size} bytes, {known['size_bytes']} were written")
        elif artefact.digest(path) != known:
            wrong.append(f"{name} was changed since it was written (sha256)")
    if wrong:
        raise Failed("; ".join(wrong))
    return f"{len(listed)} files are as they were written", {"files": len(listed)}


def _widths(recorded: Recorded) -> Found:
    """The weights have the shapes that the plan records."""
    check_safetensors(recorded.folder / artefact.WEIGHTS)
    with safe_open(recorded.folder / artefact.WEIGHTS, "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    widths = recorded.outline.widths
    there = {name: shape for name, shape in widths.items() if name in shapes}  # of shared tensors one name is
    unlike = [f"{name} is {shapes[name]}, recorded {shape}" for name, shape in there.items() if shapes[name] != shape]
    if unlike or (widths and not there):
        raise Failed("; ".join(unlike) or f"{artefact.WEIGHTS} has none of the recorded tensors", tensors=len(unlike))
    return f"{len(widths)} cut tensors have their recorded shapes", {"tensors": len(widths)}


def _counts(recorded: Recorded) -> Found:
    """The dense module, cut to the widths, takes the weights strictly; parameters and FLOPs are the recorded ones."""
    inputs, _ = recorded.reference
    counted = measure.costs(recorded.model, inputs.rows(recorded.target.batch))
    found = {name: getattr(counted, name) for name in ("params", "nonzero_params", "flops")}
    wanted = {name: getattr(recorded.score, name) for name in found}
    unlike = [f"{name} {found[name]}, recorded {value}" for name, value in wanted.items() if value != found[name]]
    if unlike:
        raise Failed("; ".join(unlike), **found)
    return f"{found['params']} parameters, {found['nonzero_params']} of them not zero, {found['flops']} FLOPs", found


def _outputs(recorded: Recorded, name: str) -> Found:
    """The file of one format gives the recorded outputs, at the recorded batch and at others."""
    plugin = plugins.load("format", name, recorded.folders)()
    return _compared(recorded, plugin.load(recorded.folder / recorded.formats[name], recorded.template))


def _outputs_lowered(recorded: Recorded) -> Found:
    """The model whose layers with zeros run on sparse kernels gives the recorded outputs."""
    model = recorded.lowered

    def run(inputs: Inputs) -> Any:
        with torch.inference_mode():
            return inputs.call(model)

    return _compared(recorded, run)


def _outputs_shipped(recorded: Recorded) -> Found:
    """The file that the target runs gives, on its runtime in its dtype, the outputs recorded there."""
    outputs = shipped.read(recorded.folder)
    return _compared(
        recorded, lambda inputs: inputs.call(recorded.deployed), outputs, TOLERANCES[recorded.target.dtype]
    )


def _compared(
    recorded: Recorded, run: Callable[[Inputs], Any], wanted: list[Tensor] | None = None, allowed: float = TOLERANCE
) -> Found:
    """What `run` makes of the recorded inputs are the recorded outputs, or `wanted`."""
    inputs, outputs = recorded.reference
    outputs = outputs if wanted is None else wanted
    count = inputs.batch_size
    errors: dict[str, Any] = {}
    for batch in (count, *(batch for batch in _OTHER_BATCHES if batch < count)):
        got = artefact.output_tensors(run(inputs.rows(batch)))
        if len(got) != len(outputs):
            raise Failed(f"{len(got)} outputs, recorded are {len(outputs)}", outputs=len(got))
        errors[f"error_at_batch_{batch}"] = max(map(partial(_error, batch, count), outputs, got))
    worst = max(errors.values())
    if not worst <= allowed:
        raise Failed(f"outputs are off by {worst:.2g} of the largest, allowed is {allowed:g}", **errors)
    return f"outputs are the recorded ones within {worst:.2g}", errors


def _error(batch: int, count: int, recorded: Any, got: Any) -> float:
    """The relative error; of the first `batch` rows where the output has a row for each of the `count` inputs."""
    finite = recorded.double().nan_to_num(0, 0, 0).abs()
    rows = recorded[:batch] if recorded.dim() and recorded.shape[0] == count else recorded
    return artefact.error(rows, got, float(finite.max()) if finite.numel() else None)


def _metric(recorded: Recorded) -> Found:
    """The reloaded weights, or what the target runs in another dtype than fp32, reach the recorded metric."""
    task, target = recorded.task, recorded.target
    try:
        device = loop.device(task.training.device).type
    except InputError:
        device = "cpu"  # trained on a device that is not here
    file = None if target.dtype == "fp32" or recorded.runs != "onnx" else recorded.runs_file
    found = judging.judge(recorded.model, task, target, "validation", device, file).metric
    allowed = TOLERANCES[target.dtype]
    wanted = recorded.score.metric
    if wanted is None:
        raise Failed(f"no metric is recorded; now it is {found:.6g}", metric=found)
    if not abs(found - wanted) <= allowed * max(1.0, abs(wanted)):
        raise Failed(f"{task.metric.name} is {found:.6g}, recorded {wanted:.6g}", metric=found, recorded=wanted)
    how = "" if target.dtype == "fp32" else f" in {target.dtype} on {target.runtime}"
    return f"{task.metric.name} is {found:.6g}{how} as recorded", {"metric": found, "recorded": wanted}


def _size(recorded: Recorded) -> Found:
    """The file that the target runs has the recorded size."""
    filename = recorded.runs_file.name
    size, wanted = recorded.runs_file.stat().st_size, recorded.score.size_bytes
    if size != wanted:
        raise Failed(f"{filename} has {size} bytes, recorded {wanted}", size_bytes=size, recorded=wanted)
    return f"{filename} has {size} bytes as recorded", {"size_bytes": size}


def _budget(recorded: Recorded) -> Found:
    """The recorded figures keep every limit; latency has a check of its own."""
    score, dense, goal = recorded.score, recorded.dense_score, recorded.record["goal"]
    limits = [limit for limit in recorded.budget.limits if limit.quantity != "latency"]
    spent = {limit.key: limit.used(score, dense, goal) for limit in limits}
    broken = [
        f"{limit.key} has no figure" if used is None else limit.exceeded(used)
        for limit, used in zip(limits, spent.values(), strict=True)
        if used is None or limit.broken(used)
    ]
    if broken:
        raise Failed("; ".join(broken), **spent)
    return f"{len(limits)} limits beside latency are kept", spent


def _further(recorded: Recorded) -> list[str]:
    """Names of further targets; none where the record is broken, which other checks say."""
    try:
        return [target.name for target in recorded.further]
    except (ValueError, KeyError, TypeError):
        return []


def _latency(recorded: Recorded, name: str = "") -> Found:
    """Measured again, in fresh processes against the dense model; fails where even the lower end is over the limit.

    `name` is that of a further target.
    """
    target = next(each for each in recorded.further if each.name == name) if name else recorded.target
    inputs, _ = recorded.reference
    batch = inputs.rows(target.batch)
    if name:
        candidate: Any = measure.artefact(recorded.model, batch, target)
    else:
        candidate = recorded.runs_file if recorded.runs == "onnx" else recorded.lowered
    dense = measure.artefact(recorded.dense, batch, target)  # latency depends on no weight's value
    found = measure.timed(candidate, dense, inputs, target, processes=_PROCESSES, budget_s=_SECONDS)
    assert found.ratio is not None and found.ratio_low is not None and found.ratio_high is not None  # dense was given
    figures: dict[str, Any] = {name: getattr(found, name) for name in _LATENCIES}
    figures["taken"] = found.taken
    figures["runtime"] = plugins.load("runtime", target.runtime, recorded.folders)().version()
    said = f"{found.ms:.4g} ms, {found.ratio:.1%} of dense ({found.ratio_low:.1%} to {found.ratio_high:.1%})"
    for limit in (each for each in recorded.budget.limits if (each.quantity, each.target) == ("latency", name)):
        low = found.ratio_low if limit.relative else found.ms_low
        high = found.ratio_high if limit.relative else found.ms_high
        figures |= {"limit": str(limit), "surely_inside": high <= limit.value}
        if low > limit.value:
            raise Failed(f"{limit.key} {said} is over the limit {limit}", **figures)
    return f"latency {said}; {found.taken}", figures
