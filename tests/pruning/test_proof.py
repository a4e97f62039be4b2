"""The proof finds what id propagation cannot see: code that goes other ways when widths change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, random_keep, relative_error
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.task import Inputs

INPUTS = Inputs.of(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))


class Two(nn.Module):
    """Two hidden layers side by side; subclasses make the code depend on their widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(6, 12)
        self.c, self.d = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        return self.joined(self.c(a), self.d(b), a.shape[1], b.shape[1])

    def joined(self, c: Tensor, d: Tensor, first: int, second: int) -> Tensor:
        return c + d


class OnlyTogether(Two):
    def joined(self, c: Tensor, d: Tensor, first: int, second: int) -> Tensor:
        return torch.cat([c, d], 1) ** (2.0 if first < 12 and second < 12 else 1.0)


class OnlyOne(Two):
    def joined(self, c: Tensor, d: Tensor, first: int, second: int) -> Tensor:
        return (c + d) ** (1.0 if (first < 12) == (second < 12) else 2.0)


class Equal(Two):
    def joined(self, c: Tensor, d: Tensor, first: int, second: int) -> Tensor:
        if first != second:
            raise RuntimeError("widths differ")
        return 0.5 * c + d


class Noisy(Two):
    """Random in eval mode as well, but the same way for every width."""

    def joined(self, c: Tensor, d: Tensor, first: int, second: int) -> Tensor:
        return c + d + torch.randn_like(c)


@pytest.mark.parametrize(
    ("kind", "refused", "said"),
    [
        (OnlyTogether, {"b"}, "together with other groups"),
        (OnlyOne, {"a", "b"}, "differ by"),
        (Equal, {"a", "b"}, "widths differ"),
        (Two, set(), ""),
        (Noisy, set(), ""),
    ],
)
def test_what_fails_in_some_mixture_is_refused(
    kind: type[nn.Module], refused: set[str], said: str
) -> None:
    torch.manual_seed(0)
    coupling = discover(kind().eval(), INPUTS)
    hidden = {
        group.name: group.refusal or ""
        for group in coupling.groups
        if group.key in ("a:units", "b:units")
    }
    assert {name for name, why in hidden.items() if why} == refused
    assert all(said in why for why in hidden.values() if why)


def test_one_bad_group_among_many_is_refused_alone() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(9))

        def forward(self, x: Tensor) -> Tensor:
            for place, layer in enumerate(self.layers):
                x = layer(x).relu()
                x = x.tanh() if place == 5 and x.shape[1] < 8 else x
            return x

    torch.manual_seed(0)
    coupling = discover(Bad().eval(), Inputs.of(torch.randn(2, 8)))
    assert [
        group.name for group in coupling.groups if group.level == "units" and group.refusal
    ] == [
        "layers.5",
        "layers.8",  # reaches the output
    ]


class Attending(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.first, self.attention = (
            nn.Linear(6, 16),
            nn.MultiheadAttention(16, 4, batch_first=True),
        )
        self.norm, self.wide, self.last = nn.LayerNorm(16), nn.Linear(16, 20), nn.Linear(20, 2)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x + self.attention(x, x, x, need_weights=self.need_weights)[0])
        return self.last(F.layer_norm(self.wide(x).relu(), normalized_shape=(20,)))


def test_norms_after_attention_with_weights_are_counted_right() -> None:
    torch.manual_seed(0)
    found = {
        need: discover(Attending(need).eval(), Inputs.of(torch.randn(2, 5, 6)))
        for need in (False, True)
    }
    assert [group.refusal for group in found[True].groups] == [
        group.refusal for group in found[False].groups
    ]
    assert {"first:units", "attention:units"} <= {group.key for group in found[True].prunable()}


@pytest.mark.parametrize("training", [False, True])
def test_spectral_norm_keeps_its_function_whatever_the_mode(training: bool) -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 12))
    # far from settled
    normed.get_buffer("parametrizations.weight.0._u").copy_(F.normalize(torch.randn(12), dim=0))
    model = nn.Sequential(normed, nn.ReLU(), nn.Linear(12, 3)).train(training)
    coupling = discover(model, INPUTS)
    keep = {"0:units": random_keep(coupling, "0:units")}
    smaller = coupling.apply(model, keep)
    assert all(module.training == training for module in smaller.modules())
    error = relative_error(
        outputs_of(smaller, INPUTS), masked_outputs(model, INPUTS, coupling, keep)
    )
    assert error <= TOLERANCE


def test_tensors_kept_as_plain_attributes_are_copied_and_stay_what_they_are() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
            self.seen: list[Tensor] = []
            self.__dict__["alias"] = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            self.seen = [x]
            return self.b(x)

    model = Keeps()
    model(INPUTS.args[0])  # `seen` has a graph now, and torch refuses to copy it
    copy = replace_tensors(model, lambda _, tensor: tensor.clone())
    assert copy.alias is copy.a.weight and isinstance(copy.a.weight, nn.Parameter)
    assert [
        group.name for group in discover(model, INPUTS).prunable() if group.level == "units"
    ] == ["a"]


def test_another_default_device_does_not_matter() -> None:
    torch.manual_seed(0)
    model = Two().eval()
    expected = discover(model, INPUTS)
    with torch.device("meta"):  # every tensor made without a device would have no data
        found = discover(model, INPUTS)
    assert [group.refusal for group in found.groups] == [group.refusal for group in expected.groups]
    assert all(
        bool((a.units == b.units).all()) for a, b in zip(found.slots, expected.slots, strict=True)
    )


def test_a_unit_kept_for_a_narrow_part_leaves_the_cells_even() -> None:
    coupling = Coupling(
        (), (), {"g": torch.arange(6).view(2, 3)}, 6, {}, narrow=(torch.tensor([0, 1]),)
    )
    alive = coupling.kept_mask({"g": torch.tensor([False, False, True, True, False, False])})
    assert alive[:6].tolist() == [True, False, True, True, True, False]
