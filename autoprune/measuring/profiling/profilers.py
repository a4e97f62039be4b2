"""Where a call's time goes, module by module, by the means that each runtime has for it.

PyTorch eager: hooks around every module, so that a module's own time is its call's less its
children's. ONNX Runtime and OpenVINO: their own profilers, whose operators are taken back to
modules: the exporter notes the module of every node, a fused operator goes to the module of the
convolution or product in it. Profiling slows a call down a little, small modules most; so take the
shares, not the sum.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune import plugins, scratch
from autoprune.measuring.profiling.node_scopes import Scopes
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["PROFILERS", "Times"]

# The first calls allocate memory and choose kernels: they are left out
_WARM, _CALLS = 3, 10
# Milliseconds of one call by module; None: what belongs to no module
Times = dict[str | None, float]


def _eager(model: nn.Module, artefact: Any, inputs: Inputs, target: Target) -> Times:
    runs: list[dict[str, float]] = []
    probe = copy.deepcopy(artefact)
    _watch(
        probe, runs, torch.cuda.synchronize if target.device.startswith("cuda") else lambda: None
    )
    call = plugins.load("runtime", target.runtime)().prepare(probe, inputs, target)
    for _ in range(_WARM + _CALLS):
        call()
    return _medians(runs[-_CALLS:])


def _watch(model: nn.Module, runs: list[dict[str, float]], wait: Callable[[], object]) -> None:
    """Hook every module; each call of `model` adds its modules' own milliseconds to `runs`.

    The hooks are closures, which a deep copy of the module shares.
    """
    clock, stack = time.perf_counter, list[list[float]]()
    own: dict[str, float] = defaultdict(float)

    def hook(name: str, module: nn.Module) -> None:
        def begin(*_: Any) -> None:
            wait()
            stack.append([clock(), 0.0])

        def end(*_: Any) -> None:
            wait()
            started, inner = stack.pop()
            spent = clock() - started
            own[name] += (spent - inner) * 1e3
            if stack:
                stack[-1][1] += spent
            else:
                runs.append(dict(own))
                own.clear()

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    for name, module in model.named_modules():
        hook(name, module)


def _onnxruntime(model: nn.Module, artefact: bytes, inputs: Inputs, target: Target) -> Times:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level, options.enable_profiling = 4, True
    provider = (
        "CUDAExecutionProvider" if target.device.startswith("cuda") else "CPUExecutionProvider"
    )
    with scratch.folder() as name:
        folder = Path(name)
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        session = onnxruntime.InferenceSession(artefact, options, providers=[provider])
        names = [argument.name for argument in session.get_inputs()]
        feed = {
            key: tensor.detach().cpu().numpy()
            for key, tensor in zip(names, inputs.tensors(), strict=True)
        }
        for _ in range(_WARM + _CALLS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    scopes = Scopes(model, inputs)
    owners = {
        node.name: scopes.of([node.name, *node.output, *node.input], node.op_type) for node in nodes
    }
    return _sum_times(
        (owners.get(key), statistics.median(times[-_CALLS:])) for key, times in spent.items()
    )


def _openvino(model: nn.Module, artefact: bytes, inputs: Inputs, target: Target) -> Times:
    import openvino

    core = openvino.Core()
    graph = core.read_model(artefact)
    arrays = [tensor.detach().cpu().numpy() for tensor in inputs.tensors()]
    graph.reshape({place: list(array.shape) for place, array in enumerate(arrays)})
    kinds = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": kinds.get(target.dtype, "f32"),
        "INFERENCE_NUM_THREADS": target.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": True,
        "PERF_COUNT": True,
    }
    compiled = core.compile_model(graph, "CPU", settings)
    spent = _node_times(compiled.create_infer_request(), dict(enumerate(arrays)))
    scopes, owners = Scopes(model, inputs), {}
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        fused = (
            str(about["originalLayersNames"].value).split(",")
            if "originalLayersNames" in about
            else []
        )
        owners[node.get_friendly_name()] = scopes.of(
            [*fused, node.get_friendly_name()], str(about["layerType"].value)
        )
    return _sum_times((owners.get(key), ms) for key, ms in spent.items())


def _node_times(request: Any, feed: dict[int, Any], seconds: float = 1.0) -> dict[str, float]:
    """Milliseconds of a call by node. OpenVINO tells the mean since the start; what the first calls
    took goes off."""

    def total(calls: int) -> dict[str, float]:
        return {
            operator.node_name: operator.real_time.total_seconds() * 1e3 * calls
            for operator in request.profiling_info
        }

    for _ in range(_WARM):
        request.infer(feed)
    first, calls, begin = total(_WARM), 0, time.perf_counter()
    while calls < _CALLS or (calls < 50 * _CALLS and time.perf_counter() - begin < seconds):
        request.infer(feed)
        calls += 1
    return {
        name: max(spent - first[name], 0.0) / calls for name, spent in total(_WARM + calls).items()
    }


def _medians(runs: list[dict[str, float]]) -> Times:
    """The median of each key's figures; one that a call does not have counts 0 there."""
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key: statistics.median(run.get(key, 0.0) for run in runs) for key in keys}


def _sum_times(parts: Iterable[tuple[str | None, float]]) -> Times:
    total: Times = defaultdict(float)
    for owner, spent in parts:
        total[owner] += spent
    return dict(total)


PROFILERS: Mapping[str, Callable[[nn.Module, Any, Inputs, Target], Times]] = {
    "eager": _eager,
    "eager_sparse": _eager,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
