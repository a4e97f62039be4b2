"""One pruned model of each family through ONNX and torch.export, and one training step, in a
process of its own."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.formats.onnx import Onnx
from autoprune.formats.program import Program
from autoprune.pruning.coupling.verify import discover, relative_error
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.surgery.forward import output_tensors, outputs_of
from autoprune.task import Inputs
from scripts.benchmarks.coverage.measure import Watch, emit, finite, prepared, reason
from scripts.benchmarks.coverage.models import Case
from scripts.benchmarks.coverage.ours import plan

TOLERANCE = 1e-4  # other kernels, single precision


def measure(case: Case) -> None:
    model, inputs = prepared(case)
    coupling = discover(model, inputs)
    chosen = plan(coupling)
    if not len(chosen):
        emit(status="refused", reason="nothing to prune")
        return
    pruned = Pruner(model, coupling, Importance(model, coupling)).apply(chosen).finish()
    problems, neither = list[str](), list[str]()
    for name, file in (("onnx", Onnx()), ("program", Program())):
        try:
            error = exported(file, pruned, inputs)
            emit(**{f"{name}_error": finite(error)})
            if not error <= TOLERANCE:
                problems.append(f"{name}: differs by {error:.1g}")
        except Exception as problem:
            (neither if dense_fails(file, model, inputs) else problems).append(
                f"{name}: {reason(problem)}"
            )
    try:
        stuck = sorted(moved(model, inputs, case.raw) - moved(pruned, inputs, case.raw))
    except Exception as problem:
        stuck = [f"({reason(problem)})"]
    if stuck:
        problems.append(f"does not train: {', '.join(stuck[:5])}")
    shown = {"reason": "; ".join(problems or neither)} if problems or neither else {}
    emit(
        status="failed" if problems else "dense fails too" if neither else "verified",
        stuck=stuck,
        **shown,
    )


def exported(file: Any, model: nn.Module, inputs: Inputs) -> float:
    """Error of the file's outputs against eager ones, at batch sizes 2 and 3."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.filename
        file.save(model, inputs, path)
        run = file.load(path)
        return max(
            relative_error(run(inputs.rows(n)), outputs_of(model, inputs.rows(n))) for n in (2, 3)
        )


def dense_fails(file: Any, model: nn.Module, inputs: Inputs) -> bool:
    """Whether the dense model cannot be exported either, so that it is not the cut."""
    try:
        return not exported(file, model, inputs) <= TOLERANCE
    except Exception:
        return True


def moved(model: nn.Module, inputs: Inputs, raw: Sequence[str]) -> set[str]:
    """Parameters that one step of Adam changes, in training mode where the forward has one."""
    model = copy.deepcopy(model)
    for module in model.modules():  # what is dropped at random has no gradient
        for name in ("p", "drop_prob", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    sum(losses(model, inputs, raw)).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


def losses(model: nn.Module, inputs: Inputs, raw: Sequence[str]) -> Iterator[Tensor]:
    """On outputs; of detectors on what their heads give, since which of it becomes a detection is
    chance."""
    watch = Watch(model, raw)
    try:
        outputs = output_tensors(inputs.call(model.train()))
    except Exception:  # detectors want targets in training mode
        outputs = output_tensors(inputs.call(model.eval()))
    for output in watch.seen or outputs:
        if output.requires_grad and output.numel():
            yield (output - torch.randn_like(output)).pow(2).mean()
