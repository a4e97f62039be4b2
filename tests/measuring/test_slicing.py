import copy
from dataclasses import replace

import onnx
import pytest
import torch
import torch.nn.functional as F
from marks import slow_but
from torch import nn

from autoprune.errors import ModelError
from autoprune.measuring.measure import time_artefact
from autoprune.measuring.onnx_slicing.reshapes import BATCH, loose_shape
from autoprune.measuring.onnx_slicing.slicer import Slicer, export
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.surgery.attention import Attention as CutAttention
from autoprune.pruning.surgery.shrink import Cut, shrink
from autoprune.space import fits
from autoprune.target import Target
from autoprune.task import Inputs


def randomised(model):
    """Batch norms with statistics that matter, in eval mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def kept(*bits):
    return torch.tensor(bits, dtype=torch.bool)


def drop(size, *places):
    keep = torch.ones(size, dtype=torch.bool)
    keep[list(places)] = False
    return keep


def out(name, keep, bias=True):
    return [Cut(f"{name}.weight", 0, keep)] + ([Cut(f"{name}.bias", 0, keep)] if bias else [])


def norm(name, keep):
    return [
        Cut(f"{name}.{tensor}", 0, keep)
        for tensor in ("weight", "bias", "running_mean", "running_var")
    ]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.bn_a = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.b(F.relu(self.bn_a(self.a(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


def residual_cuts():
    stream, inner = drop(8, 1, 5, 6), drop(6, 0)
    return [
        *out("stem", stream, bias=False), *norm("bn", stream), *out("b", stream), Cut("a.weight", 1, stream),
        Cut("fc.weight", 1, stream.repeat_interleave(16)),
        *out("a", inner, bias=False), *norm("bn_a", inner), Cut("b.weight", 1, inner),
    ]  # fmt: skip


class Mixed(nn.Module):
    """Concatenation, depthwise and grouped convolution, squeeze-excite, channel shuffle, a view into a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.bn_d = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
        )
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, bias=False)
        self.fc = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = torch.cat([x, F.hardswish(self.bn_d(self.depthwise(x)))], 1)
        x = self.grouped(x)
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        x = F.adaptive_avg_pool2d(self.up(x), 2)
        return self.fc(x.view(x.size(0), -1))


def mixed_cuts():
    stem, grouped, up = drop(8, 2, 7), drop(12, 0, 3, 6, 10), drop(6, 5)
    shuffled = grouped.view(2, 6).t().reshape(-1)
    return [
        *out("stem", stem), *norm("bn", stem), *out("depthwise", stem, bias=False), *norm("bn_d", stem),
        Cut("grouped.weight", 1, torch.cat([stem, stem]), groups=2), *out("grouped", grouped),
        Cut("squeeze.weight", 1, shuffled), *out("excite", shuffled), Cut("up.weight", 0, shuffled),
        Cut("up.weight", 1, up), Cut("fc.weight", 1, up.repeat_interleave(4)),
        *out("squeeze", drop(4, 1)), Cut("excite.weight", 1, drop(4, 1)),
    ]  # fmt: skip


IMAGES = Inputs.of(torch.randn(2, 3, 8, 8))
CASES = {"residual": (Residual, residual_cuts), "mixed": (Mixed, mixed_cuts)}


