"""Lets a quantized layer read the channels of its data in another order, or more than once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs


def gather_channels(graph: gs.Graph, conv: gs.Node, channels: gs.Tensor, names: Iterator[str]) -> None:
    """Let `conv` read the `channels`, int64 or int32 [c'], of its dequantized data; other readers keep theirs.

    Before:  codes [n, c, ..] -> DequantizeLinear -> Conv
    After:   codes -> Gather(channels, axis 1) -> DequantizeLinear -> Conv
    """
    codes, *parameters = conv.inputs[0].inputs[0].inputs
    gathered = gs.Variable(next(names), codes.dtype)
    real = gs.Variable(next(names), np.float32)
    graph.nodes.append(gs.Node("Gather", "", {"axis": 1}, [codes, channels], [gathered]))
    graph.nodes.append(gs.Node("DequantizeLinear", "", {}, [gathered, *parameters], [real]))
    conv.inputs[0] = real
