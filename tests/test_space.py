"""Space: patterns, what fits, sharing, and the way from a trial to a plan and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoprune.decision import Decisions
from autoprune.errors import StudyError
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.searching.optuna_study.parameters import (
    distributions,
    from_parameters,
    to_parameters,
)
from autoprune.space import (
    Options,
    Space,
    Variable,
    uniform,
    unscored_reason,
)

CONV = Group("layer1.0.conv", "units", ("layer1.0.conv", "layer1.1.conv"), ("conv", "conv"), (32,))
SECOND = Group("layer2.conv", "units", ("layer2.conv",), ("conv",), (24,))
HIDDEN = Group("head.0", "units", ("head.0",), ("linear",), (20,))
OUTPUT = Group(
    "head.2", "units", ("head.2",), ("linear",), (10,), refusal="reaches the network's output"
)
WEIGHTS = tuple(
    Group(name, "weights", (name,), (kind,), (8, 8))
    for name, kind in (
        ("layer1.0.conv", "conv"),
        ("layer1.1.conv", "conv"),
        ("layer2.conv", "conv"),
        ("head.0", "linear"),
        ("head.2", "linear"),
    )
)
GROUPS = (CONV, SECOND, HIDDEN, OUTPUT, *WEIGHTS)


def by_name(space: Space, **options: Any) -> dict[str, Variable]:
    return {variable.name: variable for variable in space.resolve(GROUPS, **options)}


def test_the_default_is_filtered_to_what_fits() -> None:
    found = by_name(Space())
    assert found["layer1.0.conv:units"].options.techniques == ("structured",)
    assert found["head.0:units"].options.techniques == ("neuron",)
    assert found["head.0:weights"].options.techniques == ("weight", "sparse")
    assert "head.2:units" not in found and "head.2:weights" in found
    assert len(found) == 3 + 5


def test_the_first_pattern_that_matches_wins() -> None:
    first, second = (
        Options(("structured",), (0.0, 0.3), ("l1",)),
        Options(("structured",), (0.0, 0.6), ("l2",)),
    )
    found = by_name(Space(Options(("neuron",)), {"layer2": first, "layer*": second}))
    assert found["layer2.conv:units"].options == first
    assert found["layer1.0.conv:units"].options == second
    turned = by_name(Space(Options(("neuron",)), {"layer*": second, "layer2": first}))
    assert turned["layer2.conv:units"].options == second


@pytest.mark.parametrize("pattern", ["head", "head.*", "hea?", "head.0"])
def test_a_pattern_names_a_layer_or_a_module_that_holds_it(pattern: str) -> None:
    found = by_name(Space(layers={pattern: Options(techniques=())}))
    assert "head.0:units" not in found and "layer2.conv:units" in found


def test_no_techniques_leaves_layers_alone() -> None:
    found = by_name(Space(layers={"head": Options(techniques=())}))
    assert not any(name.startswith("head") for name in found)


def test_a_pattern_reaches_a_group_through_any_of_its_layers() -> None:
    found = by_name(Space(layers={"layer1.1.conv": Options(techniques=())}))
    assert (
        "layer1.0.conv:units" not in found
        and "layer1.0.conv:weights" in found
        and "layer1.1.conv:weights" not in found
    )


def test_two_patterns_for_coupled_layers_are_refused_naming_both() -> None:
    space = Space(
        layers={
            "layer1.0.*": Options(("structured",), (0.0, 0.3)),
            "layer1.1.*": Options(("structured",), (0.0, 0.6)),
        }
    )
    with pytest.raises(StudyError, match=r"'layer1\.0\.\*' .*'layer1\.1\.\*'"):
        space.resolve(GROUPS)
    same = Options(("structured",), (0.0, 0.3))
    assert Space(layers={"layer1.0.*": same, "layer1.1.*": same}).resolve(GROUPS)


def test_a_pattern_that_matches_nothing_names_the_nearest_layer() -> None:
    with pytest.raises(
        StudyError, match=r"'layer2\.conf' matches no layer \(did you mean 'layer2\.conv'\?\)"
    ) as caught:
        Space(layers={"layer2.conf": Options()}).resolve(GROUPS)
    assert caught.value.key == "space.layers.layer2.conf"


@pytest.mark.parametrize(("pattern", "technique"), [("head", "structured"), ("layer2", "neuron")])
def test_a_named_technique_that_does_not_fit_is_an_error(pattern: str, technique: str) -> None:
    with pytest.raises(StudyError, match=f"technique '{technique}' does not fit"):
        Space(layers={pattern: Options((technique,))}).resolve(GROUPS)


def test_nothing_left_is_an_error_with_the_refusals() -> None:
    with pytest.raises(
        StudyError, match=r"nothing is left to prune.*head\.2: reaches the network's output"
    ):
        Space(Options(techniques=())).resolve(GROUPS)
    with pytest.raises(StudyError, match="nothing is left"):
        Space(Options(ratio=(0.0, 0.0))).resolve(GROUPS)


def test_sharing_by_stage() -> None:
    groups = [replace(group, stage=group.name.partition(".")[0]) for group in GROUPS]
    found = {variable.name: variable for variable in Space(share="stage").resolve(groups)}
    assert set(found) == set(by_name(Space(share=1)))
    assert set(found) == {
        "layer1:units",
        "layer2:units",
        "head:units",
        "layer1:weights",
        "layer2:weights",
        "head:weights",
    }
    assert [group.name for group in found["layer1:weights"].groups] == [
        "layer1.0.conv",
        "layer1.1.conv",
    ]
    plan = uniform([found["layer1:weights"]], ("sparse",), 0.5)
    assert dict(plan) == {
        "layer1.0.conv:weights": Choice("sparse", 0.5),
        "layer1.1.conv:weights": Choice("sparse", 0.5),
    }


def test_no_group_is_lost_or_decided_twice_when_options_differ_inside_a_stage() -> None:
    groups = [
        *GROUPS,
        Group("layer1.2.fc", "units", ("layer1.2.fc",), ("linear",), (16,)),
        Group("layer1.3.fc", "units", ("layer1.3.fc",), ("linear",), (16,)),
    ]
    variables = Space(share=1).resolve(groups)
    assert [len(variable.groups) for variable in variables if variable.name.endswith("units")] == [
        1,
        1,
        1,
        2,
    ]
    decided = [group.key for variable in variables for group in variable.groups]
    assert sorted(decided) == sorted(group.key for group in groups if group.refusal is None)
    assert len({variable.name for variable in variables}) == len(variables)


@pytest.mark.parametrize("share", [None, "stage"])
def test_a_plan_comes_back_from_its_parameters(share: Any) -> None:
    variables = Space(share=share).resolve(GROUPS)
    plan = uniform(variables, ("structured", "sparse"), 0.37)
    for each in (plan, Plan()):
        decisions = Decisions.of_plan(variables, each)
        flat = to_parameters(decisions)
        assert decisions.plan == each and from_parameters(variables, flat) == decisions
        assert set(flat) == set(distributions(variables)) and len(flat) == 3 * len(variables)


def test_uniform_clips_to_the_range_and_takes_the_first_that_is_offered() -> None:
    variables = Space(Options(ratio=(0.2, 0.6), criteria=("l2", "l1"))).resolve(GROUPS)
    plan = dict(uniform(variables, ("neuron", "weight"), 0.95))
    assert plan["head.0:units"] == Choice("neuron", 0.6, "l2") and plan["head.0:weights"] == Choice(
        "weight", 0.6, "l2"
    )
    assert "layer2.conv:units" not in plan
    assert dict(uniform(variables, ("neuron",), 0.1))["head.0:units"].ratio == 0.2


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("multiple_of", [4, 8])
def test_widths_are_rounded_to_a_multiple(ratio: float, multiple_of: int) -> None:
    variable = by_name(Space(), multiple_of=multiple_of)["layer1.0.conv:units"]
    kept = round(32 * (1 - variable.round_ratio(CONV, ratio)))
    assert kept % multiple_of == 0 and multiple_of <= kept <= 32
    assert abs(kept - 32 * (1 - ratio)) <= multiple_of / 2 or kept == multiple_of
    assert variable.round_ratio(CONV, variable.round_ratio(CONV, ratio)) == pytest.approx(
        variable.round_ratio(CONV, ratio)
    )


def test_the_technique_keeps_the_rounded_width() -> None:
    import torch

    from autoprune.pruning.ranking import keep_most_important

    variable = by_name(Space(), multiple_of=8)["layer2.conv:units"]
    for ratio in (0.1, 0.3, 0.5, 0.66, 0.9):
        assert (
            int(keep_most_important(torch.rand(24), variable.round_ratio(SECOND, ratio)).sum()) % 8
            == 0
        )


def test_weights_and_small_groups_are_not_rounded() -> None:
    variables = by_name(Space(), multiple_of=16)
    assert variables["head.0:units"].round_ratio(HIDDEN, 0.33) == 0.33
    assert variables["layer2.conv:weights"].round_ratio(WEIGHTS[2], 0.33) == 0.33


@pytest.mark.parametrize("high", [0.5, 0.8, 0.9])
def test_a_rounded_width_stays_in_the_range(high: float) -> None:
    variable = by_name(Space(Options(ratio=(0.0, high))), multiple_of=8)["layer1.0.conv:units"]
    plan = uniform([variable], ("structured",), 1.0)
    assert plan.choices["layer1.0.conv:units"].ratio <= high + 1e-9
    assert Decisions.of_plan([variable], plan)["layer1.0.conv:units"].ratio <= high


def test_each_group_is_offered_the_criteria_that_fit_its_level() -> None:
    found = by_name(Space(Options(criteria=("l1", "lamp", "geometric_median"))))
    assert found["layer2.conv:units"].options.criteria == ("l1", "geometric_median")
    assert found["layer2.conv:weights"].options.criteria == ("l1", "lamp")


def test_a_group_that_no_criterion_fits_is_not_decided() -> None:
    found = by_name(Space(Options(criteria=("lamp",))))
    assert found and all(name.endswith(":weights") for name in found)


def test_what_the_model_knows_of_a_criterion_counts() -> None:
    def refuses(criterion: str, group: Group) -> str | None:
        return unscored_reason(criterion, group) or (
            "no norm" if criterion == "batchnorm" and group == SECOND else None
        )

    space = Space(Options(criteria=("l1", "batchnorm")))
    found = {variable.name: variable for variable in space.resolve(GROUPS, refuses=refuses)}
    assert found["layer2.conv:units"].options.criteria == ("l1",)
    assert found["layer1.0.conv:units"].options.criteria == ("l1", "batchnorm")
    named = Space(layers={"layer2": Options(criteria=("l1", "batchnorm"))})
    with pytest.raises(
        StudyError, match=r"criterion 'batchnorm' does not fit .*layer2\.conv: no norm"
    ) as caught:
        named.resolve(GROUPS, refuses=refuses)
    assert caught.value.key == "space.layers.layer2.criteria"


@pytest.mark.parametrize(
    ("options", "says", "key"),
    [
        (
            Options(("weight",), criteria=("l1", "batchnorm")),
            "criterion 'batchnorm' does not fit",
            "criteria",
        ),
        (
            Options(("structured", "weight"), criteria=("lamp",)),
            "'structured' does not fit .*lamp is for weights",
            "techniques",
        ),
        (Options(("n_of_m(m=16)", "weight")), "input size that 16 divides, got 8", "techniques"),
        (Options(("n_of_m(m=1)",)), "at least 2, got 1", "techniques"),
        (Options(criteria=("random(sed=1)",)), "did you mean 'seed'", "criteria"),
    ],
)
def test_what_is_named_and_of_no_use_is_an_error(options: Options, says: str, key: str) -> None:
    with pytest.raises(StudyError, match=says) as caught:
        Space(layers={"layer2": options}).resolve(GROUPS)
    assert caught.value.key == f"space.layers.layer2.{key}"


def test_what_a_pattern_takes_over_from_the_default_is_not_named_by_it() -> None:
    default = Options(criteria=("l1", "geometric_median", "lamp"))
    space = Space(default, {"layer2": Options(default.techniques, (0.0, 0.5), default.criteria)})
    found = by_name(space)
    assert found["layer2.conv:units"].options == Options(
        ("structured",), (0.0, 0.5), ("l1", "geometric_median")
    )


def test_a_pattern_that_an_earlier_one_takes_all_layers_of_is_no_error() -> None:
    first = Options(("structured", "weight"), criteria=("l1",))
    space = Space(
        layers={"layer2.conv": first, "layer2.*": Options(("weight",), criteria=("lamp",))}
    )
    assert by_name(space)["layer2.conv:weights"].options.criteria == ("l1",)


@pytest.mark.parametrize(
    ("technique", "high", "wanted"),
    [
        ("n_of_m", 0.9, {0.0: 0.0, 0.1: 0.0, 0.2: 0.25, 0.6: 0.5, 0.9: 0.75}),
        ("n_of_m", 0.4, {0.4: 0.25}),
        ("block(rows=4, columns=4)", 0.9, {0.3: 0.25, 0.9: 0.75}),
        ("n_of_m(m=8)", 0.9, {0.9: 0.875}),
        ("weight", 0.9, {0.33: 0.33}),
    ],
)
def test_a_plan_says_the_share_that_really_goes(
    technique: str, high: float, wanted: dict[float, float]
) -> None:
    space = Space(Options((technique,), (0.0, high)))
    variable = by_name(space)["layer2.conv:weights"]
    for ratio, share in wanted.items():
        assert variable.choices(technique, ratio, "l1")["layer2.conv:weights"].ratio == share
        plan = uniform([variable], (technique,), ratio)
        assert Decisions.of_plan([variable], plan).plan == plan


def test_a_pattern_may_have_a_multiple_of_its_own() -> None:
    space = Space(layers={"layer1*": Options(multiple_of=16)})
    variables = by_name(space, multiple_of=4)
    assert variables["layer1.0.conv:units"].multiple_of == 16
    assert variables["layer2.conv:units"].multiple_of == 4


def test_heads_are_counted_as_they_are() -> None:
    heads = Group("attention", "units", ("attention",), ("attention",), (32,))
    (variable,) = Space(Options(("heads",))).resolve([heads], 8)
    assert variable.round_ratio(heads, 0.1) == 0.1


def test_blocks_are_decided_one_by_one_and_go_whole() -> None:
    found = [
        Group(f"stage.{name}", "blocks", (f"stage.{name}",), ("block",), (1,)) for name in "ab"
    ]
    variables = Space(Options(("depth",), (0.1, 0.4)), share="stage").resolve(found)
    assert [variable.name for variable in variables] == ["stage.a:blocks", "stage.b:blocks"]
    # whatever the range of widths
    assert all(variable.options.ratio == (0.0, 1.0) for variable in variables)
    a, b = variables
    assert a.choices("depth", 0.5, "l1") == {"stage.a:blocks": Choice("depth", 1.0)}
    assert b.choices("depth", 0.49, "l1") == {"stage.b:blocks": Choice("depth", 0.0)}
    plan = Plan(a.choices("depth", 0.7, "l1"))
    assert Decisions.of_plan(variables, plan).plan == plan
