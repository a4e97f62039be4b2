"""What Torch-Pruning must be told about a model, and what must be set by hand after its step, as in
its examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch_pruning as tp
from torch import Tensor, nn

PROJECTIONS = (  # names of the layers for q, k, v; attribute for the number of heads
    (("query", "key", "value"), "num_attention_heads"),
    (("q_lin", "k_lin", "v_lin"), "n_heads"),
    (("q_proj", "k_proj", "v_proj"), "num_attention_heads"),
)


class PatchMerging(tp.BasePruningFunc):  # type: ignore[misc]
    """Swin's patch merging, after examples/transformers/prune_hf_swin.py."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
        tp.prune_linear_out_channels(layer.reduction, idxs)
        return layer

    def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
        dim = layer.reduction.in_features // 4
        repeated = [i + part * dim for part in range(4) for i in idxs]
        tp.prune_linear_in_channels(layer.reduction, repeated)
        tp.prune_layernorm_out_channels(layer.norm, repeated)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.reduction.out_features)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.reduction.in_features // 4)


def settings(
    model: nn.Module, keep: Sequence[str], plain: bool = False, grouped: bool = False
) -> dict[str, Any]:
    """Ignored output layers, heads by projection, customised pruners. Fresh dictionaries: its
    defaults are shared."""
    modules = dict(model.named_modules())
    given: dict[str, Any] = {"ignored_layers": [modules[name] for name in dict.fromkeys(keep)]}
    given |= {"num_heads": {}, "in_channel_groups": {}, "out_channel_groups": {}}
    if plain:
        return given
    for layer, heads in attention(model):
        names = (
            "out_channel_groups"
            if grouped and isinstance(layer, nn.MultiheadAttention)
            else "num_heads"
        )
        given[names][layer] = heads
    merging = {
        type(m) for m in model.modules() if type(m).__name__ in ("PatchMerging", "PatchMergingV2")
    }
    if merging:
        given["customized_pruners"] = {kind: PatchMerging() for kind in merging}
        given["root_module_types"] = [nn.modules.conv._ConvNd, nn.Linear, nn.LSTM, *merging]
    return given


def attention(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Every projection of an attention, and its number of heads."""
    config = getattr(model, "config", None)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield module, module.num_heads
        elif isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
            yield cast(nn.Module, module.qkv), int(cast(int, module.num_heads))
        for names, heads in PROJECTIONS:
            if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
                query = int(getattr(module, heads, 0) or getattr(config, "num_attention_heads", 1))
                keys = int(getattr(config, "num_key_value_heads", None) or query)
                yield getattr(module, names[0]), query
                yield from ((getattr(module, name), keys) for name in names[1:])


def prepare(model: nn.Module) -> nn.Module:
    """timm: attention written out and reading its own width, as
    examples/timm_models/prune_timm_models.py has it."""
    for module in model.modules():
        if (
            type(module).__name__ == "Attention"
            and type(module).__module__ == "timm.layers.attention"
        ):
            module.forward = timm_attention.__get__(module)  # type: ignore[assignment]
    return model


def timm_attention(self: Any, x: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
    b, n, _c = x.shape
    q, k, v = (
        self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    )
    q, k = self.q_norm(q), self.k_norm(k)
    weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
    x = (weights @ v).transpose(1, 2).reshape(b, n, -1)
    return self.proj(self.norm(x))  # type: ignore[no-any-return]


def settle(model: Any, pruner: Any) -> None:
    """Attributes that a forward reads and Torch-Pruning does not know."""
    heads = pruner.num_heads
    if hasattr(model, "conv_proj") and hasattr(model, "hidden_dim"):  # torchvision's ViT
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        qkv: Any = getattr(module, "qkv", None)
        if qkv in heads and hasattr(module, "head_dim"):
            module.num_heads = heads[qkv]
            module.head_dim = qkv.out_features // (3 * heads[qkv])
            module.attn_dim = module.num_heads * module.head_dim
        for names, _ in PROJECTIONS:
            first = getattr(module, names[0], None)
            if first in heads and all(hasattr(module, name) for name in names):
                _settle_projections(
                    model, module, first, heads[first], heads[getattr(module, names[1])]
                )


def _settle_projections(model: nn.Module, module: Any, query: Any, heads: int, keys: int) -> None:
    width = query.out_features // heads
    for name, value in (
        *(("num_attention_heads", heads), ("n_heads", heads), ("num_heads", heads)),
        ("num_key_value_groups", heads // keys),
        *(("attention_head_size", width), ("attention_head_dim", width), ("head_dim", width)),
        *(("all_head_size", query.out_features), ("dim", query.out_features)),
    ):
        if hasattr(module, name):
            setattr(module, name, value)