def run(content, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = {
        value.name: t.numpy()
        for value, t in zip(session.get_inputs(), inputs.tensors(), strict=True)
    }
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_sliced_graph_is_the_cut_model(name):
    build, cuts = CASES[name]
    model = randomised(build())
    slicer = Slicer(model, IMAGES)
    smaller = shrink(model, cuts())
    five = IMAGES.rows(5)
    with torch.no_grad():
        assert error(run(slicer.cut([]), five)[0], five.call(model)) <= 1e-5
        assert error(run(slicer.dense, five)[0], five.call(model)) <= 1e-5
        assert error(run(slicer.cut(cuts()), five)[0], five.call(smaller)) <= 1e-4
        assert run(slicer.cut(cuts()), IMAGES.rows(1))[0].shape == (1, 5)
    assert slicer.reason is None and slicer.verifies(smaller, cuts())
    onnx.checker.check_model(onnx.load_from_string(slicer.cut(cuts())))


def test_zeros_are_multiplied_in_after_the_cut():
    model = randomised(Residual())
    slicer, smaller = Slicer(model, IMAGES), shrink(model, residual_cuts())
    keep = torch.rand(smaller.b.weight.shape) > 0.5
    assert not slicer.verifies(smaller, residual_cuts(), {"b.weight": keep})
    with torch.no_grad():
        smaller.b.weight.mul_(keep)
    assert slicer.verifies(smaller, residual_cuts(), {"b.weight": keep})


def test_proved_sees_another_cut_and_another_value():
    model = randomised(Residual())
    slicer, smaller = Slicer(model, IMAGES), shrink(model, residual_cuts())
    with torch.no_grad():
        smaller.fc.bias[0] += 1
    assert not slicer.verifies(smaller, residual_cuts())
    assert not slicer.verifies(model, residual_cuts())


def test_what_runs_in_the_search_is_what_is_exported():
    """The sliced graph and a fresh export are the same work, so that a budget met by one is met by the other."""
    model = randomised(Mixed())
    sliced, exported = (
        Slicer(model, IMAGES).cut(mixed_cuts()),
        export(shrink(model, mixed_cuts()), IMAGES),
    )
    assert len(sliced) == pytest.approx(len(exported), rel=0.02)
    ops = [
        [node.op_type for node in onnx.load_from_string(content).graph.node]
        for content in (sliced, exported)
    ]
    assert ops[0] == ops[1]
    assert time_artefact(sliced, exported, IMAGES, Target(), budget_s=0.3).ratio == pytest.approx(
        1, rel=0.15
    )


def test_parameters_keep_name_and_bits_even_where_they_are_equal():
    model = Mixed().eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    proto = onnx.load_from_string(Slicer(model, IMAGES).dense)
    values = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
        for t in proto.graph.initializer
    }
    for name, tensor in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(values[name], tensor)


def test_a_tied_parameter_is_cut_by_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    model, inputs, keep = Tied().eval(), Inputs.of(torch.randn(2, 4)), kept(1, 1, 0, 1)
    slicer = Slicer(model, inputs)
    stored = [
        tensor
        for tensor in onnx.load_from_string(
            slicer.cut([Cut("first.weight", 0, keep)])
        ).graph.initializer
    ]
    assert [tuple(tensor.dims) for tensor in stored if tensor.name.endswith("weight")] == [(3, 4)]


class Recurrent(nn.Module):
    """`cells` one after the other; the last one's sequence and last state, classified."""

    def __init__(self, *cells):
        super().__init__()
        self.cells = nn.ModuleList(cells)
        size = cells[-1].hidden_size
        self.fc, self.second = (
            nn.Linear(size * (1 + cells[-1].bidirectional), 2),
            nn.Linear(size, 2),
        )

    def forward(self, x):
        for cell in self.cells:
            x, last = cell(x)
        last = last[0] if isinstance(last, tuple) else last
        return self.fc(x.mean(1)), self.second(last[-1])


class Attention(nn.Module):
    """Images in patches, and attention in the manner of timm: queries, keys and values from one layer."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.patches, self.heads = nn.Conv2d(3, width, 4, 4), heads
        self.place = nn.Parameter(torch.randn(1, 4, width))
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)
        )
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        count, tokens, _ = x.shape
        qkv = (
            self.qkv(self.norm(x)).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        inside = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(inside.transpose(1, 2).reshape(count, tokens, -1))
        return self.fc((x + self.inner(x)).mean(1))


SEQUENCE = Inputs.of(torch.randn(2, 6, 4))
DISCOVERED = {
    "lstm": (lambda: Recurrent(nn.LSTM(4, 6, batch_first=True)), SEQUENCE),
    "lstm, two layers, both ways": (
        lambda: Recurrent(nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)),
        SEQUENCE,
    ),
    "two lstms of one size": (
        lambda: Recurrent(nn.LSTM(4, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)),
        SEQUENCE,
    ),
    "gru after lstm": (
        lambda: Recurrent(nn.LSTM(4, 6, batch_first=True), nn.GRU(6, 8, batch_first=True)),
        SEQUENCE,
    ),
    "gru without biases, both ways": (
        lambda: Recurrent(nn.GRU(4, 6, batch_first=True, bias=False, bidirectional=True)),
        SEQUENCE,
    ),
    "attention": (Attention, IMAGES),
}


def shapes_of(content):
    """The shapes of more than one length that are written into a graph's reshapes."""
    proto = onnx.load_from_string(content)
    values = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tolist()
        for tensor in proto.graph.initializer
    }
    given = [
        values.get(node.input[1], []) for node in proto.graph.node if node.op_type == "Reshape"
    ]
    return [each for each in given if len(each) > 1]


