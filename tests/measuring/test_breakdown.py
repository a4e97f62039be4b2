"""Cost by layer: shares of a whole, real modules, own FLOPs and parameters."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from marks import slow_but
from torch import nn

from autoprune.measuring import flops
from autoprune.measuring.profiling.per_layer import OTHER, breakdown
from autoprune.target import Target
from autoprune.task import Inputs

RUNTIMES = [
    "eager",
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="not installed"),
    ),
]


class Net(nn.Module):
    """A wide convolution, a narrow one, a shared activation, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU())
        self.wide = nn.Conv2d(96, 96, 3, padding=1)
        self.fc = nn.Linear(96, 10)
        self.scale = nn.Parameter(torch.eye(96))

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(torch.relu(self.wide(self.body(x))).mean((2, 3)) @ self.scale)


@pytest.mark.parametrize("runtime", slow_but(["onnxruntime"], RUNTIMES))
def test_shares_sum_to_one_and_name_real_modules(runtime: str) -> None:
    model, inputs = Net().eval(), Inputs.of(torch.randn(1, 3, 24, 24))
    threads = torch.get_num_threads()
    found = breakdown(model, inputs, Target(runtime=runtime))
    modules = dict(model.named_modules())
    assert found.note is None and torch.get_num_threads() == threads
    assert sum(layer.share or 0.0 for layer in found.layers) == pytest.approx(1)
    assert {layer.name for layer in found.layers} <= {*modules, OTHER}
    assert all(
        layer.kind == type(modules[layer.name]).__name__
        for layer in found.layers
        if layer.name != OTHER
    )
    by_name = {layer.name: layer for layer in found.layers}
    # 32 times the work of the next
    assert max(found.layers, key=lambda layer: layer.share or 0.0).name == "wide"
    counted = flops.count(model, inputs)
    assert sum(layer.flops for layer in found.layers) == counted.total
    assert sum(layer.params for layer in found.layers) == sum(
        each.numel() for each in model.parameters()
    )
    assert by_name["wide"].flops == 96 * 96 * 9 * 24 * 24
    assert (by_name[""].flops, by_name[""].params) == (96 * 96, 96 * 96)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_runtime_without_a_profiler_says_so_and_still_counts() -> None:
    found = breakdown(
        nn.Linear(4, 3).eval(), Inputs.of(torch.randn(1, 4)), Target(runtime="compiled")
    )
    assert "runtime compiled does not tell" in str(found.note)
    assert [(layer.share, layer.latency_ms, layer.flops) for layer in found.layers] == [
        (None, None, 12)
    ]


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = breakdown(model.eval(), Inputs.of(torch.randn(1, 4)), Target(runtime="eager"))
    assert [(layer.name, layer.params) for layer in found.layers if layer.flops] == [
        ("0", 16),
        ("1", 0),
    ]
