"""The page of targets: every key, the bundled targets, the runtimes; read from the source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml

from autoprune import plugins
from autoprune.reading.bundled import bundled_paths
from autoprune.reading.schema import TargetSchema

MEANINGS = {  # key of a target -> its unit or values, and what it means
    "name": (
        "text",
        "what the target is called in tables and in ` on TARGET`; null: the file's name",
    ),
    "device": ("`cpu`, `cuda`, `cuda:1`", "where the model runs"),
    "runtime": ("a name below, or `my_module:Name`", "what runs the model"),
    "threads": (
        "number, at least 1",
        "threads that the runtime may use; counted, not pinned to cores",
    ),
    "batch": (
        "inputs, at least 1",
        "inputs of one call; FLOPs and latency are those of such a call",
    ),
    "dtype": (
        "`fp32`, `bf16`, `fp16`, `int8`",
        "what the model ships in; latency, size and metric are in it, the dense model's too",
    ),
    "multiple_of": (
        "channels, at least 1",
        "every width is rounded to a multiple of it, for kernels that compute in steps",
    ),
    "from": ("folder of a run", "of the runtime `recorded` alone: the run whose figures answer"),
}
TAKES = {"onnx": "an ONNX file", "module": "the PyTorch module"}
NEEDS = {  # runtime -> what has to be installed, and what is particular about it
    "onnxruntime": (
        "nothing more; on CUDA `onnxruntime-gpu`",
        "its threads do not spin, or two models would fight for the cores; fp16 is refused where "
        "there is no kernel of it, as it would compute in fp32 in silence; no bf16",
    ),
    "eager": (
        "nothing more",
        "PyTorch as it is; on CUDA a call ends when the device is done",
    ),
    "eager_sparse": (
        "nothing more",
        "as `eager`, but layers with zeros run on sparse kernels where these were measured faster; "
        "on a CPU in fp32 only",
    ),
    "compiled": (
        "on a CPU a C++ compiler: `g++`, or what `CXX` names",
        "torch.compile of the exported program, for the shapes of the inputs alone; 5 s to minutes "
        "a candidate",
    ),
    "openvino": (
        "`pip install '.[openvino]'`",
        "CPU alone, one stream; fp32 is asked for by name, since by itself it takes bf16 where the "
        "CPU has it; a dtype or a number of threads that the machine has not is refused",
    ),
    "tensorrt": (
        "`pip install '.[tensorrt]'`, an NVIDIA GPU",
        "building an engine takes seconds to minutes a candidate; TF32 is off, int8 symmetric, "
        "`threads` says nothing; not run by us",
    ),
    "executorch": (
        "`pip install '.[executorch]'`",
        "CPU alone, by XNNPACK; operators that it lacks run on portable kernels; not run by us",
    ),
}


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_keys(), "", *_bundled(), "", *_runtimes(), _AFTER])


def _keys() -> list[str]:
    rows = ["| key | default | unit, values | meaning |", "|---|---|---|---|"]
    for name, field in TargetSchema.model_fields.items():
        key = field.alias or name
        if key not in MEANINGS:
            raise SystemExit(f"scripts/reference_targets.py: the key {key} has no meaning yet")
        unit, meaning = MEANINGS[key]
        default = "null" if field.default is None else field.default
        rows.append(f"| `{key}` | `{default}` | {unit} | {meaning} |")
    return rows


def _bundled() -> list[str]:
    columns = ["device", "runtime", "threads", "batch", "dtype", "multiple_of"]
    rows = [
        "## Bundled targets",
        "",
        "`autoprune targets` says which of them run on your machine, and why the others do not.",
        "",
        f"| target | {' | '.join(columns)} | what it is |",
        "|---|---|---|---:|---:|---|---:|---|",
    ]
    for name, path in bundled_paths("target").items():
        text = path.read_text()
        target = TargetSchema.model_validate(yaml.safe_load(text))
        told = text.splitlines()[0].removeprefix("# ")
        values = " | ".join(str(getattr(target, column)) for column in columns)
        rows.append(f"| `{name}` | {values} | {told} |")
    return rows


def _runtimes() -> list[str]:
    rows = [
        "## Runtimes",
        "",
        "| runtime | runs | dtypes | needs | particulars |",
        "|---|---|---|---|---|",
    ]
    found = plugins.names("runtime")
    if set(found) != set(NEEDS):
        raise SystemExit(f"scripts/reference_targets.py: NEEDS has not the runtimes {found}")
    for name in NEEDS:
        fields = _fields(plugins.path("runtime", name))
        needs, quirks = NEEDS[name]
        dtypes = ", ".join(fields["dtypes"])
        rows.append(f"| `{name}` | {TAKES[fields['artefact']]} | {dtypes} | {needs} | {quirks} |")
    return rows


def _fields(path: Path) -> dict[str, Any]:
    """Defaults of a runtime's fields, without importing what it needs."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            try:
                found[node.target.id] = ast.literal_eval(node.value)
            except ValueError:  # those that torch has, of the runtimes that take a module
                found[node.target.id] = tuple(_torch_dtypes(path.parent))
    return found


def _torch_dtypes(folder: Path) -> list[str]:
    for node in ast.parse((folder / "_modules.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DTYPES":
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise SystemExit("scripts/reference_targets.py: where are the dtypes of torch's runtimes?")


_INTRODUCTION = """\
# Targets

A target is a device and the runtime on it. A study names a bundled one (`target: cpu_openvino`), a
YAML file (`target: phone.yaml`), or has it in place (`target: {runtime: openvino, threads: 4}`).
Candidates and the dense model are measured on it, on the machine that searches.
"""

_AFTER = """
int8 is calibrated on training data. Where the runtime runs ONNX, fp16 and int8 are converted into
the file; OpenVINO computes bf16 and fp16 from a fp32 file. A runtime of your own is one file, see
[plug-ins](plugins.md).

## Recorded targets

`target: {runtime: recorded, from: RUN}` measures nothing: the figures are those that RUN measured,
and the latency of a plan that RUN has not measured is predicted. The same study with the same seed
then comes to the same trials bit for bit. Other keys may be left out, and have to be RUN's own.

## Several targets

`budget: {latency: 60%, latency on cpu_eager: 70%}` adds a further target by its name or file. The
limits of all have to be kept. `autoprune measure MODEL --target A --target B` shows them side by
side.
"""
