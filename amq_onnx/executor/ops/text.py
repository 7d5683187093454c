"""Counts of n-grams in sequences of words, given as integers."""

from __future__ import annotations

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _counts(tokens: Tensor, grams: Tensor, skips: range) -> Tensor:
    """How often each of grams [G, n] occurs in tokens [N, L], as [N, G]; its words are skip + 1 places apart."""
    length, n = tokens.shape[1], grams.shape[1]
    total = torch.zeros(tokens.shape[0], grams.shape[0], dtype=torch.int64, device=tokens.device)
    for step in (skip + 1 for skip in skips):
        starts = length - (n - 1) * step
        if starts > 0:
            windows = torch.stack([tokens[:, i * step : i * step + starts] for i in range(n)], -1)
            total = total + (windows.unsqueeze(2) == grams).all(-1).sum(1)
    return total


@operator("TfIdfVectorizer")
def tf_idf_vectorizer(node: NodeContext, x: Tensor) -> Tensor:
    """x [L] or [N, L] of integers -> counts [columns] or [N, columns], weighted in the modes IDF and TFIDF."""
    pool = node.integers("pool_int64s")
    if pool is None:
        raise node.unsupported("words as strings")
    tokens = x.reshape(-1, x.shape[-1]).to(torch.int64)
    places = torch.tensor(node.integers("ngram_indexes"), dtype=torch.int64, device=x.device)
    starts = node.integers("ngram_counts") or [0]
    skips = range(node.integer("max_skip_count") + 1)
    counts = []
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        grams = torch.tensor(pool[start:end], dtype=torch.int64, device=x.device).reshape(-1, n)
        if node.integer("min_gram_length") <= n <= node.integer("max_gram_length"):
            counts.append(_counts(tokens, grams, skips if n > 1 else range(1)))
        else:
            counts.append(torch.zeros(tokens.shape[0], grams.shape[0], dtype=torch.int64, device=x.device))
    found = torch.cat(counts, 1).to(node.dtype)
    mode = node.text("mode")
    if mode == "IDF":
        found = torch.clamp(found, max=1)
    weights = node.numbers("weights")
    if mode != "TF" and weights is not None:
        found = found * torch.tensor(weights, dtype=found.dtype, device=x.device)
    size = max(node.integers("ngram_indexes") or [0]) + 1
    y = torch.zeros(tokens.shape[0], size, dtype=found.dtype, device=x.device).index_copy(1, places, found)
    return y.reshape(*x.shape[:-1], size)
