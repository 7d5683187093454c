"""What a rewrite pass is, and the runner that checks the model around each."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from amq_onnx.errors import AMQError, ModelError, first_line
from amq_onnx.passes.subgraphs import restore_captured
from amq_onnx.skeleton import check_whole, tensor_bytes

# Its warnings are about its own choices (no colours, types it keeps as numbers), and nothing a user can act on.
G_LOGGER.severity = G_LOGGER.ERROR
# A graph of onnx-graphsurgeon refers to itself, so that its weights stay until Python looks for such. It does that by
# the number of objects, not by their bytes.
_COLLECTED_BYTES = 1 << 28


class Pass(ABC):
    """One rewrite of a graph."""

    @abstractmethod
    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite `graph` in place; True if it changed, so a second run returns False.

        Raises ModelError, naming the node, where the graph can't be rewritten.
        """


def is_standard(node: gs.Node) -> bool:
    """True for an operator of ONNX's own operator set."""
    return node.domain in (None, "", "ai.onnx")


def only_reader(node: gs.Node, outputs: set[int]) -> gs.Node | None:
    """The node that alone reads the output of `node`, None where others do too. outputs: ids of the graph's outputs."""
    made = node.outputs[0]
    return made.outputs[0] if len(made.outputs) == 1 and id(made) not in outputs else None


def replace_readers(tensor: gs.Tensor, by: gs.Tensor) -> None:
    """Let every node that reads `tensor`, in subgraphs too, read `by`."""
    for reader in list(tensor.outputs):
        reader.inputs = [by if read is tensor else read for read in reader.inputs]


class PassList(Pass):
    """Several passes, one after another, as one."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)

    def apply(self, graph: gs.Graph) -> bool:
        """Apply all of them, in order."""
        changed = False
        for rewrite in self.passes:
            changed = rewrite.apply(graph) or changed
        return changed


def run(
    model: onnx.ModelProto,
    passes: Sequence[Pass],
    *,
    until: int | None = None,
    dump: Callable[[int, Pass, onnx.ModelProto], None] | None = None,
) -> onnx.ModelProto:
    """A new model: `model` after `passes`, checked before the first and after each.

    until: stop after that many passes, to find the one at fault. dump: is given the number, the pass and the
    model after each pass. What onnx-graphsurgeon drops on import and export (metadata, doc strings,
    annotations, versions) is carried over. The tensors' bytes are shared with `model`, not copied.

    Raises ModelError, naming the pass, if one of them leaves an invalid model or other inputs and outputs.
    """
    check(model, "before the first pass")
    large = tensor_bytes(model) > _COLLECTED_BYTES
    for number, rewrite in enumerate(passes[:until]):
        name = type(rewrite).__name__
        try:
            graph = gs.import_onnx(model)
            changed = rewrite.apply(graph)
            if changed:
                graph.cleanup(remove_unused_graph_inputs=False).toposort()
        except AMQError:
            raise
        except Exception as error:
            raise ModelError(f"pass {name} failed: {first_line(error, type(error).__name__)}") from error
        if changed:
            rewritten = gs.export_onnx(graph, do_type_check=False)
            _restore(model, rewritten)
            check(rewritten, f"after pass {name}")
            if _interface(rewritten) != _interface(model):
                raise ModelError(f"pass {name} changed the names of the model's inputs or outputs")
            model = rewritten
        del graph
        if large:
            gc.collect()
        if dump is not None:
            dump(number, rewrite, model)
    return model


def check(model: onnx.ModelProto, when: str) -> None:
    """Raise ModelError, with the first line of what onnx.checker says, if `model` is invalid."""
    try:
        check_whole(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"the model is not valid ONNX {when}: {first_line(error, type(error).__name__)}") from error


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    return inputs, [value.name for value in model.graph.output]


def _restore(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Carry over what import and export lose: everything that isn't nodes, tensors or shapes."""
    target.ir_version = source.ir_version
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if source.HasField(name):
            setattr(target, name, getattr(source, name))
    del target.metadata_props[:]
    target.metadata_props.extend(source.metadata_props)
    del target.opset_import[:]
    target.opset_import.extend(source.opset_import)
    target.graph.name = source.graph.name
    if source.graph.HasField("doc_string"):
        target.graph.doc_string = source.graph.doc_string
    del target.graph.metadata_props[:]
    target.graph.metadata_props.extend(source.graph.metadata_props)
    names = {name for node in target.graph.node for name in node.output}
    del target.graph.quantization_annotation[:]
    target.graph.quantization_annotation.extend(
        note for note in source.graph.quantization_annotation if note.tensor_name in names
    )
    restore_captured(source.graph, target.graph)
    _restore_interface(source, target)
    _restore_nodes(source, target)


def _restore_interface(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Inputs and outputs exactly as they were: unnamed dimensions, doc strings, types gs doesn't know."""
    weights = {initializer.name for initializer in target.graph.initializer}
    for field in ("input", "output"):
        originals = {value.name: value for value in getattr(source.graph, field)}
        values = getattr(target.graph, field)
        for value in values:
            if value.name in originals and value.name not in weights:
                value.CopyFrom(originals[value.name])


def _restore_nodes(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    by_output = {node.output[0]: node for node in source.graph.node if node.output}
    for node in target.graph.node:
        original = by_output.get(node.output[0]) if node.output else None
        if original is None or original.op_type != node.op_type:
            continue
        if original.HasField("doc_string"):
            node.doc_string = original.doc_string
        node.metadata_props.extend(original.metadata_props)
        if original.HasField("overload"):
            node.overload = original.overload
