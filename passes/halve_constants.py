"""Stores constants in half their bytes where nothing is lost."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, replace_readers
from amq_onnx.passes.names import free_names

# Below, the Cast and its names take what is saved.
_LEAST_BYTES = 1024


class HalveConstants(Pass):
    """Stores float32 constants that float16 holds exactly as float16.

    Before:  initializer c (float32) -> Add
    After:   initializer c16 (float16) -> Cast -> c -> Add

    Such are what stays float of a model of float16, masks of 0 and 1, and tables of whole numbers. onnxruntime folds
    the Cast when it loads the file. Other consumers may want constants where they are read, and get them.
    """

    def __init__(self, stem: str) -> None:
        """stem: what the names of what is stored start with."""
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        names = free_names(graph, f"{self.stem}_half")
        outputs = {id(tensor) for tensor in graph.outputs}
        casts = []
        for tensor in list(graph.tensors().values()):
            if not isinstance(tensor, gs.Constant) or id(tensor) in outputs or tensor.dtype != np.float32:
                continue
            if int(np.prod(tensor.shape)) * 4 < _LEAST_BYTES or (half := _halved(tensor.values)) is None:
                continue
            made = gs.Variable(tensor.name, np.dtype(np.float32), tensor.shape)
            stored = gs.Constant(next(names), half)
            replace_readers(tensor, made)
            casts.append(gs.Node("Cast", "", {"to": int(onnx.TensorProto.FLOAT)}, [stored], [made]))
        graph.nodes[:0] = casts
        return bool(casts)


def _halved(values: np.ndarray) -> np.ndarray | None:
    """`values` in float16, None where that changes any."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values, equal_nan=True) else None
