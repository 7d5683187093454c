"""Takes out of a model what only its exporter's debugging needs."""

from __future__ import annotations

import onnx


def strip_exporter_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without doc strings and metadata of nodes, and without shapes of inner tensors.

    Exporters write them per node and tensor (source lines, module paths): half of the bytes of a file of 3-bit
    weights. Everything at the level of the model and the graph stays.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graphs = [stripped.graph]
    while graphs:
        graph = graphs.pop()
        del graph.value_info[:]
        for initializer in graph.initializer:
            initializer.ClearField("doc_string")
        for node in graph.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
    return stripped
