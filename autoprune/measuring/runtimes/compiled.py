"""torch.compile: the exported program of the module through Inductor, for the shapes of the inputs
alone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from autoprune.errors import InputError, ModelError
from autoprune.formats._tracing import quiet
from autoprune.measuring.runtimes import _modules
from autoprune.measuring.runtimes._feed import Array
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Compiled"]


@dataclass(frozen=True)
class Compiled:
    """Compiles for the target's device, dtype and threads, once, when it is prepared; 5 s to
    minutes.

    What is compiled is what torch.export sees, one graph without Python in it: forwards under new
    widths (`pruning/surgery/patch_forward.py`) are no break there. No guard is kept, so a call can
    neither compile again nor fall back.
    """

    artefact: Literal["module", "onnx"] = "module"
    dtypes: tuple[str, ...] = tuple(_modules.DTYPES)
    converts: tuple[str, ...] = ()

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call is one inference; it sets torch's number of threads to the target's, as `eager`
        does.

        Raises InputError for a device or dtype that is not here, or without a C++ compiler;
        ModelError for a module that cannot be exported or compiled.
        """
        run, moved = _compile(artefact, inputs, target)
        return _modules.timed_call(run, moved, target)

    def outputs(
        self, artefact: nn.Module, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Array]]:
        """A function from inputs shaped like `inputs` to the module's output tensors; raises as
        `prepare`.

        torch's number of threads is the target's in a call, and what it was afterwards.
        """
        threads = torch.get_num_threads()
        try:
            run, _ = _compile(artefact, inputs, target)
        finally:
            _modules.set_threads(threads)

        @torch.inference_mode()
        def outputs(given: Inputs) -> list[Array]:
            return _modules.as_arrays(_modules.cast(given, target).call(run))

        return outputs

    def version(self) -> str:
        """As `torch.compile 2.14.1`."""
        return f"torch.compile {torch.__version__}"


def _compile(
    artefact: nn.Module, inputs: Inputs, target: Target
) -> tuple[Callable[..., Any], Inputs]:
    """The compiled program, called once, and the inputs as it takes them. Sets torch's number of
    threads."""
    model, moved = _modules.prepare_module("compiled", artefact, inputs, target)
    if target.device == "cpu":
        _require_compiler(target)
    _modules.set_threads(target.threads)  # Inductor writes the number into its loops
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, moved.args, moved.kwargs, strict=False).module(
                check_guards=False
            )
            run: Callable[..., Any] = torch.compile(
                program,
                dynamic=False,
                fullgraph=True,
                options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
            )
            with torch.inference_mode():
                run(*moved.args, **moved.kwargs)
        except Exception as error:
            # torch.export and Inductor raise whatever the traced code or the compiler does
            raise ModelError(
                f"torch.compile cannot compile the model: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:600]}"
            ) from error
    return run, moved


def _require_compiler(target: Target) -> None:
    """Inductor writes C++ for a CPU. It takes the compiler that CXX names, or else g++ (clang++ on
    a Mac)."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise InputError(
            f"target {target.name!r} has runtime compiled, which needs a C++ compiler; there is "
            f"no {name!r} here: "
            "install one (apt install g++), name another in the environment variable CXX, or give "
            "runtime eager"
        )
