"""Operators of ai.onnx.ml that stand in front of networks in exported pipelines: features scaled, filled in, picked."""

from __future__ import annotations

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator

_ML = ("ai.onnx.ml",)


def _row(node: NodeContext, name: str, x: Tensor, default: float) -> Tensor:
    """A list attribute, a number for each of x's last axis or one for all."""
    return torch.tensor(node.numbers(name) or [default], dtype=node.dtype, device=x.device)


@operator("Scaler", domains=_ML)
def scaler(node: NodeContext, x: Tensor) -> Tensor:
    """(x - offset) * scale, a number for each feature [N, F]."""
    return (x.to(node.dtype) - _row(node, "offset", x, 0.0)) * _row(node, "scale", x, 1.0)


@operator("Normalizer", domains=_ML)
def normalizer(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, F] or [F] over its largest value, the sum of its magnitudes or its length; rows of zeros stay, as in
    onnxruntime, which divides by the largest value itself and not its magnitude."""
    x = x.to(node.dtype)
    match node.text("norm", "MAX"):
        case "MAX":
            size = x.amax(-1, keepdim=True)
        case "L1":
            size = x.abs().sum(-1, keepdim=True)
        case _:
            size = x.square().sum(-1, keepdim=True).sqrt()
    return torch.where(size == 0, x, x / torch.where(size == 0, torch.ones_like(size), size))


@operator("Imputer", domains=_ML)
def imputer(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, F] with the values that stand for missing ones replaced, by one for each feature or one for all."""
    kind = "float" if x.is_floating_point() else "int64"
    replaced = node.number(f"replaced_value_{kind}")
    values = node.numbers(f"imputed_value_{kind}s")
    if values is None:
        raise node.unsupported("an Imputer without values of x's type")
    missing = x.isnan() if replaced != replaced else x == replaced
    return torch.where(missing, torch.tensor(values, dtype=x.dtype, device=x.device), x)


@operator("Binarizer", domains=_ML)
def binarizer(node: NodeContext, x: Tensor) -> Tensor:
    """1 where x is above the threshold, else 0."""
    return (x > node.number("threshold")).to(x.dtype)


@operator("ArrayFeatureExtractor", domains=_ML)
def array_feature_extractor(node: NodeContext, x: Tensor, indices: Tensor) -> Tensor:
    """The values at `indices` of x's last axis: [..., F] -> [..., indices]; of a vector, [1, indices]."""
    found = x.index_select(-1, indices.reshape(-1).to(torch.int64))
    return found.reshape(1, -1) if x.dim() == 1 else found


@operator("FeatureVectorizer", domains=_ML)
def feature_vectorizer(node: NodeContext, *parts: Tensor) -> Tensor:
    """Features [N, f] (or [f], of one sample) behind each other, as floats [N, sum of f]."""
    return torch.cat([part.to(node.dtype).reshape(-1, part.shape[-1]) for part in parts], 1)
