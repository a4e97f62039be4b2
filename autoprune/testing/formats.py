"""The laws of `plugins.Format`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.task import Inputs

__all__ = ["LAWS", "check_format"]

BATCHES = (1, 2, 5)


class Plain(nn.Module):
    """A convolution, a norm with statistics, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


class Rich(nn.Module):
    """Integer and keyword inputs, an argument that is None, tied weights, a buffer that is not
    saved, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("position", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, ids: Tensor, extra: Any = None, *, mask: Tensor) -> dict[str, Any]:
        x = (self.embedding(ids) + self.position) * mask[..., None]
        return {"logits": self.out(x), "pooled": (x.mean(1),)}


def models() -> list[tuple[Callable[[], nn.Module], Inputs]]:
    """Factories of small models, with inputs."""
    words = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    rich = Inputs((words,), {"mask": torch.ones(3, 6), "extra": None})
    return [(Plain, images()), (Rich, rich)]


def images() -> Inputs:
    """Three images for `Plain`."""
    return Inputs.of(torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)))


def loaded_computes_what_was_saved(form: plugins.Format, folder: Path) -> None:
    """For any batch, to 1e-5; one file is written, no other."""
    for build, inputs in models():
        model = build().eval()
        form.save(model, inputs, folder / form.filename)
        assert [file.name for file in folder.iterdir()] == [form.filename]
        for batch in BATCHES:
            outputs = form.load(folder / form.filename, build)(inputs.rows(batch))
            with torch.no_grad():
                output = inputs.rows(batch).call(model)
            rich = isinstance(output, dict)
            expected = [output["logits"], output["pooled"][0]] if rich else [output]
            assert [tensor.shape for tensor in outputs] == [tensor.shape for tensor in expected]
            off = max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True))
            assert off <= 1e-5, f"outputs at batch {batch} are off by {off:.2g}"


def saving_leaves_the_model_as_it_was(form: plugins.Format, folder: Path) -> None:
    """Modes of every module, and every tensor."""
    model = Plain()
    model.bn.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    form.save(model, images(), folder / form.filename)
    assert (model.training, model.bn.training) == (True, False), "it changed a mode"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def a_truncated_file_is_refused(form: plugins.Format, folder: Path) -> None:
    """By a ModelError that names the file."""
    path = folder / form.filename
    form.save(Plain().eval(), images(), path)
    path.write_bytes(path.read_bytes()[:-200])
    try:
        form.load(path, Plain)(images())
    except ModelError as error:
        assert form.filename in str(error), f"the error does not name {form.filename}: {error}"
        return
    raise AssertionError("a truncated file was loaded")


LAWS: tuple[Callable[[plugins.Format, Path], None], ...] = (
    loaded_computes_what_was_saved,
    saving_leaves_the_model_as_it_was,
    a_truncated_file_is_refused,
)


def check_format(form: plugins.Format) -> None:
    """Hold a format to every law, in temporary folders. Raises AssertionError."""
    for law in LAWS:
        with tempfile.TemporaryDirectory() as folder:
            law(form, Path(folder))
