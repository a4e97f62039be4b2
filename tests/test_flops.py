import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.measuring.flops import count
from autoprune.task import Inputs


def flops(model: nn.Module, *args, **kwargs) -> int:
    return count(model, Inputs(args, kwargs)).total


def test_linear_and_convolution_by_hand():
    assert flops(nn.Linear(5, 7), torch.randn(3, 5)) == 3 * 5 * 7
    assert flops(nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.randn(2, 4, 5, 5)) == 2 * 25 * 6 * 4 * 9
    assert flops(nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 5)) == 2 * 25 * 6 * 2 * 9


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
    assert flops(nn.GRU(inputs, hidden, num_layers=2, bidirectional=True), x) == steps * batch * (first + second)
    lstm = 4 * hidden * (inputs + projected) + projected * hidden
    assert flops(nn.LSTM(inputs, hidden, proj_size=projected), x) == steps * batch * lstm


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
            return torch.cat([x.flatten(1), F.max_pool2d(x, 2).mean((2, 3)), x.amax((2, 3)).softmax(1)], 1).clamp_(0)

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
    inputs = Inputs((), {"first": torch.randn(3, 5), "scale": None, "more": {"factor": torch.ones(3, 1)}})
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
