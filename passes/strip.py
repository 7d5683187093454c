"""Takes out of a model what only its exporter's debugging needs."""

from __future__ import annotations

import onnx

from amq_onnx.passes.subgraphs import subgraphs

# Exporters keep their own notes on a graph under these keys (torch writes 9 KB of signatures).
_EXPORTER_KEYS = ("pkg.torch.", "pkg.onnxscript.")
_SOURCE_LINES = "pkg.torch.onnx.stack_trace"
# Attributes whose default depends on the rank, so that the operator's schema names none.
_ALL_ONES = frozenset({"strides", "dilations"})
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})


def drop_source_lines(model: onnx.ModelProto) -> None:
    """Take out of `model` the source lines that torch notes for every node: their paths are those of one machine, and
    the file would depend on the folder that it was written from."""
    for graph in (model.graph, *subgraphs(model.graph)):
        for node in graph.node:
            kept = [entry for entry in node.metadata_props if entry.key != _SOURCE_LINES]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)


def strip_exporter_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without what its exporter wrote for debugging, which no run depends on.

    Doc strings and metadata of nodes, shapes of inner tensors, the exporter's own notes on the graph, and
    attributes that spell out the operator's default: half of the bytes of a file of 3-bit weights. Metadata of
    the model and everybody else's metadata of the graph stay.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    opsets = {entry.domain: entry.version for entry in stripped.opset_import}
    kept = [entry for entry in stripped.graph.metadata_props if not entry.key.startswith(_EXPORTER_KEYS)]
    del stripped.graph.metadata_props[:]
    stripped.graph.metadata_props.extend(kept)
    graphs = [stripped.graph]
    while graphs:
        graph = graphs.pop()
        del graph.value_info[:]
        for initializer in graph.initializer:
            initializer.ClearField("doc_string")
            del initializer.metadata_props[:]
        for value in (*graph.input, *graph.output):
            del value.metadata_props[:]
        for node in graph.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
            _drop_defaults(node, opsets)
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
    return stripped


def _drop_defaults(node: onnx.NodeProto, opsets: dict[str, int]) -> None:
    version = opsets.get(node.domain) or opsets.get("ai.onnx" if not node.domain else node.domain)
    if version is None or not onnx.defs.has(node.op_type, node.domain):
        return
    try:
        defaults = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
    except onnx.defs.SchemaError:
        return
    kept = []
    for attribute in node.attribute:
        default = defaults[attribute.name].default_value if attribute.name in defaults else None
        spelled_out = (
            default is not None
            and default.type == attribute.type
            and onnx.helper.get_attribute_value(default) == onnx.helper.get_attribute_value(attribute)
        )
        if node.op_type in _WINDOWED:
            ones = attribute.name in _ALL_ONES and all(value == 1 for value in attribute.ints)
            unpadded = attribute.name == "pads" and not any(attribute.ints)
            spelled_out = spelled_out or ones or unpadded
        if not spelled_out or attribute.ref_attr_name:
            kept.append(attribute)
    if len(kept) < len(node.attribute):
        copies = [onnx.AttributeProto() for _ in kept]
        for copy, attribute in zip(copies, kept, strict=True):
            copy.CopyFrom(attribute)
        del node.attribute[:]
        node.attribute.extend(copies)
