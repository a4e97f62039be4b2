"""Attention that stays right when heads or the embedding are cut: `nn.MultiheadAttention` with
widths of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention"]


class Attention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose inner width is its heads times `head_dim`, whatever the
    embedding's width is.

    The same parameters under the same names, the same arguments and outputs (Vaswani et al. 2017,
    arXiv:1706.03762).
    """

    @classmethod
    def take_over(cls, module: nn.MultiheadAttention) -> None:
        """Make a plain `nn.MultiheadAttention` one of these, in place."""
        module.__class__ = cls
        # Keeps torch's encoder layers off their fused path, which needs even widths
        module._qkv_same_embed_dim = False

    @classmethod
    def take_over_all(cls, model: nn.Module) -> None:
        """The same for every plain one in a model, in place: its own forward hides the
        projections."""
        for module in cls.plain(model):
            cls.take_over(module)

    @staticmethod
    def plain(model: nn.Module) -> list[nn.MultiheadAttention]:
        """The modules that are `nn.MultiheadAttention` itself."""
        return [module for module in model.modules() if type(module) is nn.MultiheadAttention]

    def follow_shapes(self) -> None:
        """Set the attributes that say how wide it is."""
        weight = self.in_proj_weight if self.in_proj_weight is not None else self.q_proj_weight
        inner = len(weight) // 3 if self.in_proj_weight is not None else len(weight)
        self.num_heads = inner // self.head_dim
        self.embed_dim = self.out_proj.weight.shape[0]
        self.out_proj.out_features, self.out_proj.in_features = self.out_proj.weight.shape
        widths = (
            [weight] * 2
            if self.in_proj_weight is not None
            else [self.k_proj_weight, self.v_proj_weight]
        )
        self.kdim, self.vdim = (width.shape[1] for width in widths)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Shapes as for `nn.MultiheadAttention`; attention weights are None unless
        `need_weights`."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = self._project(query, key, value)
        heads = q.shape[-1] // self.head_dim
        mask = self._mask(key_padding_mask, attn_mask, is_causal, q, k, heads)
        if self.add_zero_attn:
            k, v = (F.pad(tensor, (0, 0, 0, 1)) for tensor in (k, v))
        q, k, v = (
            tensor.view(*tensor.shape[:2], heads, self.head_dim).transpose(1, 2)
            for tensor in (q, k, v)
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, tokens, heads * head_dim) each, learned extra key and value tokens joined."""
        bias = self.in_proj_bias
        biases = bias.chunk(3) if bias is not None else (None, None, None)
        weights = (
            self.in_proj_weight.chunk(3)
            if self.in_proj_weight is not None
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        q, k, v = (
            F.linear(tensor, weight, own)
            for tensor, weight, own in zip((query, key, value), weights, biases, strict=True)
        )
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        return q, k, v

    def _mask(
        self,
        padding: Tensor | None,
        mask: Tensor | None,
        causal: bool,
        q: Tensor,
        k: Tensor,
        heads: int,
    ) -> Tensor | None:
        """One additive mask, broadcast to (batch, heads, queries, keys), from the two that may be
        given."""
        parts = []
        if mask is None and causal:
            raise ValueError("is_causal is a hint about attn_mask; give attn_mask as well")
        if mask is not None:
            parts.append(mask if mask.dim() == 2 else mask.view(q.shape[0], heads, *mask.shape[1:]))
        if padding is not None:
            parts.append(padding.view(q.shape[0], 1, 1, -1))
        joined = None
        for part in parts:
            if part.dtype == torch.bool:
                part = torch.zeros_like(part, dtype=q.dtype).masked_fill_(part, float("-inf"))
            joined = part if joined is None else joined + part
        extra = k.shape[1] - joined.shape[-1] + int(self.add_zero_attn) if joined is not None else 0
        return F.pad(joined, (0, extra)) if joined is not None and extra else joined
