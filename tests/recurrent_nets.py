"""Small networks with recurrent layers and cells: words in, classes out; members of the table in `models.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

Work = Callable[["Words", Tensor], Tensor]


class Words(nn.Module):
    """An embedding (batch, time, 6), `work(net, x)` with the layers given, and a linear head of 3 classes."""

    def __init__(self, work: Work, width: int = 8, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.words, self.work = nn.Embedding(20, 6), work
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(width, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.work(self, self.words(words)))


def layer(kind: type[nn.RNNBase], depth: int = 1, both: bool = False, **options: Any) -> nn.RNNBase:
    return kind(6, 8, depth, bidirectional=both, batch_first=True, **options)


def _lengths(x: Tensor) -> Tensor:
    return 2 + torch.arange(len(x)) % 4


def _packed(net: Words, x: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, _lengths(x), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(net.rnn(packed)[0], batch_first=True)[0].mean(1)


def _packed_states(net: Words, x: Tensor) -> Tensor:
    rows = [row[:length] for row, length in zip(x, _lengths(x).tolist(), strict=True)]
    hidden, cell = net.rnn(pack_sequence(rows, enforce_sorted=False))[1]
    return torch.cat([hidden[-1], cell[0]], 1)


def _time_first(net: Words, x: Tensor) -> Tensor:
    return net.rnn(x.transpose(0, 1))[0].mean(0)


def _last_states(net: Words, x: Tensor) -> Tensor:
    hidden = net.rnn(x)[1][0]
    return torch.cat([hidden[-2], hidden[-1]], 1)


def _laid_out_states(net: Words, x: Tensor) -> Tensor:
    """(2 layers, 2 directions): the last layer's, beside the mean over all four."""
    states = net.rnn(x)[1]
    last = states.view(2, 2, x.shape[0], -1)[-1].transpose(0, 1).flatten(1)
    return torch.cat([last, states.mean(0)], 1)


def _projected(net: Words, x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that oneDNN has no projections
        steps, (hidden, cell) = net.rnn(x)
    return torch.cat([steps.mean(1), hidden[-1], cell[-1]], 1)


def _cells(net: Words, x: Tensor) -> Tensor:
    """An LSTM cell, a GRU cell on its output, both started by torch's own zeros, and an RNN cell started by a layer."""
    lstm, gru, rnn = None, None, net.start(x.mean(1))
    for step in x.unbind(1):
        lstm = net.lstm(step, lstm)
        gru = net.gru(lstm[0], gru)
        rnn = net.rnn(step, rnn)
    return torch.cat([gru, rnn], 1)


def _written_zeros(net: Words, x: Tensor) -> Tensor:
    return net.rnn(x, torch.zeros(1, len(x), 8))[0][:, -1]


def _followed_zeros(net: Words, x: Tensor) -> Tensor:
    return net.rnn(x, x.new_zeros(2, x.shape[0], net.rnn.hidden_size))[0][:, -1]


def packed() -> nn.Module:
    return Words(_packed, 16, rnn=layer(nn.GRU, 2, True))


def packed_states() -> nn.Module:
    return Words(_packed_states, 16, rnn=layer(nn.LSTM, 2))


def elman() -> nn.Module:
    return Words(
        lambda net, x: net.rnn(x)[0][:, -1], rnn=layer(nn.RNN, nonlinearity="relu", bias=False)
    )


def deep() -> nn.Module:
    return Words(_time_first, 16, rnn=nn.LSTM(6, 8, 3, bidirectional=True))


def last_states() -> nn.Module:
    return Words(_last_states, 16, rnn=layer(nn.LSTM, 2, True))


def laid_out_states() -> nn.Module:
    return Words(_laid_out_states, 24, rnn=layer(nn.GRU, 2, True))


def projected() -> nn.Module:
    return Words(_projected, 2 * 3 + 3 + 8, rnn=layer(nn.LSTM, 2, True, proj_size=3))


def cells() -> nn.Module:
    layers = {
        "lstm": nn.LSTMCell(6, 8),
        "gru": nn.GRUCell(8, 10),
        "rnn": nn.RNNCell(6, 7),
        "start": nn.Linear(6, 7),
    }
    return Words(_cells, 17, **layers)


def translator() -> nn.Module:
    """The decoder starts with the encoder's states: they are one group."""
    return Words(
        lambda net, x: net.decoder(x, net.rnn(x)[1])[0][:, -1],
        rnn=layer(nn.LSTM, 2),
        decoder=layer(nn.LSTM, 2),
    )


def learned_start() -> nn.Module:
    """One last dimension of the start for both layers: their units go in pairs."""
    start = nn.Parameter(torch.randn(2, 1, 8))
    return Words(
        lambda net, x: net.rnn(x, net.start.repeat(1, len(x), 1))[0][:, -1],
        rnn=layer(nn.GRU, 2),
        start=start,
    )


def unbatched() -> nn.Module:
    return Words(
        lambda net, x: torch.stack([net.rnn(row)[1][0][-1] for row in x]), rnn=layer(nn.LSTM, 2)
    )


def twice() -> nn.Module:
    """Shared, in a residual stream, and normalised."""
    return Words(
        lambda net, x: net.norm((y := net.up(x)) + net.rnn(net.rnn(y)[0])[0]).mean(1),
        up=nn.Linear(6, 8),
        rnn=nn.GRU(8, 8, batch_first=True),
        norm=nn.LayerNorm(8),
    )


def followed_zeros() -> nn.Module:
    return Words(_followed_zeros, rnn=layer(nn.GRU, 2))


def written_zeros() -> nn.Module:
    return Words(_written_zeros, rnn=layer(nn.GRU))


def normed_recurrent() -> nn.Module:
    rnn = nn.utils.parametrizations.weight_norm(layer(nn.GRU), "weight_hh_l0")
    return Words(
        lambda net, x: net.after(net.rnn(x)[0][:, -1]), 10, rnn=rnn, after=nn.Linear(8, 10)
    )


class Tagger(nn.Module):
    """The last layer's units are the output, the first's are not: they have one size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn = nn.Linear(6, 10), nn.LSTM(10, 8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.enter(x))[0]


class GivenStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn, self.head = (
            nn.Linear(6, 10),
            nn.GRU(10, 8, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        return self.head(self.rnn(self.enter(x), start[None])[0].mean(1))
