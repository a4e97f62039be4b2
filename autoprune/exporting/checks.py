"""The checks of `verify`: each gives what it found, with figures, or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.exporting import agreement, artefact, remeasured, shipped
from autoprune.exporting.held import Check, Failed, Found, Held, mismatches
from autoprune.exporting.lowered import LOWERING
from autoprune.exporting.recorded import Recorded
from autoprune.files import check_safetensors
from autoprune.measuring import measure
from autoprune.measuring.quantization import TOLERANCES
from autoprune.quantities import is_resource
from autoprune.task import Inputs
from autoprune.training import judging, loop
from autoprune.training.loop import Quality

__all__ = ["TOLERANCE", "Check", "Failed", "Found", "checks"]

# Of outputs, relative to the largest recorded one; and of the metric
TOLERANCE = 1e-4
# Of the loss, in fp32 and in fewer bits
_LOSS, _LOSS_LOW = 0.01, 0.1
# Beside the recorded one: the batch must be dynamic, and 1 is what exporters take for a constant
_OTHER_BATCHES = (1, 3)


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
    yield "test metric", partial(_test_metric, recorded)
    yield "size", partial(agreement.sizes, recorded)
    yield "other sizes", partial(agreement.sizes_elsewhere, recorded)
    yield "figures", partial(agreement.agreement, recorded)
    yield "budget", partial(agreement.budget, recorded)
    yield "latency", partial(remeasured.latency, recorded)
    for name in _further(recorded):
        yield f"latency on {name}", partial(remeasured.latency, recorded, name)
    for quantity, name in _resources(recorded):
        where = f"{quantity} on {name}" if name else quantity
        yield where, partial(remeasured.resource, recorded, quantity, name)


def _files(recorded: Recorded) -> Found:
    """Every file is there and is, to the byte, the one that was written."""
    listed: dict[str, dict[str, Any]] = recorded.record["files"]
    needed = {
        artefact.STUDY,
        artefact.PLAN,
        artefact.REFERENCE,
        artefact.WEIGHTS,
        *recorded.formats.values(),
    }
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
    return Found(f"{len(listed)} files are as they were written", {"files": len(listed)})


def _widths(recorded: Recorded) -> Found:
    """The weights have the shapes that the plan records."""
    check_safetensors(recorded.folder / artefact.WEIGHTS)
    with safe_open(recorded.folder / artefact.WEIGHTS, "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    widths = recorded.architecture.widths
    # Of shared tensors one name is
    there = {name: shape for name, shape in widths.items() if name in shapes}
    unlike = [
        f"{name} is {shapes[name]}, recorded {shape}"
        for name, shape in there.items()
        if shapes[name] != shape
    ]
    if unlike or (widths and not there):
        raise Failed(
            "; ".join(unlike) or f"{artefact.WEIGHTS} has none of the recorded tensors",
            tensors=len(unlike),
        )
    return Found(f"{len(widths)} cut tensors have their recorded shapes", {"tensors": len(widths)})


def _counts(recorded: Recorded) -> Found:
    """The dense module, cut to the widths, takes the weights strictly; parameters and FLOPs are the
    recorded ones.

    So are those of the dense module, but for its zeros; FLOPs are of one call of each target's
    batch.
    """
    figures: dict[str, Held] = {}
    for name in ("", *_further(recorded)):
        batch, place = (
            recorded.reference[0].rows(recorded.on(name).batch),
            f"elsewhere.{name}." if name else "",
        )
        known = (
            ("", recorded.model, recorded.score),
            ("dense.", recorded.dense, recorded.dense_score),
        )
        for role, model, score in known:
            counted, score = measure.costs(model, batch), score.on(name)
            for figure in ("params", "flops", *(() if role else ("nonzero_params",))):
                if not (role or name) or getattr(score, figure) is not None:
                    count = getattr(counted, figure)
                    figures[role + place + figure] = Held(count, getattr(score, figure))
            if score.flops is not None and counted.uncounted != score.uncounted:
                raise Failed(
                    f"{role}{place}uncounted {list(counted.uncounted)}, recorded "
                    f"{list(score.uncounted)}"
                )
    own = {name: figures[name].now for name in ("params", "nonzero_params", "flops")}
    if unlike := mismatches(figures):
        raise Failed("; ".join(unlike), **own)
    said = (
        f"{own['params']} parameters, {own['nonzero_params']} of them not zero, "
        f"{own['flops']} FLOPs a call"
    )
    return Found(said, own)


def _outputs(recorded: Recorded, name: str) -> Found:
    """The file of one format gives the recorded outputs, at the recorded batch and at others."""
    plugin = plugins.load("format", name, recorded.folders)()
    return _compare_outputs(
        recorded, plugin.load(recorded.folder / recorded.formats[name], recorded.template)
    )


def _outputs_lowered(recorded: Recorded) -> Found:
    """The model whose layers with zeros run on sparse kernels gives the recorded outputs."""
    model = recorded.lowered

    def run(inputs: Inputs) -> Any:
        with torch.inference_mode():
            return inputs.call(model)

    return _compare_outputs(recorded, run)


def _outputs_shipped(recorded: Recorded) -> Found:
    """The file that the target runs gives, on its runtime in its dtype, the outputs recorded
    there."""
    outputs = shipped.read(recorded.folder)
    return _compare_outputs(
        recorded,
        lambda inputs: inputs.call(recorded.deployed),
        outputs,
        TOLERANCES[recorded.target.dtype],
    )


def _compare_outputs(
    recorded: Recorded,
    run: Callable[[Inputs], Any],
    wanted: list[Tensor] | None = None,
    allowed: float = TOLERANCE,
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
        raise Failed(
            f"outputs are off by {worst:.2g} of the largest, allowed is {allowed:g}", **errors
        )
    return Found(f"outputs are the recorded ones within {worst:.2g}", errors)


def _error(batch: int, count: int, recorded: Any, got: Any) -> float:
    """The relative error; of the first `batch` rows where the output has a row for each of the
    `count` inputs."""
    finite = recorded.double().nan_to_num(0, 0, 0).abs()
    rows = recorded[:batch] if recorded.dim() and recorded.shape[0] == count else recorded
    return artefact.error(rows, got, float(finite.max()) if finite.numel() else None)


def _metric(recorded: Recorded) -> Found:
    """The reloaded weights, or what the target runs in another dtype than fp32, reach the recorded
    metric and loss."""
    task, target, score = recorded.task, recorded.target, recorded.score
    quality = _judge_split(recorded, "validation")
    if score.metric is None:
        raise Failed(
            f"no metric is recorded; now it is {quality.metric:.6g}", metric=quality.metric
        )
    figures = {"metric": quality.metric, "recorded": score.metric}
    problems = _quality(recorded, "metric", quality.metric, score.metric)
    if score.loss is not None:
        figures |= {"loss": quality.loss, "recorded_loss": score.loss}
        problems += mismatches(
            {"loss": Held(quality.loss, score.loss, _LOSS if target.dtype == "fp32" else _LOSS_LOW)}
        )
    if problems:
        raise Failed("; ".join(problems), **figures)
    how = "" if target.dtype == "fp32" else f" in {target.dtype} on {target.runtime}"
    unchecked = {} if score.loss is not None else {"loss": "none is recorded"}
    return Found(f"{task.metric.name} is {quality.metric:.6g}{how} as recorded", figures, unchecked)


def _test_metric(recorded: Recorded) -> Found:
    """The same of the test split, where there is one."""
    wanted = recorded.score.test_metric
    if recorded.task.data.test is None or wanted is None:
        why = "none is recorded" if wanted is None else "the study's data has no test split here"
        return Found(f"not checked: {why}", {}, {} if wanted is None else {"test_metric": why})
    metric = _judge_split(recorded, "test").metric
    if problems := _quality(recorded, "test_metric", metric, wanted):
        raise Failed("; ".join(problems), test_metric=metric, recorded=wanted)
    return Found(
        f"{recorded.task.metric.name} on the test split is {metric:.6g} as recorded",
        {"test_metric": metric},
    )


def _judge_split(recorded: Recorded, split: Literal["validation", "test"]) -> Quality:
    task, target = recorded.task, recorded.target
    try:
        device = loop.device(task.training.device).type
    except InputError:
        device = "cpu"  # trained on a device that is not here
    file = None if target.dtype == "fp32" or recorded.runs != "onnx" else recorded.runs_file
    return judging.judge(recorded.model, task, target, split, device, file)


def _quality(recorded: Recorded, name: str, found: float, wanted: float) -> list[str]:
    allowed = TOLERANCES[recorded.target.dtype] * max(1.0, abs(wanted))
    if abs(found - wanted) <= allowed:
        return []
    return [f"{name} ({recorded.task.metric.name}) is {found:.6g}, recorded {wanted:.6g}"]


def _further(recorded: Recorded) -> list[str]:
    """Names of further targets; none where the record is broken, which other checks say."""
    try:
        return [target.name for target in recorded.further]
    except (ValueError, KeyError, TypeError):
        return []


def _resources(recorded: Recorded) -> Iterator[tuple[str, str]]:
    """What a call needs beside time, with the target, where it is recorded or limited there; none
    where the record is broken."""
    try:
        for name in ("", *_further(recorded)):
            scores = (recorded.score.on(name), recorded.dense_score.on(name))
            limited = [limit.quantity for limit in recorded.budget.limits if limit.target == name]
            kept = (quantity for score in scores for quantity in score.resources)
            for quantity in dict.fromkeys((*limited, *kept)):
                if is_resource(quantity):
                    yield quantity, name
    except (ValueError, KeyError, TypeError, AttributeError, InputError):
        return