@pytest.mark.parametrize("name", slow_but(["lstm"], DISCOVERED))
def test_groups_that_are_found_are_cut_one_by_one_and_together(name):
    build, inputs = DISCOVERED[name]
    model = randomised(build())
    coupling, slicer = discover(model, inputs), Slicer(model, inputs, batch=5)
    assert slicer.verifies(model, [])
    units = [group.key for group in coupling.prunable() if group.level == "units"]
    assert units
    keep = {key: torch.arange(coupling.members[key].shape[1]) % 2 == 0 for key in units}
    for chosen in (*([key] for key in units), units):
        kept = {key: keep[key].repeat(len(coupling.members[key])) for key in chosen}
        cuts, smaller = coupling.cuts(kept), coupling.apply(model, kept)
        assert slicer.refuses(cuts) is None and slicer.verifies(smaller, cuts)
        content, five = slicer.cut(cuts), inputs.rows(5)
        onnx.checker.check_model(onnx.load_from_string(content))
        ours, exported = (shapes_of(each) for each in (content, export(smaller, inputs)))
        # to the last number: runtimes make more of a graph whose lengths they know
        assert ours == exported
        with torch.no_grad():
            expected = five.call(smaller)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert all(error(a, b) <= 1e-4 for a, b in zip(run(content, five), expected, strict=True))


@pytest.mark.parametrize("dtype", slow_but(["fp32"], ["fp32", "int8"]))
@pytest.mark.parametrize("name", slow_but([], ["attention", "two lstms of one size"]))
def test_a_search_slices_for_the_batch_and_the_dtype_of_its_target(name, dtype):
    from small_search import study

    from autoprune.searching.evaluating.costs import Costs

    build, inputs = DISCOVERED[name]
    model = randomised(build())
    coupling = discover(model, inputs)
    found = Costs(replace(study(), target=Target(batch=4, dtype=dtype)), model, coupling, inputs)
    assert found.note is None  # no candidate is exported anew
    units = [group for group in coupling.prunable() if group.level == "units"]
    offered = {
        group.key: [each for each in ("structured", "heads", "neuron") if not fits(each, group)]
        for group in units
    }
    plan = Plan({key: Choice(techniques[0], 0.5) for key, techniques in offered.items()})
    pruned = Pruner(model, coupling, Importance(model, coupling)).apply(plan)
    score = found.latency(pruned, found.score(pruned), brief=True)
    assert score.latency.ms is not None and score.latency.ms > 0
    assert score.size_bytes < len(found.dense)


def test_the_proof_sees_through_zeros():
    """Another model's values tell what the model's own zeros hide."""

    class Two(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.qkv, self.heads, self.last = nn.Linear(8, 24), heads, nn.Linear(8, 2)

        def forward(self, x):
            count, tokens, _ = x.shape
            qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            inside = F.scaled_dot_product_attention(*qkv.unbind(0))
            return self.last(inside.transpose(1, 2).reshape(count, tokens, -1))

    inputs, zero = Inputs.of(torch.randn(2, 5, 8)), Two(4).eval()
    other = copy.deepcopy(zero)
    for tensor in (zero.last.weight, zero.last.bias):
        nn.init.zeros_(tensor)
    wrong = Two(2).eval()
    for model in (zero, other):
        wrong.load_state_dict(model.state_dict())
        slicer = Slicer(zero, inputs)
        slicer.fill(model)
        assert slicer.verifies(model, []) and slicer.verifies(wrong, []) == (model is zero)


@pytest.mark.slow
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_is_sliced_in_the_form_that_is_exported(batch_first):
    """Cut, it is another graph than dense: as soon as one is cut, and not where only other layers are."""
    from small_search import study

    from autoprune.searching.evaluating.costs import Costs

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=batch_first)
    model = nn.Sequential(
        nn.Linear(5, 16),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(16, 3),
    )
    model, inputs = randomised(model), Inputs.of(torch.randn(2, 7, 5))
    coupling = discover(model, inputs)
    found = Costs(replace(study(), target=Target()), model, coupling, inputs)
    assert found.note is None
    seen = set()
    for group in (each for each in coupling.prunable() if each.level == "units"):
        technique = next(
            each for each in ("structured", "heads", "neuron") if not fits(each, group)
        )
        pruned = Pruner(model, coupling, Importance(model, coupling)).apply(
            Plan({group.key: Choice(technique, 0.5)})
        )
        forms = {
            type(module)
            for module in pruned.model.modules()
            if isinstance(module, nn.MultiheadAttention)
        }
        assert len(forms) == 1
        seen |= forms
        sliced, exported = found.artefact_of(pruned, {}), export(pruned.model, inputs)
        one, two = (onnx.load_from_string(each) for each in (sliced, exported))
        assert [node.op_type for node in one.graph.node] == [
            node.op_type for node in two.graph.node
        ]
        assert error(run(sliced, inputs)[0], inputs.call(pruned.model).detach()) <= 1e-4
    assert seen == {nn.MultiheadAttention, CutAttention}


