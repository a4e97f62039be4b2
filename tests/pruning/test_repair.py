"""Repair: exact where what went is a combination of what stayed; nothing changed where nothing was cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import MEMBERS, Member, conv, member
from torch import Tensor, nn

from autoprune.errors import InputError
from autoprune.pruning.coupling.coupling import trace
from autoprune.pruning.coupling.verify import random_keep, relative_error
from autoprune.pruning.reconstruction.im2col import Calls, Contraction
from autoprune.pruning.reconstruction.reconstruct import Reference, repair
from autoprune.pruning.reconstruction.ridge import towards
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.pruning.surgery.shrink import Cut, shrink
from autoprune.task import Batch, Inputs

# two cells of four lose one each
KEEP = torch.tensor([True, True, False, True, True, False, True, True])


def batch(*args: Tensor) -> list[Batch]:
    return [(args, {}, None)]


def dependent(first: nn.Module, cells: int = 1) -> nn.Module:
    """`first` with each output that KEEP drops a combination of the kept ones of its cell."""
    with torch.no_grad():
        for tensor in first.parameters():
            for own, keep in zip(tensor.chunk(cells), KEEP.chunk(cells), strict=True):
                mix = torch.tensor([[0.5, -1.0, 0.25]] * 2)[:, : int(keep.sum())].to(tensor)
                if cells == 1:
                    mix = torch.linspace(-1, 1, 12).view(2, 6).to(tensor)
                own[~keep] = torch.tensordot(mix[: int((~keep).sum())], own[keep].clone(), 1)
    return first


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x, need_weights=False)[0]


WEIGHT = (("1.weight", 1, 1),)
EXACT: dict[str, tuple[Any, Any, tuple[int, ...], tuple[tuple[str, int, int], ...], int]] = {
    "linear": (lambda: nn.Linear(9, 8), lambda: nn.Linear(8, 5), (9,), WEIGHT, 1),
    "linear on tokens, no bias": (
        lambda: nn.Linear(9, 8),
        lambda: nn.Linear(8, 5, bias=False),
        (4, 9),
        WEIGHT,
        1,
    ),
    "conv": (
        lambda: nn.Conv2d(9, 8, 1),
        lambda: nn.Conv2d(8, 5, 3, 2, padding=1, dilation=2),
        (9, 7, 6),
        WEIGHT,
        1,
    ),
    "conv before a batch norm": (
        lambda: nn.Conv2d(9, 8, 1),
        lambda: nn.Sequential(nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5, momentum=1.0)),
        (9, 7, 6),
        (("1.0.weight", 1, 1),),
        1,
    ),
    "grouped": (
        lambda: nn.Conv2d(9, 8, 1),
        lambda: nn.Conv2d(8, 6, 3, groups=2),
        (9, 6, 6),
        (("1.weight", 1, 2),),
        2,
    ),
    "1-d": (
        lambda: nn.Conv1d(9, 8, 1),
        lambda: nn.Conv1d(8, 5, 3, padding="same"),
        (9, 8),
        WEIGHT,
        1,
    ),
    "3-d": (
        lambda: nn.Conv3d(9, 8, 1),
        lambda: nn.Conv3d(8, 5, (1, 2, 3)),
        (9, 4, 4, 5),
        WEIGHT,
        1,
    ),
    "transposed": (
        lambda: nn.Conv2d(9, 8, 1),
        lambda: nn.ConvTranspose2d(8, 5, 3, 2, 1, 1),
        (9, 4, 5),
        (("1.weight", 0, 1),),
        1,
    ),
    "attention": (lambda: nn.Linear(9, 8), Attentive, (4, 9), (("1.mix.in_proj_weight", 1, 1),), 1),
}


@pytest.mark.parametrize("name", EXACT)
def test_removed_inputs_that_are_combinations_of_kept_ones_are_made_up_for_exactly(
    name: str,
) -> None:
    first, second, shape, places, cells = EXACT[name]
    torch.manual_seed(0)
    dense = nn.Sequential(dependent(first(), cells), second()).double()
    data = torch.randn(64, *shape, dtype=torch.float64)
    if "norm" in name:
        dense.train()(data)
        with torch.no_grad():  # torch takes the n - 1 variance for the running one, as repair does
            dense.eval()
    cuts = [
        Cut("0.weight", 0, KEEP),
        Cut("0.bias", 0, KEEP),
        *(Cut(place, dim, KEEP, n) for place, dim, n in places),
    ]
    cut = shrink(dense.eval(), cuts)
    repaired = repair(cut, dense, cuts, batch(data), positions=50, ridge=1e-10)
    fresh = Inputs.of(torch.randn(8, *shape, dtype=torch.float64))
    assert relative_error(outputs_of(cut, fresh), outputs_of(dense, fresh)) > 0.05
    assert relative_error(outputs_of(repaired, fresh), outputs_of(dense, fresh)) < 1e-6


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1), (6, 5, 5)),
        (lambda: nn.ConvTranspose2d(6, 12, 3, 2, groups=6), (6, 4, 4)),
        (lambda: nn.Conv1d(6, 6, 3, groups=6), (6, 9)),
    ],
)
def test_a_depthwise_layer_follows_the_scale_of_its_inputs(
    layer: Any, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(Scale(6, *[1] * (len(shape) - 1)), layer()).double().eval()
    cut = copy.deepcopy(dense)
    factors = torch.tensor([1.0, 2, -1, 4, 0.5, 3], dtype=torch.float64)
    cut[0].by.data.copy_(factors.view_as(cut[0].by))
    repaired = repair(
        cut, dense, [], batch(torch.randn(32, *shape, dtype=torch.float64)), ridge=1e-12
    )
    want = dense[1].weight.transpose(0, 0)
    each = factors.repeat_interleave(len(want) // 6).view(-1, *[1] * (want.dim() - 1))
    assert torch.allclose(repaired[1].weight, want / each, atol=1e-8)
    assert torch.allclose(repaired[1].bias, dense[1].bias, atol=1e-8)


def test_a_layers_solution_is_the_minimum_by_its_gradient() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).double().eval()
    cuts = [Cut("0.weight", 0, KEEP), Cut("0.bias", 0, KEEP), Cut("2.weight", 1, KEEP)]
    data = torch.randn(50, 6, dtype=torch.float64)
    cut = shrink(dense, cuts)
    weight = repair(cut, dense, cuts, batch(data), ridge=0.3)[2].weight
    inputs, wanted = cut[:2](data), dense(data)
    gram = inputs.T @ inputs
    pull = 0.3 * gram.diagonal().mean() * (weight - cut[2].weight)
    assert torch.allclose((wanted - inputs @ weight.T).T @ inputs, pull, atol=1e-8)


def test_before_a_batch_norm_means_do_not_matter() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4))
    dense = nn.Sequential(*layers).double().eval()
    cuts = [Cut("0.weight", 0, KEEP), Cut("0.bias", 0, KEEP), Cut("2.weight", 1, KEEP)]
    data = torch.randn(50, 6, dtype=torch.float64)
    cut = shrink(dense, cuts)
    weight = repair(cut, dense, cuts, batch(data), ridge=0.3)[2].weight
    inputs, wanted = (each - each.mean(0) for each in (cut[:2](data), dense[:3](data)))
    pull = 0.3 * (inputs.T @ inputs).diagonal().mean() * (weight - cut[2].weight)
    assert torch.allclose((wanted - inputs @ weight.T).T @ inputs, pull, atol=1e-8)


def test_of_a_fused_projection_each_part_is_compared_with_its_own_rows() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(Attentive()).eval()
    # of query and key; the other head of the value, to tell them apart
    keep = torch.tensor([False] * 4 + [True] * 4)
    cuts = [
        Cut(f"0.mix.in_proj_{name}", 0, torch.cat([keep, keep, ~keep]))
        for name in ("weight", "bias")
    ]
    cuts.append(Cut("0.mix.out_proj.weight", 1, ~keep))
    cut, data = shrink(dense, cuts), torch.randn(60, 5, 8)
    repaired = repair(cut, dense, cuts, batch(data), ridge=0.01)
    # gives what it gave
    assert torch.equal(repaired[0].mix.in_proj_weight, cut[0].mix.in_proj_weight)
    assert not torch.equal(repaired[0].mix.out_proj.weight, cut[0].mix.out_proj.weight)
    errors = [
        float((model(data) - dense(data)).detach().square().mean()) for model in (repaired, cut)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("count", [40, 7])
def test_ridge_regression_against_the_stacked_least_squares(count: int) -> None:
    torch.manual_seed(0)
    inputs, outputs = torch.randn(2, count, 12).double(), torch.randn(2, count, 3).double()
    kept = torch.rand(2, 12, 3) > 0.4
    for mask in (torch.ones_like(kept), kept):
        (found,) = towards(inputs, outputs, [0.5], mask if mask is kept else None)
        for x, y, d, own in zip(inputs, outputs, found, mask, strict=True):
            damping = (0.5 * x.square().sum() / 12).sqrt() * torch.eye(12).double()
            for column in range(3):
                chosen = own[:, column]
                stacked = torch.cat([x, damping])[:, chosen]
                best = torch.linalg.lstsq(
                    stacked, torch.cat([y, torch.zeros(12, 3).double()])[:, column]
                ).solution
                assert torch.allclose(d[chosen, column], best, atol=1e-5)
                assert bool((d[~chosen, column] == 0).all())


CALLS: tuple[tuple[Any, tuple[int, ...]], ...] = (
    (nn.Linear(5, 3), (2, 4, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (2, 4, 7, 8)),
    (nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(2, 1)), (2, 4, 7, 8)),
    (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 5, 6)),
    (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 1), groups=2), (2, 2, 3, 4, 5)),
    (nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, dilation=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(3, 0), groups=2), (2, 4, 5, 6)),
    (nn.ConvTranspose3d(2, 4, 2, stride=2), (1, 2, 2, 3, 2)),
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "shape"), CALLS, ids=lambda value: str(value)[:40])
def test_every_layer_is_the_product_of_its_rows_and_its_matrix(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    class Check(Calls):
        def layer(self, call: Contraction, name: str, first: int, run: Any) -> Tensor:
            out = run()
            rows = torch.arange(call.rows)[::2]
            product = (call.inputs(rows) @ call.matrix()).transpose(0, 1).flatten(1) + call.bias
            assert torch.allclose(product, call.outputs(out, rows), atol=1e-5)
            before = call.weight.clone()
            call.write(2 * call.matrix())
            assert torch.equal(call.weight, 2 * before)
            checked.append(call.rows)
            return out

    checked: list[int] = []
    with torch.no_grad(), Check(layer):
        out = layer(torch.randn(shape))
    assert checked == [out.numel() // layer.bias.numel()]


def pruned(row: Member) -> tuple[nn.Module, nn.Module, list[Cut], list[Batch]]:
    """A member, the same with a random third of every unit group cut, the cuts, and a batch."""
    dense, inputs = row.make()
    coupling = trace(dense, inputs)
    keep = {
        group: random_keep(coupling, group) for group in (f"{name}:units" for name in row.prunable)
    }
    return (
        dense,
        coupling.apply(dense, keep),
        coupling.cuts(keep),
        [(inputs.args, inputs.kwargs, None)],
    )


@pytest.mark.parametrize("row", MEMBERS, ids=lambda row: row.name)
def test_the_layers_of_an_uncut_model_stay_as_they_are_and_those_of_a_cut_one_stay_finite(
    row: Member,
) -> None:
    dense, cut, cuts, batches = pruned(row)
    before = copy.deepcopy(dense.state_dict())
    reference = Reference(dense, batches)
    for name, tensor in reference.repair(dense, []).state_dict().items():
        assert torch.equal(tensor, before[name]), name
    shapes = {name: tensor.shape for name, tensor in cut.state_dict().items()}
    for name, tensor in reference.repair(cut, cuts).state_dict().items():
        assert tensor.shape == shapes[name] and bool(tensor.isfinite().all()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def network() -> nn.Module:
    torch.manual_seed(0)
    body = (
        conv(3, 16),
        conv(16, 24),
        nn.MaxPool2d(2),
        conv(24, 24, groups=2),
        nn.Conv2d(24, 16, 1),
        nn.ReLU(),
    )
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    for _ in range(30):
        model(torch.randn(16, 3, 8, 8) + torch.randn(3, 1, 1))
    return model.eval()


def cut_network() -> tuple[nn.Module, nn.Module, list[Cut], list[Batch]]:
    dense = network()
    coupling = trace(dense, Inputs.of(torch.randn(2, 3, 8, 8)))
    keep = {
        group.key: random_keep(coupling, group.key)
        for group in coupling.prunable()
        if group.level == "units"
    }
    generator = torch.Generator().manual_seed(1)
    batches = [((torch.randn(50, 3, 8, 8, generator=generator),), {}, None) for _ in range(4)]
    return dense, coupling.apply(dense, keep), coupling.cuts(keep), batches


def test_a_repaired_net_is_much_nearer_to_the_dense_one_on_inputs_it_has_not_seen() -> None:
    dense, cut, cuts, batches = cut_network()
    inputs = Inputs.of(torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    wanted = dense(*inputs.args)

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        return float(
            (model(*inputs.args) - wanted).square().mean()
            / (wanted - wanted.mean(0)).square().mean()
        )

    repaired, before = error(repair(cut, dense, cuts, batches)), error(cut)
    assert repaired < 0.5 * before, (repaired, before)


def test_batch_norms_give_the_mean_and_variance_they_gave() -> None:
    dense, cut, cuts, batches = cut_network()
    with torch.no_grad():
        dense[1][1].running_mean.add_(0.5)  # statistics that are of other data than the images
        dense[1][1].running_var.mul_(0.3)
    cut = shrink(dense, cuts)
    repaired = repair(cut, dense, cuts, batches, images=120)
    kept = {each.tensor: each.keep for each in cuts if each.tensor.endswith("running_mean")}
    inputs = torch.cat([args[0] for args, _, _ in batches])[:120]
    for at in (1, 3):
        given = [model[:at](inputs) for model in (repaired, dense)]
        now, before = (
            model[at][:2](x).detach() for model, x in zip((repaired, dense), given, strict=True)
        )
        before = before[:, kept.get(f"{at}.1.running_mean", slice(None))]
        assert torch.allclose(now.mean((0, 2, 3)), before.mean((0, 2, 3)), atol=1e-3)
        assert torch.allclose(now.var((0, 2, 3)), before.var((0, 2, 3)), rtol=1e-3)
        assert repaired[at][1].momentum == 0.1 and int(repaired[at][1].num_batches_tracked) == 30
    # receives what it received before
    assert torch.equal(repaired[0][1].running_mean, cut[0][1].running_mean)


def mean_square(model: nn.Module, dense: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        return float((model(data) - dense(data)).square().mean())


def test_what_cannot_be_made_up_for_is_not_learnt_by_heart() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 6, bias=False)).eval()
    nn.init.eye_(dense[0].weight)  # inputs that do not know of each other
    keep = torch.arange(40) < 30
    cuts = [Cut("0.weight", 0, keep), Cut("1.weight", 1, keep)]
    cut, fresh, stayed = shrink(dense, cuts), torch.randn(1000, 40), 0
    for _ in range(10):
        repaired = repair(cut, dense, cuts, batch(torch.randn(40, 40)), ridge=0.1)
        assert mean_square(repaired, dense, fresh) < 1.15 * mean_square(cut, dense, fresh)
        stayed += torch.equal(repaired[1].weight, cut[1].weight)
    assert stayed >= 7


@pytest.mark.parametrize("images", [32, 64, 1024])
def test_few_images_do_no_harm(images: int) -> None:
    torch.manual_seed(0)
    layers = (
        conv(1, 8),
        conv(8, 16),
        nn.Flatten(),
        nn.Linear(16 * 64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    dense = nn.Sequential(*layers)
    for _ in range(20):
        dense(torch.randn(32, 1, 8, 8))
    inputs, fresh = torch.rand(1024, 1, 8, 8), torch.rand(400, 1, 8, 8)  # not what the norm saw
    coupling = trace(dense.eval(), Inputs.of(inputs[:2]))
    keep = {
        group.key: random_keep(coupling, group.key)
        for group in coupling.prunable()
        if group.level == "units"
    }
    cut, cuts = coupling.apply(dense, keep), coupling.cuts(keep)
    repaired = repair(cut, dense, cuts, batch(inputs[:images]), images=images, ridge=0.1)
    assert mean_square(repaired, dense, fresh) < 0.3 * mean_square(cut, dense, fresh)


def test_the_same_seed_gives_the_same_weights_and_the_copies_share_nothing() -> None:
    dense, cut, cuts, batches = cut_network()
    before = [copy.deepcopy(model.state_dict()) for model in (dense, cut)]
    reference = Reference(dense.train(), batches, positions=3)
    first, again = reference.repair(cut, cuts), reference.repair(cut, cuts)
    other = repair(cut, dense, cuts, batches, positions=3, seed=1)
    state = first.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert any(not torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    for model, held in zip((dense, cut), before, strict=True):
        assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert dense.training and not first.training and not cut.training


def test_exact_zeros_stay_and_what_is_left_still_makes_up_for_them() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    cut = copy.deepcopy(dense)
    pattern = torch.rand(4, 20) > 0.5
    cut[2].weight.data.mul_(pattern)
    data = torch.rand(300, 6)
    repaired = repair(cut, dense, [], batch(data), ridge=1e-5)
    assert torch.equal(repaired[2].weight != 0, pattern)
    inputs = dense[:2](data)
    for row, kept in enumerate(pattern):  # the best that weights on the pattern can do, and a bias
        columns = torch.cat([inputs[:, kept], torch.ones(300, 1)], 1)
        wanted = dense(data)[:, row]
        best = (columns @ torch.linalg.lstsq(columns, wanted).solution - wanted).square().mean()
        assert (repaired(data)[:, row] - wanted).square().mean() < 1.05 * best + 1e-9


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("SharedModule", "inner.weight"), ("TiedEmbedding", "words.weight"), ("TiedWeights", None)],
)
def test_what_is_used_more_than_once_is_left_alone(name: str, tensor: str | None) -> None:
    dense, cut, cuts, batches = pruned(member(name))
    held = Reference(dense, batches).layers
    twice = [tensor] if tensor in dict(dense.named_parameters()) else []
    uses: dict[int, list[str]] = {}
    for path, parameter in dense.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(path)
    twice += [paths[0] for paths in uses.values() if len(paths) > 1 and paths[0].endswith("weight")]
    repaired = dict(repair(cut, dense, cuts, batches).named_parameters())
    for path in twice:
        assert path not in held
        assert torch.equal(repaired[path], dict(cut.named_parameters())[path])
    assert held  # and the others are not


def test_dead_and_tiny_inputs_give_finite_weights() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    cuts = [Cut(f"{at}", 0, KEEP) for at in ("0.weight", "0.bias")] + [Cut("4.weight", 1, KEEP)]
    cuts += [
        Cut(f"1.{name}", 0, KEEP) for name in ("weight", "bias", "running_mean", "running_var")
    ]
    inputs = torch.randn(1, 3, 3, 3).repeat(2, 1, 1, 1)
    for factor in (0.0, 1e-30):
        cut = shrink(dense, cuts)
        cut[1].weight.data.fill_(factor)
        cut[1].bias.data.fill_(0.0)
        for ridge in (0.0, 1.0):
            repaired = repair(cut, dense, cuts, batch(inputs), ridge=ridge)
            assert all(bool(tensor.isfinite().all()) for tensor in repaired.state_dict().values())
            assert torch.allclose(repaired(inputs), dense(inputs), atol=1e-6)  # by its bias


def test_batches_are_joined_up_to_the_count_and_other_shapes_left_out() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(self.words(x))))

    shapes = ((3, 4), (3, 5), (2, 4), (3, 4))
    batches: list[Batch] = [((torch.randint(0, 9, shape),), {}, None) for shape in shapes]
    assert Reference(Words(), batches, images=5).inputs.batch_size == 5
    assert Reference(Words(), batches, images=99).inputs.batch_size == 8
    layer = Reference(Words(), batches, images=6, positions=2).layers["up.weight"][0]
    assert (layer.total, len(layer.rows), tuple(layer.outputs.shape)) == (24, 12, (12, 8))


def test_errors_say_what_is_needed() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="at least one batch"):
        repair(model, model, [], [])
    with pytest.raises(InputError, match="at least 2 inputs"):
        repair(model, model, [], batch(torch.randn(1, 2)))
    with pytest.raises(InputError, match="at least 1"):
        Reference(model, batch(torch.randn(2, 2)), positions=0)
    with pytest.raises(InputError, match="ridge"):
        repair(model, model, [], batch(torch.randn(2, 2)), ridge=-1.0)
