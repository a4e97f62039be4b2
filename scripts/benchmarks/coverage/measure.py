"""What benchmarks/coverage measures alike on both sides: time against a deep copy, memory, shapes,
errors."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import resource
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.pruning.coupling.verify import relative_error
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.task import Inputs
from scripts.benchmarks.coverage.models import Case

RATIO = 0.5


def emit(**figures: Any) -> None:
    """One line of the child's answer; the parent keeps every line that came before a time limit."""
    print("RESULT " + json.dumps(figures), flush=True)


def prepared(case: Case) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs()
    return lively(model, inputs), inputs


@torch.no_grad()
def lively(model: nn.Module, inputs: Inputs) -> nn.Module:
    """`model` itself, in eval mode, with constant tensors drawn anew and batch norms' statistics
    taken from `inputs`.

    As built, zero heads and layer scales of 1e-6 would hide what a wrong cut does.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and (
            parameter.dim() == 1 or parameter.min() == parameter.max()
        ):
            parameter.copy_(_drawn(name, parameter, generator))
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        inputs.rows(4).map(
            lambda t: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t
        ).call(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()) + 1e-3)
    return model.eval()


def _drawn(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() >= 2 and not bool(tensor.any()):
        return noise / tensor[0].numel() ** 0.5 if tensor.dim() == 2 else 0.5 * noise
    if "bias" in name.rpartition(".")[2]:
        return 0.1 * noise
    return 0.5 + torch.rand(tensor.shape, generator=generator)


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb() -> float:
    """Resident memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that runs longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interleaved(work: Sequence[Callable[[], Any]], budget: float) -> list[float]:
    """Median seconds of each, called in turn: 3 to 9 rounds, fewer where `budget` seconds are over
    (at least one)."""
    seconds: list[list[float]] = [[] for _ in work]
    began = time.monotonic()
    for round_ in range(9):
        for each, taken in zip(work, seconds, strict=True):
            start = time.perf_counter()
            result = each()
            taken.append(time.perf_counter() - start)
            del result
        passed = time.monotonic() - began
        if passed > budget or (round_ >= 2 and passed > budget / 3):
            break
    return [statistics.median(taken) for taken in seconds]


def deep_copy(model: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(model)


class Watch:
    """Outputs of a model and of some modules inside it, by hooks that its copies share."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.seen = seen = []  # type: list[Tensor]

        # a bound method would be copied with the model
        def take(module: nn.Module, given: Any, output: Any) -> None:
            seen.extend(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

        for name in names:
            model.get_submodule(name).register_forward_hook(take)

    def run(self, forward: Callable[[], list[Tensor]]) -> list[Tensor]:
        self.seen.clear()
        outputs = forward()
        return [*outputs, *self.seen]


Pair = Callable[
    [Callable[[nn.Module], nn.Module], Callable[[Inputs], Inputs]],
    tuple[list[Tensor], list[Tensor]],
]


def error_of(pair: Pair) -> dict[str, Any]:
    """Error of cut against masked, in single precision, and in double where that is over 1e-5
    (rounding, or wrong?)."""
    error = relative_error(*pair(lambda model: model, lambda inputs: inputs))
    if error <= 1e-5:
        return {"error": error, "error_precision": "float32"}

    def wide(inputs: Inputs) -> Inputs:
        return inputs.map(lambda t: t.double() if t.is_floating_point() else t)

    try:
        double = relative_error(*pair(lambda model: copy.deepcopy(model).double(), wide))
    except Exception as problem:  # a forward that insists on float32
        return {
            "error": finite(error),
            "error_precision": f"float32 (double: {type(problem).__name__})",
        }
    return {"error": finite(double), "error_float32": finite(error), "error_precision": "float64"}


def effect(dense: nn.Module, pruned: nn.Module, inputs: Inputs) -> float:
    """How far pruned outputs are from dense ones: where that is nothing, a small error proves
    nothing."""
    return finite(relative_error(outputs_of(pruned, inputs), outputs_of(dense, inputs)))


def finite(number: float) -> float:
    """JSON knows no infinity."""
    return number if math.isfinite(number) else 1e30


def shapes_kept(dense: nn.Module, pruned: nn.Module, inputs: Inputs, case: Case) -> bool:
    """Whether outputs have the dense model's shapes at batch sizes 2 and 3; detectors' counts are
    free."""
    start = 1 if case.family == "detection" else 0

    def shapes(model: nn.Module, batch: int) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape[start:]) for tensor in outputs_of(model, inputs.rows(batch))]

    return all(shapes(dense, batch) == shapes(pruned, batch) for batch in (2, 3))


def reason(problem: BaseException) -> str:
    """Kind and message on one line; where there is no message, the line of code that raised it."""
    message = " ".join(str(problem).split())[:200]
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{type(problem).__name__}: {message or (frames[-1].line if frames else '')}"


def output_names(model: nn.Module, inputs: Inputs) -> Iterator[str]:
    """Convolutions and linear layers whose result is an output of the model as it is."""
    made: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def take(module: nn.Module, given: Any, output: Any) -> None:
            made[name] = output

        return take

    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))
    }
    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        places = {(out.data_ptr(), out.numel()) for out in outputs_of(model, inputs.rows(1))}
    finally:
        for handle in handles:
            handle.remove()
    yield from (
        name
        for name, out in made.items()
        if (out.data_ptr(), out.numel()) in places and out.numel()
    )