def test_unrolled_cells_are_not_proved():
    """torch's plain RNN is unrolled by the exporter, its first state has the hidden size written down."""
    model = Recurrent(nn.RNN(4, 6, batch_first=True)).eval()
    coupling, slicer = discover(model, SEQUENCE), Slicer(model, SEQUENCE)
    kept = {key: torch.arange(6) < 3 for key in coupling.members}
    assert not slicer.verifies(coupling.apply(model, kept), coupling.cuts(kept))


def test_uneven_slices_of_a_parameter_are_refused_by_name():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.fc = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            small, large = F.linear(x, self.both.weight[:2]), F.linear(x, self.both.weight[2:])
            return self.fc(torch.cat([small, large], 1))

    slicer = Slicer(Uneven().eval(), Inputs.of(torch.randn(2, 4)))
    assert slicer.reason is None
    cuts = [Cut("both.weight", 0, drop(6, 0))]
    assert "both.weight is read by Slice" in str(slicer.refuses(cuts))
    with pytest.raises(ModelError, match="export the model instead"):
        slicer.cut(cuts)


def test_channels_scaled_before_they_are_shuffled_are_followed():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(8, 1, 1))
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x) * self.scale
            n, c, h, w = x.shape
            return self.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)).mean(
                (2, 3)
            )

    model, keep = randomised(Shuffled()), drop(8, 1, 5)
    cuts = [
        *out("first", keep),
        Cut("scale", 0, keep),
        Cut("last.weight", 1, keep.view(2, 4).T.flatten()),
    ]
    assert Slicer(model, IMAGES).verifies(shrink(model, cuts), cuts)


def test_a_literal_slice_over_channels_is_not_proved():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(self.first(x)[:, 2:5])

    model, inputs = Literal().eval(), Inputs.of(torch.randn(2, 4))
    slicer, keep = Slicer(model, inputs), drop(8, 0, 1)
    # units 2, 3, 4, which the author had in mind
    meant = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        meant[0].weight.copy_(model.first.weight[2:5])
        meant[0].bias.copy_(model.first.bias[2:5])
    meant[1] = model.second
    assert not slicer.verifies(meant.eval(), out("first", keep))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.inner(F.relu(self.norm(x)))


def image_net(last=True):
    """Residual blocks, one of them the output unless there is a `last` layer."""
    blocks = nn.Sequential(Block(8), Block(8), Block(8))
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), blocks, *([nn.Flatten(), nn.Linear(8 * 64, 5)] if last else [])
    )


