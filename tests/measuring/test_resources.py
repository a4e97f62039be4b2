"""Peak memory, energy, compressed size: what they measure, and what is said where they cannot be measured."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from marks import slow_but
from onnx import numpy_helper
from torch import nn

from autoprune import config
from autoprune.budget import Budget
from autoprune.errors import ModelError, StudyError
from autoprune.measuring import measure, resources
from autoprune.measuring.quantities import energy, memory
from autoprune.score import Score
from autoprune.searching.evaluating.on_request import asked_quantities
from autoprune.target import Target
from autoprune.task import Inputs

EAGER, ONNX = Target(runtime="eager"), Target()


def linear(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak")
@pytest.mark.parametrize("target", slow_but([ONNX], [EAGER, ONNX]), ids=["eager", "onnxruntime"])
def test_peak_memory_grows_by_the_weights(target: Target) -> None:
    found = []
    for width in (64, 2048):
        inputs = Inputs.of(torch.randn(1, width))
        artefact = measure.artefact(linear(width).eval(), inputs, target)
        found.append(resources.measure_resources(artefact, inputs, target, ["memory"])["memory"])
    weights = 4 * 2048**2
    # ONNX Runtime holds the file beside what it makes of it
    assert 0.9 * weights < found[1] - found[0] < 6 * weights


def test_a_model_that_no_fresh_process_can_have_is_refused_not_zero() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    inputs = Inputs.of(torch.randn(1, 4))
    with pytest.raises(ModelError, match="cannot be handed to a fresh process"):
        resources.measure_resources(Local(), inputs, EAGER, ["memory"])
    score = measure.measure(Local(), inputs, EAGER)
    assert "memory" not in score.resources and any(
        text.startswith("memory: ") for text in score.unavailable
    )


def test_a_system_that_does_not_tell_the_peak_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(memory, "_PEAK", tmp_path / "status")
    assert "does not tell the peak memory" in str(resources.unavailable("memory", EAGER))
    with pytest.raises(ModelError, match="memory cannot be measured: this system"):
        resources.measure_resources(b"", Inputs.of(torch.ones(1)), ONNX, ["memory"])
    assert resources.unavailable("memory", Target(device="cuda", runtime="eager")) is None
    assert "does not tell what it allocates" in str(
        resources.unavailable("memory", Target(device="cuda"))
    )


def test_energy_is_the_counters_move_over_the_calls() -> None:
    used = [0.0]

    def call() -> None:
        used[0] += 2.5

    assert energy.of_call(call, lambda: used[0], seconds=0) == pytest.approx(2.5)
    with pytest.raises(ModelError, match="did not move"):
        energy.of_call(lambda: None, lambda: 7.0, seconds=0)


def test_without_zeus_or_counter_there_is_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'autoprune[energy]'" in str(energy.Energy().unavailable(ONNX))
    monkeypatch.undo()
    pytest.importorskip("zeus")
    from zeus.device.cpu import rapl

    monkeypatch.setattr(rapl, "rapl_is_available", lambda: False)
    monkeypatch.setattr(
        energy,
        "read_cpus",
        lambda: (_ for _ in ()).throw(rapl.ZeusRAPLNotSupportedError("no RAPL")),
    )
    assert "no counter of its CPU's energy" in str(energy.Energy().unavailable(ONNX))


def test_counters_add_up_packages_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Packages(list[Any]):
        def get_total_energy_consumption(self, index: int) -> Any:
            return self[index]

    packages = Packages(
        [SimpleNamespace(cpu_mj=5.0, dram_mj=None), SimpleNamespace(cpu_mj=7.0, dram_mj=1.0)]
    )
    monkeypatch.setitem(sys.modules, "zeus.device", SimpleNamespace(get_cpus=lambda: packages))  # type: ignore[arg-type]
    assert energy.read_cpus()() == 13.0


def test_zeros_compress_and_values_do_not() -> None:
    dense, masked = linear(64), linear(64)
    with torch.no_grad():
        masked[0].weight[8:] = 0  # type: ignore[index]
    sizes = [resources.compressed_bytes(resources.stored_file(model)) for model in (dense, masked)]
    assert sizes[1] < 0.3 * sizes[0]
    assert 0.85 < sizes[0] / (4 * 64 * 64) < 1.1


def test_a_cut_graph_is_stored_with_the_trained_models_values() -> None:
    dense, trained = linear(8).eval(), linear(8).eval()
    inputs = Inputs.of(torch.randn(2, 8))
    content = measure.artefact(dense, inputs, ONNX)
    stored = onnx.load_from_string(resources.stored_file(content, trained))
    (weight,) = [each for each in stored.graph.initializer if each.name == "0.weight"]
    assert torch.equal(torch.from_numpy(numpy_helper.to_array(weight).copy()), trained[0].weight)
    assert resources.stored_file(content) == content


def test_what_is_asked_for_and_not_here_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def study(budget: dict[str, str], *objectives: str) -> Any:
        return SimpleNamespace(
            budget=Budget.parse(budget),
            search=SimpleNamespace(objectives=objectives),
            target=Target(name="here"),
        )

    monkeypatch.setattr(energy.Energy, "unavailable", lambda self, target: "no counter")
    assert asked_quantities(study({"latency": "50%"}, "metric")) == ()
    assert asked_quantities(study({"size_compressed": "50%"}, "metric", "memory")) == (
        "size_compressed",
        "memory",
    )
    with pytest.raises(
        StudyError,
        match=r"key 'budget.energy': energy cannot be measured for target 'here': no counter",
    ):
        asked_quantities(study({"energy": "50%"}, "metric"))
    with pytest.raises(StudyError, match=r"key 'search.objectives': energy"):
        asked_quantities(study({}, "metric", "energy"))


def test_objectives_and_budgets_are_read_from_a_study() -> None:
    read = config.from_mapping(
        {
            "budget": {
                "throughput": "150%",
                "memory": "60%",
                "energy": "50%",
                "size_compressed": "200KB",
            },
            "search": {"objectives": ["metric", "throughput", "energy"]},
        }
    )
    assert read.values.search.objectives == ["metric", "throughput", "energy"]
    with pytest.raises(StudyError, match=r"throughput needs a unit: 150% \(of dense\) or 200/s"):
        config.from_mapping({"budget": {"throughput": "200"}})


def test_the_figures_are_named_as_the_quantities() -> None:
    score = Score(size_compressed_bytes=1, resources={"memory": 2, "energy": 3.0})
    assert [score.figure(name) for name in ("size_compressed", "memory", "energy")] == [
        1.0,
        2.0,
        3.0,
    ]
