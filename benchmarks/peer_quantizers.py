"""Runs one other tool on one model, in the environment that peers.py makes for it.

    python peer_quantizers.py TOOL SETTING MODEL CALIBRATION.npy OUT

Each tool with per-channel weights, 8-bit activations where the setting has them, and otherwise as its documentation
says. The model's one input is [batch, 3, H, W]; the calibration images are an array of that shape.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

_BATCH = 16
_STEPS = 1000


def _batches(calibration: Path, name: str) -> Iterator[dict[str, NDArray[np.float32]]]:
    images = np.load(calibration, mmap_mode="r")
    for start in range(0, len(images), _BATCH):
        yield {name: np.ascontiguousarray(images[start : start + _BATCH])}


def onnxruntime_static(setting: str, model: Path, calibration: Path, out: Path) -> None:
    """quantize_static, QDQ, uint8 activations; its advice for CPUs without VNNI, 7 bits, is not taken."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    name = onnx.load(model).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches, then None."""

        def __init__(self) -> None:
            self.batches = _batches(calibration, name)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    widths = {"W8A8": QuantType.QInt8, "W4A8": QuantType.QInt4}
    quantize_static(
        model, out, Reader(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=widths[setting]
    )


def aimet(setting: str, model: Path, calibration: Path, out: Path) -> None:
    """QuantizationSimModel, its ranges from the calibration images, exported as QDQ with int32 biases.

    Before that, where the setting says so, AdaRound with as many steps a layer as ours has a block, or weight ranges by
    SeqMSE; each on all of the images, as their documentation has it.
    """
    import aimet_onnx
    from aimet_onnx import QuantizationSimModel

    proto = onnx.load(model)
    name = proto.graph.input[0].name
    widths, _, method = setting.partition("-")
    simulation = QuantizationSimModel(
        proto,
        param_type={"W8A8": "int8", "W4A8": "int4"}[widths],
        activation_type="int8",
        quant_scheme="min_max" if method == "SeqMSE" else "tf_enhanced",  # the one that SeqMSE allows
    )
    if method == "AdaRound":
        aimet_onnx.apply_adaround(simulation, list(_batches(calibration, name)), num_iterations=_STEPS)
    elif method == "SeqMSE":
        aimet_onnx.apply_seq_mse(simulation, list(_batches(calibration, name)))
    simulation.compute_encodings(_batches(calibration, name))
    onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out)


def quantization_rs(setting: str, model: Path, calibration: Path, out: Path) -> None:
    """Weights alone at 8 or 4 bits; with activations 8 bits only, and the batch of 1 that its calibration asks for."""
    import quantize_rs

    if setting in ("W8", "W4"):
        bits = int(setting[1])
        quantize_rs.quantize(str(model), str(out), bits=bits, per_channel=True, native_int4=bits == 4)
        return
    if setting != "W8A8":
        sys.exit(f"quantization-rs has no {setting}")
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]  # the exporter's shapes, of any batch
    with tempfile.TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.onnx"
        onnx.save(proto, fixed)
        quantize_rs.quantize_with_calibration(
            str(fixed), str(out), calibration_data=str(calibration), per_channel=True, symmetric=True
        )


TOOLS = {"onnxruntime": onnxruntime_static, "aimet": aimet, "quantization-rs": quantization_rs}

if __name__ == "__main__":
    tool, chosen, *paths = sys.argv[1:]
    TOOLS[tool](chosen, *map(Path, paths))
