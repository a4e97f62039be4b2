"""`share: stage` makes one decision for each stage of the model, whatever wraps it; `check` shows which."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from autoprune import config
from autoprune.errors import StudyError
from autoprune.group import Group
from autoprune.pruning.coupling.coupling import trace
from autoprune.reporting import tables
from autoprune.space import Options, Space, Variable
from autoprune.task import Inputs

pytestmark = pytest.mark.promise("stages")
torchvision = pytest.importorskip("torchvision")
IMAGES = torch.randn(2, 3, 64, 64)
UNITS = Options(("structured", "neuron", "heads"))


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


class Stack(nn.Module):
    """Two LSTMs of one width, one of another, on a sequence of seven."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.a, self.b = (nn.LSTM(size, 32, batch_first=True) for size in (16, 32))
        self.c, self.head = nn.LSTM(32, 24, batch_first=True), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(self.words(x))[0])[0])[0][:, -1])


BUILD: dict[str, Callable[[], nn.Module]] = {
    "resnet": torchvision.models.resnet18,
    "wrapped": lambda: Wrapped(torchvision.models.resnet18()),
    "mobilenet": torchvision.models.mobilenet_v2,
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 4, 4, 32, 64, num_classes=5),
    "stack": Stack,
}


@functools.cache
def groups(name: str) -> tuple[Group, ...]:
    inputs = torch.randint(0, 20, (2, 7)) if name == "stack" else IMAGES
    return trace(BUILD[name]().eval(), Inputs.of(inputs)).groups


def decisions(name: str, share: Any, options: Options = UNITS) -> list[Variable]:
    return Space(options, share=share).resolve(groups(name))


def named(variables: list[Variable]) -> dict[str, int]:
    return {variable.name.partition(":")[0]: len(variable.groups) for variable in variables}


RESNET = {"conv1": 1, "layer1": 2, "layer2": 3, "layer3": 3, "layer4": 3}


def test_a_resnet_has_a_stage_for_each_resolution() -> None:
    assert named(decisions("resnet", "stage")) == RESNET


def test_a_wrapped_resnet_has_the_same_stages() -> None:
    found = named(decisions("wrapped", "stage"))
    assert found == {f"backbone.{name}": count for name, count in RESNET.items()}


def test_a_mobilenet_has_a_stage_for_each_resolution() -> None:
    found = decisions("mobilenet", "stage")
    assert [len(variable.groups) for variable in found] == [3, 3, 4, 9, 6]
    assert sum(len(variable.groups) for variable in decisions("mobilenet", None)) == 25


def test_the_blocks_of_a_transformer_are_alike_in_heads_and_in_hidden_units() -> None:
    found = {
        variable.options.techniques: len(variable.groups) for variable in decisions("vit", "stage")
    }
    assert found == {("structured",): 1, ("heads",): 4, ("neuron",): 4}


def test_recurrent_layers_of_one_width_are_a_stage() -> None:
    found = named(decisions("stack", "stage"))
    assert found == {"words": 1, "a-b": 2, "c": 1}


def test_single_weights_have_stages_too() -> None:
    found = named(decisions("resnet", "stage", Options(("weight",))))
    assert found == {"conv1": 1, "layer1": 4, "layer2": 5, "layer3": 5, "layer4": 5, "fc": 1}


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (2, 5), (3, 9), (9, 12)])
def test_a_depth_that_is_named_goes_by_the_modules(depth: int, count: int) -> None:
    assert len(decisions("wrapped", depth)) == count


@pytest.mark.parametrize("share", [None, "stage", 1, 2])
def test_every_group_is_decided_once(share: Any) -> None:
    options = Options(("structured", "neuron", "heads", "weight"))
    variables = decisions("vit", share, options)
    keys = [group.key for variable in variables for group in variable.groups]
    assert len(set(keys)) == len(keys) and len({variable.name for variable in variables}) == len(
        variables
    )
    assert sorted(keys) == sorted(
        group.key for variable in decisions("vit", None, options) for group in variable.groups
    )


def test_check_shows_what_is_decided_together() -> None:
    found = groups("resnet")
    for share, shown in (("stage", True), (None, False)):
        console = Console(record=True, width=200)
        console.print(tables.groups(found, Space(UNITS, share=share).resolve(found)))
        lines = console.export_text().splitlines()
        line = next(line for line in lines if line.strip().startswith("layer2.1.conv1 "))
        assert (line.split()[-1] == "layer2") == shown


def test_a_depth_is_read_from_yaml_and_python_and_written_back() -> None:
    read = config.from_mapping({"space": {"share": {"depth": 2}}})
    assert read.resolved()["space"]["share"] == {"depth": 2}
    again = config.from_mapping({"space": read.resolved()["space"]})
    assert config.space_of(again.resolved()["space"]).share == 2


@pytest.mark.parametrize("share", ["stages", {"depth": 0}, {"stage": 2}, 2])
def test_what_is_neither_a_stage_nor_a_depth_is_refused(share: Any) -> None:
    with pytest.raises(StudyError, match=r"space\.share") as caught:
        config.from_mapping({"space": {"share": share}})
    assert len(str(caught.value)) <= 500
