"""The checks of `verify`: each gives what it found, with figures, or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.exporting import artefact
from autoprune.exporting.recorded import Recorded
from autoprune.measuring import measure
from autoprune.training import loop

__all__ = ["TOLERANCE", "Check", "Failed", "Found", "checks"]

TOLERANCE = 1e-4  # of outputs, relative to the largest recorded one; and of the metric
_OTHER_BATCHES = (1, 3)  # beside the recorded one: the batch must be dynamic

_PROCESSES = 5
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
    yield "metric", partial(_metric, recorded)
    yield "size", partial(_size, recorded)
    yield "budget", partial(_budget, recorded)
    yield "latency", partial(_latency, recorded)


def _files(recorded: Recorded) -> Found:
    """Every file is there and is, to the byte, the one that was written."""
    listed: dict[str, dict[str, Any]] = recorded.record["files"]
    needed = {artefact.STUDY, artefact.PLAN, artefact.REFERENCE, artefact.WEIGHTS, *recorded.formats.values()}
    wrong = [f"{name} is not in {artefact.SCORE}" for name in sorted(needed - set(listed))]
    for name, known in listed.items():
        path = recorded.folder / name
        if Path(name).name != name or not path.is_file():
            wrong.append(f"{name} is missing")
        elif (size := path.stat().st_size) != known["size_bytes"]:
            wrong.append(f"{name} has {size} bytes, {known['size_bytes']} were written")
        elif artefact.digest(path) != known:
            wrong.append(f"{name} was changed since it was written (sha256)")
    if wrong:
        raise Failed("; ".join(wrong))
    return f"{len(listed)} files are as they were written", {"files": len(listed)}


def _widths(recorded: Recorded) -> Found:
    """The weights have the shapes that the plan records."""
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
    run = plugin.load(recorded.folder / recorded.formats[name], recorded.template)
    inputs, outputs = recorded.reference
    count = inputs.batch_size
    errors: dict[str, Any] = {}
    for batch in (count, *(batch for batch in _OTHER_BATCHES if batch < count)):
        got = artefact.output_tensors(run(inputs.rows(batch)))
        if len(got) != len(outputs):
            raise Failed(f"{len(got)} outputs, recorded are {len(outputs)}", outputs=len(got))
        errors[f"error_at_batch_{batch}"] = max(map(partial(_error, batch, count), outputs, got))
    worst = max(errors.values())
    if not worst <= TOLERANCE:
        raise Failed(f"outputs are off by {worst:.2g} of the largest, allowed is {TOLERANCE:g}", **errors)
    return f"outputs are the recorded ones within {worst:.2g}", errors


def _error(batch: int, count: int, recorded: Any, got: Any) -> float:
    """The relative error; of the first `batch` rows where the output has a row for each of the `count` inputs."""
    finite = recorded.double().nan_to_num(0, 0, 0).abs()
    rows = recorded[:batch] if recorded.dim() and recorded.shape[0] == count else recorded
    return artefact.error(rows, got, float(finite.max()) if finite.numel() else None)


def _metric(recorded: Recorded) -> Found:
    """The reloaded weights reach the recorded metric on the validation data."""
    task = recorded.task
    try:
        device = loop.device(task.training.device).type
    except InputError:
        device = "cpu"  # trained on a device that is not here
    found = loop.evaluate(recorded.model, task, "validation", device=device).metric
    wanted = recorded.score.metric
    if wanted is None:
        raise Failed(f"no metric is recorded; now it is {found:.6g}", metric=found)
    if not abs(found - wanted) <= TOLERANCE * max(1.0, abs(wanted)):
        raise Failed(f"{task.metric.name} is {found:.6g}, recorded {wanted:.6g}", metric=found, recorded=wanted)
    return f"{task.metric.name} is {found:.6g} as recorded", {"metric": found, "recorded": wanted}


def _size(recorded: Recorded) -> Found:
    """The file that the target runs has the recorded size."""
    filename = recorded.formats[recorded.runs]
    size, wanted = (recorded.folder / filename).stat().st_size, recorded.score.size_bytes
    if size != wanted:
        raise Failed(f"{filename} has {size} bytes, recorded {wanted}", size_bytes=size, recorded=wanted)
    return f"{filename} has {size} bytes as recorded", {"size_bytes": size}


def _budget(recorded: Recorded) -> Found:
    """The recorded figures keep every limit; latency has a check of its own."""
    score, dense, goal = recorded.score, recorded.dense_score, recorded.record["goal"]
    limits = [limit for limit in recorded.budget.limits if limit.quantity != "latency"]
    spent = {limit.quantity: limit.used(score, dense, goal) for limit in limits}
    broken = [
        f"{limit.quantity} has no figure" if used is None else limit.exceeded(used)
        for limit, used in zip(limits, spent.values(), strict=True)
        if used is None or used > limit.value
    ]
    if broken:
        raise Failed("; ".join(broken), **spent)
    return f"{len(limits)} limits beside latency are kept", spent


def _latency(recorded: Recorded) -> Found:
    """Measured again, in fresh processes against the dense model; fails where even the lower end is over the limit."""
    target, name = recorded.target, recorded.runs
    inputs, _ = recorded.reference
    candidate = recorded.folder / recorded.formats[name] if name == "onnx" else recorded.model
    dense = measure.artefact(recorded.dense, inputs.rows(target.batch), target)  # latency depends on no weight's value
    found = measure.timed(candidate, dense, inputs, target, processes=_PROCESSES)
    assert found.ratio is not None and found.ratio_low is not None and found.ratio_high is not None  # dense was given
    figures: dict[str, Any] = {name: getattr(found, name) for name in _LATENCIES}
    figures["runtime"] = plugins.load("runtime", target.runtime, recorded.folders)().version()
    said = f"{found.ms:.4g} ms, {found.ratio:.1%} of dense ({found.ratio_low:.1%} to {found.ratio_high:.1%})"
    for limit in (limit for limit in recorded.budget.limits if limit.quantity == "latency"):
        low = found.ratio_low if limit.relative else found.ms_low
        high = found.ratio_high if limit.relative else found.ms_high
        figures |= {"limit": str(limit), "surely_inside": high <= limit.value}
        if low > limit.value:
            raise Failed(f"latency {said} is over the limit {limit}", **figures)
    return f"latency {said}", figures
