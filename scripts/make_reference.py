"""Write docs/reference/{study,cli,python,plugins,errors,targets}.md from the code.

Run: .venv/bin/python scripts/make_reference.py [--check]
With --check nothing is written, and the exit status is 1 where a page is not what the code says (a
test runs this).
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference_errors
import reference_targets
import typer
from pydantic import BaseModel

import autoprune
from autoprune import cli, plugins
from autoprune.reading.schema import StudySchema

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- made by scripts/make_reference.py; change the code, not this page -->\n\n"

MEANINGS = {  # key of a study -> what it means, where its name and type do not say it all
    "version": "of the study's format",
    "name": "names the run's folder: `runs/NAME`",
    "task.model": "`zoo:NAME`, `torchvision:NAME`, `module:build`; or `{name: ..., args: {...}}`",
    "task.weights": "a `.safetensors` file or a state dict; null: the model as it is built",
    "task.data": "`zoo:NAME`, `torchvision:NAME`, a folder of images, or `module:data` giving the "
    "splits",
    "task.loss": "a loss of torch.nn.functional, or `module:function(output, target)`",
    "task.metric": "a built-in name, or `{name, function, goal}`",
    "task.adapter": "`module:function(batch) -> (args, kwargs, target)`",
    "training.baseline": "`auto`: trained where it guesses on validation data; `always`; `never`",
    "training.epochs": "of the dense model's training",
    "training.batch_size": "inputs of one step",
    "training.workers": "processes that load data",
    "training.device": "`cpu`, `cuda`, `cuda:N`, or `auto`",
    "training.precision": "of training, by autocast",
    "training.optimizer": "`adamw`, `adam`, `sgd` (Nesterov's where momentum is not 0)",
    "training.learning_rate": "its peak",
    "training.weight_decay": "of weights alone, not of biases and norms",
    "training.momentum": "of SGD, or the first beta of Adam",
    "training.schedule": "`cosine`, `linear`, `constant`, after the warm-up",
    "training.warmup": "share of the steps in which the learning rate rises",
    "recovery.epochs": "of a pruned model's training; 0: reconstruction alone",
    "recovery.distill": "weight of the dense model's outputs in the loss, in [0, 1]",
    "recovery.temperature": "of the distillation",
    "recovery.repair": "start from layers solved by least squares",
    "recovery.iterations": "cuts, with training between (Han et al. 2015)",
    "space.default": "the options of every group",
    "space.layers": "options by pattern on layer names; the first match wins",
    "space.share": "`stage`, or `{depth: N}`: one decision for all layers of a stage, or of a "
    "module N names deep",
    "options.techniques": "which may be chosen; `[]`: left whole",
    "options.ratio": "the least and the highest share removed",
    "options.criteria": "which may be chosen",
    "options.multiple_of": "widths are multiples of it",
    "target.name": "what the target is called in tables",
    "target.device": "`cpu`, `cuda`, ...",
    "target.runtime": "`onnxruntime`, `eager`, `eager_sparse`, `compiled`, `openvino`, `tensorrt`, "
    "`executorch`, `recorded`",
    "target.threads": "of the runtime",
    "target.batch": "inputs of a call",
    "target.dtype": "`fp32`, `bf16`, `fp16`, `int8`",
    "target.multiple_of": "rounds every width, for kernels that compute in steps",
    "target.from": "of `recorded`: the run whose figures answer",
    "budget": "limits by quantity: `latency: 50%` or `2.5ms`, `throughput`, `memory`, `energy`, "
    "`flops`, `params`, "
    "`nonzero_params`, `size`, `size_compressed`, `metric_drop`; ` on TARGET` adds a further "
    "target",
    "search.trials": "plans evaluated without fine-tuning",
    "search.finalists": "the best of them, which are trained; `all`: every plan inside the budget",
    "search.seed": "of everything random",
    "search.objectives": "of the front",
    "search.timeout": "`90s`, `10m`, `1h`",
    "search.stall": "a step in which nothing moves for so long is ended",
    "search.storage": "an Optuna storage by URL; null: the run's journal",
    "search.sampler": "`tpe`, `gp`, `nsga2`, `random`",
    "search.executor": "where trials run",
    "export.formats": "`safetensors`, `onnx`, `program`",
    "folder": "where modules of the study's own lie; its file's folder",
}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, default and meaning of every value of a section, and of the sections in it."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = section_of(field.annotation)
        short = ".".join(key.split(".")[-2:])
        if inner is not None and inner.__name__ not in ("Reference", "MetricSchema"):
            if key in MEANINGS:
                yield key, "", MEANINGS[key]
            yield from keys(inner, f"{key}.")
            continue
        meaning = next(
            (
                MEANINGS[each]
                for each in (key, short, f"options.{name}", f"training.{name}")
                if each in MEANINGS
            ),
            None,
        )
        if meaning is None:
            raise SystemExit(f"the key {key} has no meaning yet: give it one in MEANINGS")
        yield key, default_of(field), meaning


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, if it is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    options = (
        typing.get_args(annotation)
        if isinstance(annotation, types.UnionType)
        or typing.get_origin(annotation) in (typing.Union,)
        else ()
    )
    sections = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
    return sections[0] if sections and len(options) == 2 and type(None) in options else None


def default_of(field: Any) -> str:
    """A default as it is written in YAML; `required` where there is none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{getattr(value, 'name', '')}`"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"`{shown}`" if shown != "" else ""


def study() -> str:
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in keys(StudySchema)]
    text = (
        "# Every key of a study\n\nWhat is not listed is refused, with its file, line and the "
        "nearest key. "
        "In `recovery`, null is as in `task.training`;\nin `space.layers`, null is as in "
        "`space.default`.\n\n"
    )
    return text + "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) + "\n"


def commands() -> str:
    text = (
        "# Command line\n\nExit status: 0 done, 2 bad input or a fault in the study's code, "
        "3 no plan meets the budget, 4 an artefact failed\nverification, "
        "5 trials failed one after the other, 130 interrupted.\n"
    )
    group: Any = typer.main.get_command(cli.app)
    for name in sorted(group.commands):
        command = group.commands[name]
        text += f"\n## autoprune {name}\n\n{command.help.strip()}\n\n| | |\n|---|---|\n"
        for parameter in command.params:
            shown = (
                f"`{parameter.metavar or parameter.name.upper()}`"
                if parameter.param_type_name == "argument"
                else ", ".join(f"`{option}`" for option in parameter.opts)
            )
            help_ = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
            text += f"| {shown.replace('|', chr(92) + '|')} | {help_} |\n"
    return text


def python() -> str:
    text = "# Python\n"
    for name in sorted(autoprune.__all__):
        value = getattr(autoprune, name)
        if not callable(value):
            continue
        documentation = inspect.getdoc(value) or ""
        try:
            signature = str(inspect.signature(value))
        except (TypeError, ValueError):
            signature = ""
        block = (
            f"<!-- not run: a signature -->\n```python\n{name}{signature}\n```\n\n"
            if inspect.isfunction(value)
            else ""
        )
        text += f"\n## {name}\n\n{block}{documentation}\n"
        if inspect.isclass(value):
            for part, method in inspect.getmembers(value):
                own = getattr(method, "__qualname__", "").startswith(f"{value.__name__}.")
                if not part.startswith("_") and inspect.isfunction(method) and own:
                    first = (inspect.getdoc(method) or "").partition("\n\n")[0]
                    said = " ".join(first.split())
                    text += f"\n- `{part}{inspect.signature(method)}`: {said}\n"
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)


_TESTING = """
`autoprune.testing` holds a plug-in of your own to the same laws, in your own tests:

```python
from dataclasses import dataclass

