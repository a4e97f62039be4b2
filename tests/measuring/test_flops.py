import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.measuring.einsum_flops import einsum_flops
from autoprune.measuring.flops import count
from autoprune.task import Inputs


def flops(model: nn.Module, *args, **kwargs) -> int:
    return count(model, Inputs(args, kwargs)).total


def test_linear_and_convolution_by_hand():
    assert flops(nn.Linear(5, 7), torch.randn(3, 5)) == 3 * 5 * 7
    assert (
        flops(nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.randn(2, 4, 5, 5))
        == 2 * 25 * 6 * 4 * 9
    )
    assert (
        flops(nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 5))
        == 2 * 25 * 6 * 2 * 9
    )


def test_convolution_with_padding_by_name_is_not_zero():
    assert flops(nn.Conv2d(4, 6, 3, padding="same"), torch.randn(2, 4, 5, 5)) == 2 * 25 * 6 * 4 * 9


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_by_hand(kind, gates, batch_first):
    steps, batch, inputs, hidden = 3, 2, 5, 7
    x = torch.randn(batch, steps, inputs) if batch_first else torch.randn(steps, batch, inputs)
    counted = count(kind(inputs, hidden, batch_first=batch_first), Inputs.of(x))
    assert counted.total == steps * batch * gates * hidden * (inputs + hidden)
    assert counted.uncounted == ()


def test_recurrent_deep_bidirectional_and_projected_by_hand():
    steps, batch, inputs, hidden, projected = 3, 2, 5, 7, 4
    x = torch.randn(steps, batch, inputs)
    first = 2 * 3 * hidden * (inputs + hidden)
    second = 2 * 3 * hidden * (2 * hidden + hidden)
    assert flops(nn.GRU(inputs, hidden, num_layers=2, bidirectional=True), x) == steps * batch * (
        first + second
    )
    lstm = 4 * hidden * (inputs + projected) + projected * hidden
    assert flops(nn.LSTM(inputs, hidden, proj_size=projected), x) == steps * batch * lstm


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 2 * 7 * 6 * 4 * 3),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), 2 * 9 * 8 * 9),
        (nn.Conv2d(4, 6, 3, dilation=2, stride=2), (2, 4, 9, 9), 2 * 9 * 6 * 4 * 9),
        (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5), 2 * 27 * 6 * 4 * 27),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 2 * 25 * 4 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 2 * 25 * 4 * 3 * 9),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
    ],
    ids=["1d", "depthwise", "dilated", "3d", "transposed", "transposed grouped", "linear"],
)
def test_layers_by_hand_and_half_of_what_torch_counts(layer, shape, expected):
    x = torch.randn(shape)
    assert flops(layer, x) == expected
    with FlopCounterMode(display=False) as torch_counts, torch.no_grad():
        layer(x)
    assert torch_counts.get_total_flops() == 2 * expected


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ((2, 3, 4, 5), (5, 6), 2 * 3 * 4 * 5 * 6),
        ((1, 3, 4, 5), (2, 1, 5, 6), 2 * 3 * 4 * 5 * 6),
        ((4, 5), (2, 5, 6), 2 * 4 * 5 * 6),
        ((2, 4, 5), (5,), 2 * 4 * 5),
        ((5,), (2, 5, 6), 2 * 5 * 6),
        ((5,), (5,), 5),
    ],
)
def test_products_that_broadcast_by_hand(first, second, expected):
    counted = count(Call(torch.matmul), Inputs.of((torch.randn(first), torch.randn(second))))
    assert (counted.total, counted.uncounted) == (expected, ())


@pytest.mark.parametrize(
    "equation, shapes, expected",
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 6 * 5),
        ("nctv,vw->nctw", [(2, 3, 4, 5), (5, 6)], 2 * 3 * 4 * 5 * 6),
        ("...ij,jk->...ik", [(2, 3, 4, 5), (5, 6)], 2 * 3 * 4 * 5 * 6),
        ("ij,jk", [(4, 5), (5, 6)], 4 * 5 * 6),
        ("i,j->ij", [(3,), (4,)], 12),
        ("ij,k->k", [(3, 4), (5,)], 5),
        ("ij->ji", [(3, 4)], 0),
    ],
)
def test_einsum_by_hand(equation, shapes, expected):
    counted = count(
        Call(lambda *tensors: torch.einsum(equation, *tensors)),
        Inputs.of(tuple(map(torch.randn, shapes))),
    )
    assert (counted.total, counted.uncounted) == (expected, ())


def test_einsum_of_many_goes_the_way_it_is_told():
    shapes = [(2, 300), (300, 4), (4, 5)]
    assert einsum_flops("ij,jk,kl->il", shapes) == 2 * 300 * 4 + 2 * 4 * 5
    assert einsum_flops("ij,jk,kl->il", shapes, [1, 2, 0, 1]) == 300 * 4 * 5 + 2 * 300 * 5


def test_other_products_by_hand():
    a, b = torch.randn(2, 3, 4), torch.randn(4, 5)
    assert flops(Call(lambda x, y: torch.tensordot(x, y, 1)), a, b) == 2 * 3 * 4 * 5
    assert flops(Call(torch.inner), torch.randn(3, 4), torch.randn(5, 4)) == 3 * 4 * 5
    assert flops(Call(torch.addbmm), torch.randn(3, 5), a, torch.randn(2, 4, 5)) == 2 * 3 * 4 * 5
    assert flops(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4)) == 2 * (
        5 * 3 * 4 + 5 * 4
    )


