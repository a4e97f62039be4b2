"""What only training runs is followed, cut and proved with the rest, or refused by name."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoprune
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, random_keep, relative_error
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.pruning.surgery.forward import output_tensors, outputs_of
from autoprune.pruning.surgery.shrink import named_tensors
from autoprune.task import Inputs

pytestmark = pytest.mark.promise("training-paths")
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Trunk(nn.Module):
    """Two convolutions of 12 and 16 channels and a head; subclasses take another way in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 12), conv(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        y = self.head(self.two(self.inner(x)).mean((2, 3)))
        return self.trained(x, y) if self.training else y

    def inner(self, x: Tensor) -> Tensor:
        return x

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return y


class Auxiliary(Trunk):
    """An auxiliary head of hidden units of its own, as GoogLeNet's; a batch norm over one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(
            nn.Conv2d(12, 10, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(10),
            nn.Dropout(),
            nn.Linear(10, 4),
        )

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return {"out": y, "aux": self.aux(x)}


class Deep(Trunk):
    """Deep supervision: in training a sum of what every stage says."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(12, 4)

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return y + self.early(x.mean((2, 3)))


class Literal(Trunk):
    """Twelve is written down in training only, where another view comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 4)

    def trained(self, x: Tensor, y: Tensor) -> Any:
        pooled = x.mean((2, 3)).view(-1, 12)
        return y + self.project(pooled[:, :6]) + self.project(pooled[:, 6:12])


class Both(Trunk):
    """Twelve is written down in both modes, at calls of other numbers."""

    def inner(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.reshape(x.shape) * 1.0
        return x.view(-1, 12, 64).view(-1, 12, 8, 8)


class OnlyInEvaluation(Trunk):
    """Twelve is written down in evaluation only; in training another call stands in its place."""

    def inner(self, x: Tensor) -> Tensor:
        return (
            x.reshape(x.shape[0], -1, 64).reshape(x.shape)
            if self.training
            else x.view(-1, 12, 64).view(-1, 12, 8, 8)
        )


class Joined(Trunk):
    """In training both stages are concatenated for a head of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = nn.Linear(24, 4)

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return y, self.joined(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


class Coupled(Trunk):
    """In training the stem's channels are added to another layer's, which evaluation keeps apart."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.last = conv(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        one, side = self.one(x), self.side(x)
        y = self.head(self.two(one).mean((2, 3))) + self.last(side.mean((2, 3)))
        return y + self.last((one + side).mean((2, 3))) if self.training else y


class Chance(Trunk):
    """Dropout over channels, drop path and noise by hand, as wide as the channels."""

    def inner(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        x = F.dropout2d(x, 0.5, self.training) + 0.1 * torch.randn_like(x)
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.8) / 0.8


class Dropping(nn.Module):
    """A residual block that training leaves out by chance, and one that gives a pair in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.path, self.pair, self.head = conv(3, 12), Path(), Pair(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pair(self.path(self.one(x)))
        out, extra = out if self.training else (out, 0.0)
        return self.head(out.mean((2, 3))) + extra


class Path(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape[0], 1, 1, 1) < 0.8 if self.training else 1.0
        return x + self.body(x) * kept


class Pair(Path):
    def forward(self, x: Tensor) -> Any:
        y = x + self.body(x)
        return (y, y.mean()) if self.training else y


class Features(Trunk):
    """In training the channels themselves are given back, for a loss of the user's own."""

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return y, x


class Hinted(Trunk):
    """Training wants targets, which the inputs do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(12, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        if self.training and target is None:
            raise ValueError("targets should not be None")
        return super().forward(x)

    def trained(self, x: Tensor, y: Tensor) -> Any:
        return y, self.only(x.mean((2, 3)))


def units(model: nn.Module) -> dict[str, str | None]:
    found = discover(model, Inputs.of(IMAGES))
    return {group.name: group.refusal for group in found.groups if group.level == "units"}


def train_step(model: nn.Module, inputs: Tensor = IMAGES) -> nn.Module:
    """One step of SGD on every output; every parameter that is used gets a gradient and stays finite."""
    model.train()
    outputs = output_tensors(model(inputs))
    loss = sum((output.square().mean() for output in outputs), torch.zeros(()))
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert all(bool(torch.isfinite(tensor).all()) for _, tensor in named_tensors(model))
    return model


FOLLOWED: list[Callable[[], nn.Module]] = [
    Auxiliary,
    Deep,
    Literal,
    Both,
    OnlyInEvaluation,
    Joined,
    Coupled,
    Chance,
    Dropping,
]


@pytest.mark.parametrize("build", FOLLOWED, ids=lambda build: build.__name__)
def test_cut_is_masked_in_both_modes_and_trains(build: Callable[[], nn.Module]) -> None:
    model, inputs = build(), Inputs.of(IMAGES)
    coupling = discover(model, inputs)
    assert coupling.training and coupling.unfollowed is None
    keep = {
        group.key: random_keep(coupling, group.key)
        for group in coupling.prunable()
        if group.level == "units"
    }
    assert "one.0:units" in keep
    smaller = coupling.apply(model, keep)
    for training in (False, True):
        cut, masked = (
            outputs_of(smaller, inputs, training),
            masked_outputs(model, inputs, coupling, keep, training),
        )
        assert relative_error(cut, masked) <= TOLERANCE
    rebuilt = Architecture.from_json(
        json.loads(json.dumps(Architecture.of(model, smaller).to_json()))
    ).build(model)
    rebuilt.load_state_dict(smaller.state_dict())
    for training in (False, True):
        assert (
            relative_error(
                outputs_of(rebuilt, inputs, training), outputs_of(smaller, inputs, training)
            )
            == 0.0
        )
    train_step(copy.deepcopy(rebuilt))
    train_step(autoprune.prune(model, IMAGES, 0.5))


def test_units_that_only_training_runs_are_refused_by_name() -> None:
    found = discover(Auxiliary(), Inputs.of(IMAGES))
    refused = {
        group.key: group.refusal or "" for group in found.groups if group.name.startswith("aux")
    }
    assert set(refused) == {"aux.0:units", "aux.5:units", "aux.0:weights", "aux.5:weights"}
    assert all("runs in training only" in why for why in refused.values())
    assert units(Auxiliary())["one.0"] is None


def test_what_training_joins_is_one_group() -> None:
    found = discover(Coupled(), Inputs.of(IMAGES)).group("one.0:units")
    assert found.layers == ("one.0", "side.0")


def test_channels_that_training_gives_back_are_refused() -> None:
    assert units(Features())["one.0"] == "reaches the network's output in training"


def test_a_block_that_training_runs_otherwise_is_no_block_to_remove() -> None:
    found = discover(Dropping(), Inputs.of(IMAGES))
    assert [group.name for group in found.groups if group.level == "blocks"] == ["path"]


def test_a_training_path_that_fails_is_named_and_evaluation_followed() -> None:
    model = Hinted()
    with pytest.warns(
        UserWarning, match=r"targets should not be None.*training alone \(only\) may break"
    ):
        smaller = autoprune.prune(model, IMAGES, 0.5)
    assert smaller.one[0].out_channels == 6
    with pytest.warns(UserWarning, match="targets should not be None"):
        assert "targets should not be None" in str(autoprune.groups(model, IMAGES))


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_norm_over_one_value_is_no_obstacle(batch: int) -> None:
    coupling = discover(Auxiliary(), Inputs.of(IMAGES[:batch]))
    assert coupling.training and coupling.group("one.0:units").refusal is None


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(
            conv(3, 8),
            nn.Dropout2d(),
            nn.Flatten(),
            nn.Linear(512, 6),
            nn.RReLU(),
            nn.AlphaDropout(),
            nn.Linear(6, 2),
        ),
        nn.Sequential(
            nn.Flatten(2),
            nn.TransformerEncoderLayer(64, 4, 32, 0.1, batch_first=True),
            nn.Linear(64, 2),
        ),
        nn.Sequential(nn.Flatten(2), nn.GRU(64, 8, 2, batch_first=True, dropout=0.5)),
        nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 1)),
            nn.Flatten(),
            nn.Linear(512, 2),
        ),
    ],
    ids=["dropout", "transformer", "gru", "spectral"],
)
def test_chance_and_statistics_are_no_path_of_their_own(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in named_tensors(model)}
    coupling = discover(model, Inputs.of(IMAGES))
    assert not coupling.training and coupling.unfollowed is None
    assert all(bool((tensor == before[name]).all()) for name, tensor in named_tensors(model))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_torchvisions_auxiliary_heads_train_on_after_a_cut(name: str, size: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = getattr(torchvision.models, name)(
        weights=None, aux_logits=True, init_weights=False, num_classes=10
    )
    images = torch.randn(2, 3, size, size)
    found = {group.key: group.refusal for group in autoprune.groups(model, images)}
    aux = "aux1.fc1:units" if name == "googlenet" else "AuxLogits.conv0.conv:units"
    assert "runs in training only" in str(found[aux])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smaller = autoprune.prune(model, images, 0.5)
    assert sum(p.numel() for p in smaller.parameters()) < 0.7 * sum(
        p.numel() for p in model.parameters()
    )
    train_step(smaller, images)
