"""Inputs drawn at random, for a model without data: sizes and speed can be told from them, accuracy can't."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.errors import UsageError
from amq_onnx.model.data import Batch, Dataset
from amq_onnx.model.inputs import InputSpec, input_specs

# What hands indices on as they are.
_CARRIERS = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


def random_data(model: onnx.ModelProto, samples: int, seed: int) -> Dataset:
    """`samples` samples for `model`, of which only the dimension that counts them may be free.

    Floats are standard normal. Integers that pick rows of a table are any of its rows, those of 8 bits (pixels) any
    number; all others are ones, as is what isn't masked, and booleans are true.

    Raises UsageError, naming the input, where another dimension is free.
    """
    specs = input_specs(model)
    generator = np.random.default_rng(seed)
    rows = _table_rows(model)
    arrays: Batch = {}
    for spec in specs:
        sizes = [samples if axis == spec.sample_axis else size for axis, size in enumerate(spec.shape)]
        shape = tuple(size for size in sizes if size is not None)
        if len(shape) < len(sizes):
            raise UsageError(f"--random needs fixed sizes, but input '{spec.name}' has free dimensions: give --data")
        arrays[spec.name] = _drawn(generator, spec, shape, rows.get(spec.name, 0))
    return Dataset(lambda: [arrays], specs, "random data")


def _drawn(generator: np.random.Generator, spec: InputSpec, shape: tuple[int, ...], rows: int) -> NDArray[Any]:
    if spec.dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(spec.dtype)
    if rows:
        return generator.integers(0, rows, shape).astype(spec.dtype)
    if spec.dtype.kind in "iu" and spec.dtype.itemsize == 1:
        limits = np.iinfo(spec.dtype)
        return generator.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    return np.ones(shape, spec.dtype)


def _table_rows(model: onnx.ModelProto) -> dict[str, int]:
    """Of each input that picks rows of tables, by Gather, how many the smallest of them has."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    found: dict[str, int] = {}
    for value in model.graph.input:
        reached = [value.name]
        for name in reached:
            for node in readers[name]:
                if node.op_type in _CARRIERS and node.input[0] == name:
                    reached.extend(node.output)
                elif node.op_type == "Gather" and node.input[1] == name and node.input[0] in tables:
                    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                    sizes = tables[node.input[0]]
                    rows = sizes[axis] if -len(sizes) <= axis < len(sizes) else 0
                    found[value.name] = min(rows, found.get(value.name, rows))
    return found
