"""The public surface: names, docstrings, no torch on import, and the examples of the README in small."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from models import member
from torch import nn

import autoprune
from autoprune.errors import AutopruneError, InputError, PlanError
from autoprune.plan import Choice, Plan

PUBLIC = [
    "AutopruneError",
    "Budget",
    "BudgetError",
    "Candidate",
    "Choice",
    "CodeError",
    "Group",
    "InputError",
    "LatencyFigures",
    "Limit",
    "MissingPackage",
    "ModelError",
    "Plan",
    "PlanError",
    "Score",
    "SearchResult",
    "StudyError",
    "Target",
    "TrainingError",
    "TrialsError",
    "VerificationError",
    "groups",
    "load",
    "measure",
    "prune",
    "search",
]


def test_the_public_names_are_these() -> None:
    assert sorted(autoprune.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(autoprune))
    assert all(getattr(autoprune, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="nothing"):
        autoprune.nothing  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(autoprune, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        for attribute, member_ in vars(value).items():
            if not attribute.startswith("_") and (
                inspect.isfunction(member_)
                or isinstance(member_, (property, classmethod, staticmethod))
            ):
                assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute}"


def test_every_error_is_one_of_ours_with_an_exit_status() -> None:
    for name in PUBLIC:
        value = getattr(autoprune, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, AutopruneError) and value.exit_status in (1, 2, 3, 4, 5)


def test_importing_it_does_not_import_torch() -> None:
    code = (
        "import sys, autoprune, autoprune.errors, autoprune.target, autoprune.plugins, autoprune.space\n"
        "assert autoprune.Plan and autoprune.__version__\n"
        "bad = {'torch', 'optuna', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\nassert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_groups() -> None:
    model, inputs = member("plain").make()
    table = autoprune.groups(model, inputs.args[0])
    assert [
        (group.name, group.size, group.refusal) for group in table if group.level == "units"
    ] == [("0.0", 8, None), ("2.0", 12, None), ("5", 4, "reaches the network's output")]
    assert "refused: reaches the network's output" in str(table) and "0.0:units" in repr(table)


def test_prune_by_ratio_leaves_the_model_alone() -> None:
    model, inputs = member("Residual").make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller = autoprune.prune(model, inputs, 0.5)
    assert (
        smaller.stem[0].out_channels,
        smaller.inner[0].out_channels,
        smaller.head.in_features,
    ) == (6, 5, 6)
    assert smaller(*inputs.args).shape == model(*inputs.args).shape
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_prune_by_plan_and_by_patterns_agree() -> None:
    model, inputs = member("flattened").make()
    plan = Plan(
        {
            "0.0:units": Choice("structured", 0.5, "l2"),
            "3:units": Choice("neuron", 0.3),
            "6:weights": Choice("weight", 0.5),
        }
    )
    patterns = {
        "0*": {"technique": "structured", "ratio": 0.5, "criterion": "l2"},
        "3": {"technique": "neuron", "ratio": 0.3},
        "6": {"technique": "weight", "ratio": 0.5},
    }
    by_plan, by_pattern = (
        autoprune.prune(model, inputs, plan),
        autoprune.prune(model, inputs, patterns),
    )
    assert {name: tensor.shape for name, tensor in by_plan.state_dict().items()} == {
        name: tensor.shape for name, tensor in by_pattern.state_dict().items()
    }
    assert torch.equal(by_plan(*inputs.args), by_pattern(*inputs.args))
    assert int((by_plan[6].weight == 0).sum()) == 14


def test_prune_by_taylor_with_batches() -> None:
    model, inputs = member("plain").make()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(2)]
    smaller = autoprune.prune(
        model, inputs, 0.5, criterion="taylor", batches=batches, loss=F.cross_entropy
    )
    assert count(smaller) < 0.5 * count(model)
    named = autoprune.prune(
        model, inputs, 0.5, criterion="taylor", batches=batches, loss="cross_entropy"
    )
    assert torch.equal(named(*inputs.args), smaller(*inputs.args))
    with pytest.raises(InputError, match="batches="):
        autoprune.prune(model, inputs, 0.5, criterion="taylor")


def test_prune_to_a_multiple() -> None:
    model, inputs = member("InvertedResidual").make()
    smaller = autoprune.prune(model, inputs, 0.4, multiple_of=4)
    assert smaller.expand.out_channels == 12 and smaller.stem[0].out_channels == 8


def test_prune_several_and_named_inputs() -> None:
    model, inputs = member("SeveralInputs").make()
    assert count(autoprune.prune(model, inputs.args, 0.5)) < count(model)
    model, inputs = member("DictInOut").make()
    assert count(autoprune.prune(model, inputs.kwargs, 0.5)) < count(model)


def test_nothing_to_cut_raises_with_the_reasons() -> None:
    with pytest.raises(PlanError, match=r"nothing can be cut.*network's output"):
        autoprune.prune(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4), 0.5)
    with pytest.raises(PlanError, match="no layer"):
        autoprune.prune(nn.ReLU(), torch.randn(2, 4), 0.5)


@pytest.mark.parametrize("ratio", [0, 1, 1.5, -0.1, True, 0.0])
def test_ratios_that_mean_nothing_are_refused(ratio: float) -> None:
    model, inputs = member("plain").make()
    with pytest.raises(PlanError, match="between 0 and 1"):
        autoprune.prune(model, inputs, ratio)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"convolution": {"technique": "structured", "ratio": 0.5}}, "matches no layer"),
        ({"5": {"technique": "structured", "ratio": 0.5}}, "does not fit"),
        ({"0*": {"technique": "structured"}}, "needs technique and ratio"),
        ({"0*": {"technique": "structured", "ratio": 0.5, "kriterion": "l1"}}, "kriterion"),
        ({"0*": {"technique": "structured", "ratio": 1.5}}, "ratio"),
        ({"0*": {"technique": "structured", "ratio": "half"}}, "ratio"),
        ({"0*": 0.5}, "needs technique and ratio"),
        ({"0*": {"technique": "structurd", "ratio": 0.5}}, "did you mean 'structured'"),
        ({"0*": {"technique": "structured", "ratio": 0.5, "criterion": "l11"}}, "did you mean"),
        (
            {
                "0*": {"technique": "structured", "ratio": 0.5},
                "0.0": {"technique": "structured", "ratio": 0.2},
            },
            "both decide",
        ),
        ({}, "nothing"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns: dict, message: str) -> None:
    model, inputs = member("plain").make()
    with pytest.raises(InputError, match=message):
        autoprune.prune(model, inputs, patterns)


def test_a_plan_for_another_model_is_refused() -> None:
    model, inputs = member("plain").make()
    with pytest.raises(PlanError, match="does not have"):
        autoprune.prune(model, inputs, Plan({"zzz:units": Choice("structured", 0.5)}))


@pytest.mark.slow
def test_measure_against_dense() -> None:
    model, inputs = member("plain").make()
    smaller = autoprune.prune(model, inputs, 0.5)
    score = autoprune.measure(smaller, inputs.rows(1), {"runtime": "eager"}, against=model)
    assert (
        score.params == count(smaller)
        and 0 < score.flops < autoprune.measure(model, inputs.rows(1), {"runtime": "eager"}).flops
    )
    assert score.latency.ratio_low <= score.latency.ratio <= score.latency.ratio_high


def test_prune_with_repair_gives_outputs_nearer_to_the_dense_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
    ).eval()
    inputs = torch.randn(256, 6)
    batches = [(inputs, torch.zeros(256))]
    cut = autoprune.prune(model, inputs[:2], 0.5)
    repaired = autoprune.prune(model, inputs[:2], 0.5, batches=batches, repair=True)
    with torch.no_grad():
        errors = [
            float((smaller(inputs) - model(inputs)).square().mean()) for smaller in (cut, repaired)
        ]
    assert errors[1] < 0.7 * errors[0]
    with pytest.raises(InputError, match="batches="):
        autoprune.prune(model, inputs[:2], 0.5, repair=True)
