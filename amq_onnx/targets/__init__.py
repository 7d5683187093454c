"""What files are written for, by name."""

from amq_onnx.targets.onnxruntime import OnnxRuntimeTarget
from amq_onnx.targets.standard import StandardTarget
from amq_onnx.targets.target import Target

TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (OnnxRuntimeTarget, StandardTarget)}

__all__ = ["TARGETS", "Target"]