def test_embeddings_look_up_and_count_nothing():
    for layer in (nn.Embedding(10, 4), nn.EmbeddingBag(10, 4)):
        counted = count(layer, Inputs.of(torch.zeros(2, 3, dtype=torch.long)))
        assert (counted.total, counted.uncounted) == (0, ())


def test_recurrent_without_a_batch_packed_and_projected_both_ways():
    inputs, hidden, projected = 5, 7, 4
    assert flops(nn.LSTM(inputs, hidden), torch.randn(3, inputs)) == 3 * 4 * hidden * (
        inputs + hidden
    )
    lstm = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, proj_size=projected)
    step = sum(
        4 * hidden * (width + projected) + projected * hidden for width in (inputs, 2 * projected)
    )
    assert flops(lstm, torch.randn(3, 2, inputs)) == 3 * 2 * 2 * step

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(inputs, hidden, bias=False)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
            return self.gru(packed)[0].data

    assert flops(Packed(), torch.randn(3, 2, inputs)) == 5 * 3 * hidden * (inputs + hidden)


def test_cells_by_hand():
    assert flops(nn.LSTMCell(5, 7), torch.randn(2, 5)) == 2 * 4 * 7 * (5 + 7)
    assert flops(nn.GRUCell(5, 7), torch.randn(2, 5)) == 2 * 3 * 7 * (5 + 7)


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def test_attention_by_hand():
    batch, heads, queries, keys, width = 2, 3, 4, 5, 6
    q, k = torch.randn(batch, heads, queries, width), torch.randn(batch, heads, keys, width)
    counted = count(Attention(), Inputs.of((q, k, k)))
    assert counted.total == 2 * batch * heads * queries * keys * width
    assert counted.uncounted == ()


def test_attention_with_grouped_queries_a_mask_and_batches_that_broadcast():
    q, k = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6)
    grouped = Call(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    assert flops(grouped, q, k) == 2 * 2 * 4 * 5 * 7 * 6
    causal = Call(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert flops(causal, q) == 2 * 2 * 4 * 5 * 5 * 6
    assert (
        flops(Attention(), q[:1], torch.randn(2, 4, 7, 6), torch.randn(2, 4, 7, 6))
        == 2 * 2 * 4 * 5 * 7 * 6
    )


def test_multihead_attention_across_widths_and_with_weights():
    class Cross(nn.Module):
        def __init__(self, **widths):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **widths)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 6, 6), torch.randn(3, 6, 5)
    products = 2 * 4 * 6 * 8
    assert flops(Cross(kdim=6, vdim=5), q, k, v) == 3 * (
        2 * 4 * 64 + 6 * 6 * 8 + 6 * 5 * 8 + products
    )
    k = v = torch.randn(3, 6, 8)
    assert flops(Cross(), q, k, v) == 3 * (2 * 4 * 64 + 2 * 6 * 64 + products)


@pytest.mark.parametrize("batch", [1, 3])
def test_multihead_attention_hides_nothing_behind_its_fast_path(batch):
    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    tokens, width = 4, 8
    counted = count(Self().eval(), Inputs.of(torch.randn(batch, tokens, width)))
    assert counted.total == batch * (4 * tokens * width * width + 2 * tokens * tokens * width)
    assert counted.uncounted == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_elementwise_and_movement_count_zero_and_are_not_named():
    class Free(nn.Module):
        def forward(self, x):
            x = torch.relu(x) * torch.sigmoid(x) + F.gelu(x) - F.hardswish(x).exp()
            return torch.cat(
                [x.flatten(1), F.max_pool2d(x, 2).mean((2, 3)), x.amax((2, 3)).softmax(1)], 1
            ).clamp_(0)

    counted = count(Free(), Inputs.of(torch.randn(2, 3, 4, 4)))
    assert (counted.total, counted.uncounted) == (0, ())


def test_an_operator_that_cannot_be_counted_is_named():
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x) @ x

    counted = count(Inverse(), Inputs.of(torch.eye(4)))
    assert counted.total == 64
    assert counted.uncounted == ("aten::linalg_inv",)


def test_by_module_names_modules_of_the_model_and_sums_up():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Sequential(nn.Linear(7, 2)))
    counted = count(model, Inputs.of(torch.randn(3, 5)))
    assert counted.by_module == {"": 3 * 49, "0": 3 * 35, "1": 0, "2": 3 * 14, "2.0": 3 * 14}


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 7)

    def forward(self, *, first, scale=None, more=None):
        return {"logits": self.fc(first) * more["factor"], "none": None}


def test_keyword_inputs_and_dictionary_outputs():
    inputs = Inputs(
        (), {"first": torch.randn(3, 5), "scale": None, "more": {"factor": torch.ones(3, 1)}}
    )
    assert count(Keywords(), inputs).total == 3 * 35


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[2].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, Inputs.of(torch.randn(2, 1, 5, 5)))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_zeros_change_nothing():
    layer = nn.Linear(5, 7)
    with torch.no_grad():
        layer.weight.zero_()
    assert flops(layer, torch.randn(3, 5)) == 3 * 35