from torch import Tensor

from autoprune.testing import check_criterion


@dataclass(frozen=True)
class Root:
    \"\"\"Square roots of magnitudes.\"\"\"

    scores = "elements"
    needs = ()
    comparable = False

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs().sqrt()


check_criterion(Root())  # AssertionError, with what was broken
```

`check_technique` and `check_format` take a plug-in too, `check_runtime` and `check_quantity` its
name in a study. `runtime: autoprune.testing:FakeRuntime` takes a known time for a call, a formula
of the model's parameters, for tests of what rests on latency.
"""


def laws() -> str:
    text = (
        "# Plug-ins and their laws\n\nA plug-in is one file, or `package.module:Name`. "
        f"`tests/contracts` holds each member to these laws.\n{_TESTING}"
    )
    for name in ("Technique", "Criterion", "Runtime", "Quantity", "Format"):
        protocol = getattr(plugins, name)
        text += f"\n## {name}\n\n{inspect.getdoc(protocol)}\n"
        for part, method in inspect.getmembers(protocol, inspect.isfunction):
            if not part.startswith("_"):
                text += (
                    f"\n- `{part}{inspect.signature(method)}`: "
                    f"{' '.join((inspect.getdoc(method) or '').split())}\n"
                )
    return text


PAGES = {
    "study": study,
    "cli": commands,
    "python": python,
    "plugins": laws,
    "errors": reference_errors.page,
    "targets": reference_targets.page,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; say which pages are out of date"
    )
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / f"{name}.md", MADE + make()
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run scripts/make_reference.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