class Encoders(nn.Module):
    """Transformer layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


BLOCKS = {
    "convolutions": (image_net, IMAGES, "1"),
    "the output is a block's": (lambda: image_net(last=False), IMAGES, "1"),
    "transformer": (Encoders, Inputs.of(torch.randn(2, 5, 6)), "blocks"),
}


@pytest.mark.parametrize("gone", slow_but([(1, 2)], [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)]))
@pytest.mark.parametrize("name", slow_but(["convolutions"], BLOCKS))
def test_blocks_that_go_are_left_out(name, gone):
    build, inputs, stage = BLOCKS[name]
    model, removed = randomised(build()), [f"{stage}.{place}" for place in gone]
    slicer, smaller = Slicer(model, inputs), shrink(model, [], removed)
    assert slicer.refuses([], removed) is None and slicer.verifies(smaller, [], removed=removed)
    assert not slicer.verifies(model, [], removed=removed)
    content = slicer.cut([], removed=removed)
    onnx.checker.check_model(onnx.load_from_string(content))
    proto, exported = onnx.load_from_string(content), onnx.load_from_string(export(smaller, inputs))
    held = [
        sorted(t.name for t in each.graph.initializer if t.name in model.state_dict())
        for each in (proto, exported)
    ]
    assert held[0] == held[1]
    ops = [
        [node.op_type for node in each.graph.node if node.op_type != "Identity"]
        for each in (proto, exported)
    ]
    assert ops[0] == ops[1]


def test_widths_are_cut_and_blocks_left_out_at_once():
    model, keep = randomised(image_net()), drop(8, 1, 6)
    cuts = [
        *out("0", keep), Cut("3.weight", 1, keep.repeat_interleave(64)),
        *(cut for place in range(3) for cut in (*norm(f"1.{place}.norm", keep), *out(f"1.{place}.inner", keep))),
        *(Cut(f"1.{place}.inner.weight", 1, keep) for place in range(3)),
    ]  # fmt: skip
    assert Slicer(model, IMAGES).verifies(shrink(model, cuts, ["1.1"]), cuts, removed=["1.1"])


def test_a_block_whose_ends_do_not_show_is_refused():
    class Twice(nn.Module):
        """A block that is called twice has no one beginning."""

        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Conv2d(3, 8, 1), Block(8)

        def forward(self, x):
            return self.block(torch.tanh(self.block(self.first(x))))

    slicer = Slicer(randomised(Twice()), IMAGES)
    assert "where block begins and ends" in str(slicer.refuses([], ["block"]))
    with pytest.raises(ModelError, match="export the model instead"):
        slicer.cut([], removed=["block"])


@pytest.mark.parametrize(
    "before, shape, width, loose",
    [
        ([BATCH, 8, 4, 4], [-1, 128], None, [0, -1]),
        ([BATCH, 8, 1, 1], [-1, 8], None, [0, 0]),
        ([BATCH, 12, 4, 4], [-1, 2, 6, 4, 4], None, [0, 2, -1, 4, 4]),
        ([BATCH, 6, 2, 4, 4], [-1, 12, 4, 4], None, [0, -1, 4, 4]),
        ([BATCH, 2, 96], [-1, 12, 4, 4], None, [0, -1, 4, 4]),
        ([BATCH, 8, 4, 4], [-1, 8, 16], None, [0, 0, -1]),
        ([5, BATCH, 64], [5, -1, 16], None, [0, -1, 16]),
        ([BATCH, 8], [0, 2, 4], None, [0, 2, -1]),
        ([BATCH, 8], [3, 5], None, None),
        ([16, BATCH, 4, 8], [-1, 32], None, [16 * BATCH, -1]),
        ([16 * BATCH, 32], [16, -1, 32], 1, [16, BATCH, -1]),
        ([8 * BATCH, 16, 4], [-1, 8, 16, 4], None, [BATCH, -1, 16, 4]),
        ([16, BATCH, 32], [16, -1, 4], None, [0, -1, 4]),
        ([BATCH, 16, 32], [-1, 4, 4, 32], 2, [0, 4, 4, -1]),
        ([BATCH, 16, 96], [-1, 16, 3, 4, 8], 2, [0, 0, 3, -1, 8]),
        ([BATCH, 16, 96], [-1, 16, 3, 2, 16], 2, [0, 0, 3, -1, 16]),
        ([BATCH, 16, 96], [-1, 16, 12, 8], 2, [0, 0, -1, 8]),
        ([BATCH, 16, 96], [-1, 16, 3, 32], 2, [0, 0, 3, -1]),
    ],
)
def test_reshapes_follow_a_cut(before, shape, width, loose):
    assert loose_shape(before, shape, width) == loose


def test_a_slice_takes_milliseconds():
    import time

    slicer = Slicer(randomised(Residual()), IMAGES)
    begin = time.perf_counter()
    slicer.cut(residual_cuts())
    assert time.perf_counter() - begin < 0.1


@pytest.mark.promise("figures")
@pytest.mark.parametrize("kind", slow_but([nn.LSTM], [nn.LSTM, nn.GRU]))
@pytest.mark.parametrize("ratio", slow_but([0.5], [0.0, 0.5, 0.9]))
def test_the_size_that_is_judged_is_that_of_the_file_that_ships(tmp_path, kind, ratio):
    from small_search import study

    from autoprune import plugins
    from autoprune.searching.evaluating.costs import Costs

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.fc = kind(8, 16, 1, batch_first=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.fc(self.cells(x)[0][:, -1])

    net, inputs = Net().eval(), Inputs((torch.randn(2, 5, 8),))
    coupling = discover(net, inputs)
    keys = [group.key for group in coupling.prunable() if group.level == "units"]
    plan = Plan({key: Choice("neuron", ratio) for key in keys})
    pruned = Pruner(net, coupling, Importance(net, coupling)).apply(plan)
    costs = Costs(replace(study({"size": "90%"}), target=Target()), net, coupling, inputs)
    plugins.load("format", "onnx")().save(pruned.model, inputs, tmp_path / "model.onnx")
    shipped = (tmp_path / "model.onnx").stat().st_size
    judged = costs.score(pruned)
    # constants of cells of one or two units are written otherwise
    assert abs(judged.size_bytes - shipped) <= 64
    assert costs.with_stored_size(pruned.model, pruned, judged).size_bytes == shipped
