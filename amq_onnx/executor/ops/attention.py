"""Attention, written out: torch's fused kernels have no second derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _heads(x: Tensor, count: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _bias(node: NodeContext, scores: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None) -> Tensor | None:
    """What is added to the scores [batch, heads, queries, keys]: mask, causality, window, padded keys."""
    queries, keys = scores.shape[-2:]
    allowed: Tensor | None = None
    bias: Tensor | None = None
    if mask is not None:
        if mask.shape[-1] < keys:  # keys that the mask doesn't reach are left out
            missing = [*mask.shape[:-1], keys - mask.shape[-1]]
            fill = False if mask.dtype == torch.bool else float("-inf")
            mask = torch.cat([mask, mask.new_full(missing, fill)], -1)
        allowed, bias = (mask, None) if mask.dtype == torch.bool else (None, mask)
    columns = torch.arange(keys, device=scores.device)
    rows = torch.arange(queries, device=scores.device)[:, None] + past
    conditions = []
    if lengths is not None:  # the queries are the last of the keys that are no padding
        rows = rows + (lengths - queries).reshape(-1, 1, 1, 1)
        conditions.append(columns < lengths.reshape(-1, 1, 1, 1))
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    if node.integer("is_causal"):
        conditions.append(columns <= rows)
    if left >= 0:
        conditions.append(columns >= rows - left)
    if right >= 0:
        conditions.append(columns <= rows + right)
    for condition in conditions:
        allowed = condition if allowed is None else allowed & condition
    if allowed is not None:
        barred = torch.zeros(allowed.shape, dtype=scores.dtype, device=scores.device)
        barred = barred.masked_fill(~allowed, float("-inf"))
        bias = barred if bias is None else bias + barred
    return bias


@operator("Attention")
def attention(
    node: NodeContext,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """q, k, v [batch, heads, length, size], or [batch, length, heads * size] with the heads as attributes.

    Also the present keys and values, and the product of queries and keys in the form that
    qk_matmul_output_mode asks for.
    """
    flat = q.dim() == 3
    if flat:
        q = _heads(q, node.integer("q_num_heads"))
        k, v = (_heads(x, node.integer("kv_num_heads")) for x in (k, v))
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys, values = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    root = math.sqrt(node.attributes.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = torch.matmul(q * root, k.transpose(-1, -2) * root)
    products = [scores] * 4
    cap = node.number("softcap")
    if cap:
        scores = cap * torch.tanh(scores / cap)
    products[1] = scores
    bias = _bias(node, scores, mask, past, lengths)
    if bias is None:
        products[2], weights = scores, torch.softmax(scores, -1)
    else:  # a query with no key left gets zeros, and no NaN in its derivatives
        scores = products[2] = scores + bias
        barred = torch.isneginf(scores).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(barred, 0.0), -1).masked_fill(barred, 0.0)
    products[3] = weights
    y = torch.matmul(weights, v)
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    return y, keys, values, products[node.integer("qk_matmul_output_mode")]


@operator("RotaryEmbedding")
def rotary_embedding(node: NodeContext, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """x [batch, heads, length, size] or [batch, length, heads * size]; caches [*, size/2]."""
    flat = x.dim() == 3
    if flat:
        x = _heads(x, node.integer("num_heads"))
    size = node.integer("rotary_embedding_dim") or x.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., : size // 2].unsqueeze(1), sin[..., : size // 2].unsqueeze(1)
    interleaved = bool(node.integer("interleaved"))
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    first, second = cos * a - sin * b, sin * a + cos * b
    turned = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if flat else y
