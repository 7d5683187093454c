"""Inputs drawn at random, for a model without data: sizes and speed can be told from them, accuracy can't."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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


def random_data(
    model: onnx.ModelProto, samples: int, seed: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Dataset:
    """`samples` samples for `model`. Its inputs have the sizes that `shapes` gives by name, where it leaves them free.

    Floats are standard normal. Integers that pick rows of a table are any of its rows, those of 8 bits (pixels) any
    number; all others are ones, as is what isn't masked, and booleans are true.

    Raises UsageError, naming the input, where a dimension besides the one that counts samples is free and `shapes` has
    nothing for it, and where an entry of `shapes` fits no input.
    """
    specs = input_specs(model)
    given = shapes or {}
    for name in given.keys() - {spec.name for spec in specs}:
        inputs = ", ".join(spec.name for spec in specs)
        raise UsageError(f"--shape {name}: the model has no such input; it has {inputs}")
    generator = np.random.default_rng(seed)
    rows = _table_rows(model)
    arrays: Batch = {}
    for spec in specs:
        sizes = _sizes(spec, given.get(spec.name))
        shape = tuple(samples if axis == spec.sample_axis else size for axis, size in enumerate(sizes))
        arrays[spec.name] = _drawn(generator, spec, shape, rows.get(spec.name, 0))
    return Dataset(lambda: [arrays], specs, "random data")


def _sizes(spec: InputSpec, given: tuple[int, ...] | None) -> list[int]:
    """The sizes of an input, its samples counted as 1; raises UsageError where they don't follow from `given`."""
    known = [1 if axis == spec.sample_axis else size for axis, size in enumerate(spec.shape)]
    if given is not None and not spec.fits(given):
        wanted = ",".join("N" if size is None else str(size) for size in known)
        raise UsageError(f"--shape {spec.name}={','.join(map(str, given))} doesn't fit the input: it is {wanted}")
    sizes = [size for size in given or known if size is not None]
    if len(sizes) < len(known):
        example = ",".join("224" if size is None else str(size) for size in known)
        raise UsageError(
            f"input '{spec.name}' has free dimensions: give their sizes, like --shape {spec.name}={example}, or --data"
        )
    return sizes


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
