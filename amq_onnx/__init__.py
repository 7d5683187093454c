"""AMQ-ONNX: automatic mixed-precision quantization of ONNX models.

`quantize` is the whole way from a float .onnx file to a verified smaller one. Names are imported when they are
first used: importing this package imports neither torch nor onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amq_onnx.errors import AMQError as AMQError
    from amq_onnx.measurement_options import SensitivityOptions as SensitivityOptions
    from amq_onnx.model.data import Dataset as Dataset
    from amq_onnx.model.data import open_data as open_data
    from amq_onnx.pipeline import quantize as quantize
    from amq_onnx.plan import Plan as Plan
    from amq_onnx.result import Result as Result
    from amq_onnx.runtime.verification import Verification as Verification
    from amq_onnx.runtime.verification import verify as verify
    from amq_onnx.sensitivity import Sensitivity as Sensitivity

_HOMES = {
    "AMQError": "amq_onnx.errors",
    "Dataset": "amq_onnx.model.data",
    "Plan": "amq_onnx.plan",
    "Result": "amq_onnx.result",
    "Sensitivity": "amq_onnx.sensitivity",
    "SensitivityOptions": "amq_onnx.measurement_options",
    "Verification": "amq_onnx.runtime.verification",
    "open_data": "amq_onnx.model.data",
    "quantize": "amq_onnx.pipeline",
    "verify": "amq_onnx.runtime.verification",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'amq_onnx' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
