"""Model-local functions, which newer exporters write a layer as."""

from __future__ import annotations

import onnx
import onnx.inliner

from amq_onnx.errors import ModelError
from amq_onnx.skeleton import on_skeleton


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its functions' nodes in place of their calls; the model itself where it has none.

    Functions of another operator set are converted to the model's. Raises ModelError where that fails.
    """
    if not model.functions:
        return model
    try:
        return on_skeleton(model, lambda light: onnx.inliner.inline_local_functions(light, convert_version=True))
    except Exception as error:
        raise ModelError(f"the functions of the model can't be inlined: {error}.") from error
