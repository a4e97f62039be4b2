"""The laws of `plugins.Runtime`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.measuring.measure import artefact
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["LAWS", "TOLERANCES", "check_runtime"]

# Of the largest output
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3, "int8": 5e-2}


class Scaled(nn.Module):
    """Two keyword inputs; dropout, which an inference leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.drop(self.fc(x)) * scale  # type: ignore[no-any-return]


class Small(nn.Module):
    """Two convolutions, a norm, a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.fc = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.norm(self.conv(x)))))
        return self.fc(hidden.mean((2, 3)))  # type: ignore[no-any-return]


def vectors() -> Inputs:
    """Two rows for `Scaled`."""
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    return Inputs((), {"x": x, "scale": torch.ones(2, 1)})


def images() -> Inputs:
    """Four images for `Small`."""
    return Inputs.of(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def it_says_what_it_takes_and_its_version(runtime: Any, target: Target) -> None:
    """A kind of artefact, dtypes with fp32 among them, a name and a version."""
    assert runtime.artefact in ("module", "onnx"), runtime.artefact
    assert "fp32" in runtime.dtypes and set(runtime.converts) <= set(runtime.dtypes)
    assert set(runtime.dtypes) <= set(TOLERANCES), runtime.dtypes
    spoken, version = runtime.version().split(" ")
    assert spoken and version[0].isdigit(), "version() is a name and a version, as `torch 2.9`"


def a_prepared_call_runs_again_and_again(runtime: Any, target: Target) -> None:
    """It leaves the model's mode and the process's threads as they were."""
    model, threads = Scaled(), torch.get_num_threads()
    target = dataclasses.replace(target, threads=threads, batch=2)
    call = runtime.prepare(artefact(model, vectors(), target), vectors(), target)
    for _ in range(3):
        call()
    assert model.training, "it has set the model to eval mode"
    assert torch.get_num_threads() == threads, "it has changed torch's threads"


def outputs_are_the_models_or_the_dtype_is_refused(runtime: Any, target: Target) -> None:
    """Within the precision's tolerance, for other inputs than it was prepared with."""
    for dtype, tolerance in TOLERANCES.items():
        model, there = Small().eval(), dataclasses.replace(target, dtype=dtype, batch=4)
        try:
            content = artefact(model, images(), there)
            run = runtime.outputs(content, images(), there)
            runtime.prepare(content, images(), there)()
        except InputError as error:
            said = f"asks for {dtype}" in str(error) and "give" in str(error).lower()
            assert dtype != "fp32" and said, f"{dtype} is refused: {error}"
            continue
        assert dtype in runtime.dtypes, f"{dtype} is computed, and is not in its dtypes"
        for inputs in (images(), images().map(lambda x: -0.9 * x), images()):
            (output,) = run(inputs)
            with torch.no_grad():
                expected = inputs.call(model).numpy()
            off = np.abs(output - expected).max() / np.abs(expected).max()
            assert output.dtype == np.float32 and off <= tolerance, f"{dtype} is off by {off:.2g}"


def an_unknown_dtype_is_refused(runtime: Any, target: Target) -> None:
    """By an InputError that says which."""
    there = dataclasses.replace(target, dtype="int3", batch=2)
    try:
        runtime.prepare(artefact(Scaled().eval(), vectors(), there), vectors(), there)
    except InputError as error:
        assert "asks for int3" in str(error), error
        return
    raise AssertionError("dtype int3 was taken")


def models_do_not_get_mixed_up(runtime: Any, target: Target) -> None:
    """Two of one class, prepared in one process; what a runtime caches is not the other's."""
    there, models = dataclasses.replace(target, batch=4), [Small().eval() for _ in range(2)]
    runs = [runtime.outputs(artefact(model, images(), there), images(), there) for model in models]
    for model, run in zip(models, runs, strict=True):
        with torch.no_grad():
            expected = images().call(model).numpy()
        assert np.allclose(run(images())[0], expected, atol=1e-5), "it runs another model"


LAWS: tuple[Callable[[Any, Target], None], ...] = (
    it_says_what_it_takes_and_its_version,
    a_prepared_call_runs_again_and_again,
    outputs_are_the_models_or_the_dtype_is_refused,
    an_unknown_dtype_is_refused,
    models_do_not_get_mixed_up,
)


def check_runtime(name: str, device: str = "cpu") -> None:
    """Hold a runtime, by its name in a study, to every law. Raises AssertionError."""
    target = Target("mine", device=device, runtime=name)
    for law in LAWS:
        law(plugins.load("runtime", name)(), target)
