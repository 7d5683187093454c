"""What a run of a model must be given: its inputs, and which of their dimensions counts samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from amq_onnx.errors import DataError


@dataclass(frozen=True)
class InputSpec:
    """A graph input: its name, element type and shape (None where a dimension is free).

    sample_axis: the dimension that counts samples; None for an input that is the same for all of them.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    sample_axis: int | None = 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True if `shape` is that of the input, but for the number of samples."""
        if len(shape) != len(self.shape):
            return False
        pairs = zip(self.shape, shape, strict=True)
        return all(axis == self.sample_axis or want in (None, have) for axis, (want, have) in enumerate(pairs))

    def fixed_batch(self) -> int | None:
        """The number of samples that the model insists on."""
        return None if self.sample_axis is None else self.shape[self.sample_axis]


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs that a run of `model` must be given.

    Samples run along the first dimension of the first input that has any. In the others it is the dimension of the
    same name, else the first one where that is free or of the same size, else the first such dimension behind it
    (the state of a recurrent network is [layers, samples, hidden]); an input with no such dimension, a scalar for
    one, is the same for all samples.

    Raises DataError for inputs that aren't tensors.
    """
    weights = {initializer.name for initializer in model.graph.initializer}
    specs: list[InputSpec] = []
    first: tuple[str, int | None] | None = None
    for value in model.graph.input:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            raise DataError(f"input '{value.name}' is not a tensor: models with sequence inputs can't be run here")
        tensor = value.type.tensor_type
        names = [dim.dim_param for dim in tensor.shape.dim]
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
        )
        if first is None and shape:
            first = (names[0], shape[0])
        axis = None if first is None else _sample_axis(names, shape, *first)
        specs.append(InputSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape, axis))
    return tuple(specs)


def _sample_axis(names: list[str], shape: tuple[int | None, ...], name: str, size: int | None) -> int | None:
    if name and name in names:
        return names.index(name)
    return next((axis for axis, here in enumerate(shape) if here == size), None)
