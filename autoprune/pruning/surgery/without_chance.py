"""A forward in training mode without chance: dropout lets all pass, noise is constant, norms keep
their statistics.

What a cut must equal can then be compared in training mode as well. Batch norm with running
statistics uses them: over a batch of two its own would make everything ±1, and of one value per
channel torch has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DROPOUTS", "RECURRENT", "Steady"]

_NOISE = {
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "normal",
    "normal_",
    "uniform_",
    "exponential_",
}
# Drop path and its kin draw what stays: here all of it does
_COINS = {"bernoulli", "bernoulli_"}
_FLAGS: Mapping[
    Any, tuple[int, str, Any]
] = {  # place and name of the argument that brings chance, and what is harmless
    **dict.fromkeys(
        (
            F.dropout,
            F.dropout1d,
            F.dropout2d,
            F.dropout3d,
            F.alpha_dropout,
            F.feature_alpha_dropout,
        ),
        (2, "training", False),
    ),
    **dict.fromkeys(
        (
            torch.dropout,
            torch.dropout_,
            torch.feature_dropout,
            torch.alpha_dropout,
            torch.feature_alpha_dropout,
        ),
        (2, "train", False),
    ),
    F.rrelu: (3, "training", False),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.batch_norm: (5, "training", False),
}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}

DROPOUTS = {func for func, (place, *_) in _FLAGS.items() if place == 2}


class Steady(TorchFunctionMode):
    """Calls that depend on the mode or on chance give what they give in eval mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _NOISE or name in _COINS:
            out = func(*args, **kwargs)
            floating = isinstance(out, Tensor) and out.is_floating_point()
            return out.fill_(1.0 if name in _COINS else 0.5) if floating else out
        if func in _FLAGS and not (
            func is F.batch_norm and _argument(args, kwargs, 1, "running_mean") is None
        ):
            place, flag, harmless = _FLAGS[func]
            if len(args) > place:
                args = (*args[:place], harmless, *args[place + 1 :])
            else:
                kwargs[flag] = harmless
        elif name in RECURRENT and len(args) > 7:
            # packed sequences have their batch sizes before the parameters
            place = 5 if isinstance(args[3], bool) else 6
            args = (*args[:place], 0.0, *args[place + 1 :])
        return func(*args, **kwargs)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)
