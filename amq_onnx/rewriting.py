"""From the model as it was read to the graph that is measured, and from there with a plan to the written file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference, version_converter

from amq_onnx.code_operators import CodeOperators, find_code_operators
from amq_onnx.errors import ModelError, UsageError, first_line
from amq_onnx.functions import inlined
from amq_onnx.model.layers import Layer, linear_layers
from amq_onnx.model.sites import Sites, WeightSite, find_float_outputs, find_readers_of_codes, find_sites
from amq_onnx.passes.align_inputs import AlignInputs
from amq_onnx.passes.align_outputs import AlignOutputs
from amq_onnx.passes.base import Pass, run
from amq_onnx.passes.clips_behind_affine import ClipsBehindAffine
from amq_onnx.passes.clips_on_codes import ClipsOnCodes
from amq_onnx.passes.concat_codes import ConcatsOnCodes
from amq_onnx.passes.correct_biases import CorrectBiases
from amq_onnx.passes.dequantize_at_load import DequantizeAtLoad
from amq_onnx.passes.equalize import EqualizeChannels
from amq_onnx.passes.fold_affine import FoldAffine, FoldAffineForward
from amq_onnx.passes.fold_constants import FoldConstants
from amq_onnx.passes.fold_layer_scale import FoldLayerScale
from amq_onnx.passes.free_batch import FreeBatch
from amq_onnx.passes.halve_constants import HalveConstants
from amq_onnx.passes.hard_sigmoid import JoinHardSigmoids, SplitHardSwishes
from amq_onnx.passes.hoist import HoistConstants
from amq_onnx.passes.inline_if import InlineConstantIf
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.join_branches import JoinBranches
from amq_onnx.passes.kernels import INTEGER, biased
from amq_onnx.passes.loop_invariants import ReadInvariantsOutside
from amq_onnx.passes.max_for_relu import MaxForRelu
from amq_onnx.passes.max_pool_pads import MaxPoolPads
from amq_onnx.passes.nearest_resize import RepeatPixels
from amq_onnx.passes.norm_convolutions import NormsToConvolutions
from amq_onnx.passes.normalize import (
    ConstantsToInitializers,
    DropIdentities,
    MeansToPooling,
    SumsToAdds,
    require_float,
)
from amq_onnx.passes.output_products import OutputProducts
from amq_onnx.passes.outputs_apart import OutputsApart
from amq_onnx.passes.pack import Pack, QuantizeBiases
from amq_onnx.passes.pixel_shuffle import PixelShuffles
from amq_onnx.passes.place import PlaceOnCodes
from amq_onnx.passes.pool_codes import AveragePoolsOnCodes
from amq_onnx.passes.prelu_codes import PReluOnCodes
from amq_onnx.passes.readers_apart import ReadersApart
from amq_onnx.passes.repeat_channels import RepeatChannels
from amq_onnx.passes.share_dequantized import ShareDequantized
from amq_onnx.passes.strip import strip_exporter_metadata
from amq_onnx.passes.subgraphs import hoist_weights, subgraphs
from amq_onnx.passes.transposed_convolutions import TransposedConvolutions
from amq_onnx.passes.uniform_prelu import UniformPRelu
from amq_onnx.passes.views import JoinViews, ViewsBehindElementwise
from amq_onnx.passes.widen_groups import WidenGroups
from amq_onnx.passes.widen_half import WidenHalf
from amq_onnx.quantizer.encoding import Encoding, Widths
from amq_onnx.recipe import Recipe
from amq_onnx.skeleton import on_skeleton
from amq_onnx.targets import TARGETS, Target

# Folding a condition decides an If, and the branch taken has more to fold.
_FOLDING = (
    WidenHalf(), ConstantsToInitializers(), DropIdentities(), ReadInvariantsOutside(), HoistConstants(),
    FoldConstants(), InlineConstantIf(),
)  # fmt: skip
_PREPARATION = (
    FreeBatch(), SumsToAdds(), ViewsBehindElementwise(), JoinViews(), MaxPoolPads(), FoldAffine(),
    NormsToConvolutions(), JoinBranches(), MeansToPooling(), JoinHardSigmoids(), UniformPRelu(), SplitHardSwishes(),
    ClipsBehindAffine(), FoldAffine(), FoldAffineForward(), FoldLayerScale(),
)  # fmt: skip
# A file format that all runtimes read which read our files' operator sets: they refuse formats newer than themselves.
_OLD_IR_VERSION = 8
# Releases that first ran each operator set, from onnxruntime's compatibility table.
_FIRST_RUNTIME = {
    13: "1.6", 14: "1.8", 15: "1.10", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15",
    20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22", 24: "1.23", 25: "1.24",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float graph ready to be measured and quantized.

    model: constants folded, BatchNormalization folded. sites: what can be quantized in it. stem: what every
    name made for it starts with. keys: by site, the part of those names that is the site's own. target_name: what the
    file is for, one of TARGETS. equalized: whether channels were evened out. quantized_outputs: whether outputs that
    Convs make are sites.
    """

    model: onnx.ModelProto
    sites: Sites
    stem: str
    keys: Mapping[str, str]
    target_name: str = "onnxruntime"
    equalized: bool = False
    quantized_outputs: bool = False

    def require_weights(self) -> None:
        """Raise UsageError if every weight was excluded."""
        if not self.sites.weights:
            raise UsageError("--exclude leaves no weight to quantize: exclude fewer sites")

    @property
    def target(self) -> Target:
        """The target that writes this model's file."""
        return TARGETS[self.target_name](self.stem)

    def recipes(self, encodings: Mapping[str, Encoding]) -> dict[str, Recipe]:
        """How each quantized weight is stored."""
        return {
            site.name: self.recipe(site, encoding.widths or encoding.bits, site.is_integer(encodings))
            for site in self.sites.weights
            if (encoding := encodings.get(site.name)) is not None
        }

    def recipe(self, site: WeightSite, widths: Widths, integer: bool) -> Recipe:
        """How a weight is stored at `widths`; integer: whether an integer kernel reads it."""
        key = self.keys[site.name]
        if isinstance(widths, int):
            return self.target.weight(key, site.shape, widths, integer)
        assert site.axis is not None
        return self.target.mixed_weight(key, site.shape, site.axis, widths, integer)

    def for_encodings(self, encodings: Mapping[str, Encoding]) -> Prepared:
        """The same model in the operator set that the target needs for these encodings, where its own is too old."""
        activations = [encodings[site.name] for site in self.sites.activations if site.name in encodings]
        opset = self.target.opset(self.recipes(encodings).values(), activations)
        if opset <= opset_of(self.model):
            return self
        return replace(self, model=_with_shapes(_convert(self.model, opset)))

    def weight(self, name: str) -> np.ndarray:
        """The float values of a weight."""
        return numpy_helper.to_array(self._initializers[name])

    @cached_property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def layers(self) -> list[Layer]:
        """Layers whose weight is a site and whose output can be shifted."""
        return [layer for layer in self.linear_layers if layer.shiftable]

    @cached_property
    def linear_layers(self) -> list[Layer]:
        """Layers that multiply with a site."""
        return linear_layers(self.model, {site.name for site in self.sites.weights if site.axis is not None})

    @cached_property
    def code_operators(self) -> CodeOperators:
        """Float operators that the file computes on codes."""
        return find_code_operators(self.model, {site.name for site in self.sites.activations}, self.stem, self.keys)

    def activation_bytes(self, name: str, encoding: Encoding) -> int:
        """Bytes of the file that depend on an activation's encoding."""
        taken = self.target.activation_bytes(self.keys[name], encoding)
        return taken + (self.code_operators.added_bytes(name, encoding) if self.target.for_onnxruntime else 0)

    @cached_property
    def biases(self) -> dict[str, list[tuple[str, np.ndarray]]]:
        """By weight, of each node with an integer kernel that reads it: the tensor that the node reads as data, and its
        constant bias."""
        found: dict[str, list[tuple[str, np.ndarray]]] = {}
        for node in gs.import_onnx(self.model).nodes:
            if (bias := biased(node)) is not None and bias[0].op in INTEGER:
                product, place = bias
                pair = product.inputs[0].name, np.ravel(node.inputs[place].values)
                found.setdefault(product.inputs[1].name, []).append(pair)
        return found


def prepare(
    model: onnx.ModelProto,
    *,
    opset: int | None = None,
    exclude: tuple[str, ...] = (),
    target: str = "onnxruntime",
    equalize: bool = False,
    quantize_outputs: bool = False,
) -> Prepared:
    """Fold what can be folded and find the sites.

    opset: convert to this operator set first; without it, only one older than any target's least is converted.
    exclude: regular expressions of sites to leave float. equalize: even out channels (EqualizeChannels).
    quantize_outputs: let Convs that make outputs of the graph write codes, so that outputs are rounded. Raises
    ModelError for a model that is quantized already, has nothing to quantize or can't be converted; UsageError for an
    expression that matches nothing.
    """
    model = inlined(model)
    require_float(model)
    current = opset_of(model)
    wanted = opset if opset is not None else max(current, Target.minimum_opset)
    if wanted < Target.minimum_opset:
        raise UsageError(f"--opset {wanted} is too old: quantized files need {Target.minimum_opset} or newer")
    if wanted != current:
        model = _convert(model, wanted)
    passes = [*_PREPARATION, *([EqualizeChannels()] if equalize else [])]
    if TARGETS[target].for_onnxruntime:
        passes += [TransposedConvolutions(), PixelShuffles()]
    model = run(_with_shapes(_folded(model)), passes)
    model = _with_shapes(hoist_weights(model))
    if TARGETS[target].for_onnxruntime and not quantize_outputs and (names := find_float_outputs(model)):
        model = _with_shapes(run(model, [OutputProducts(names)]))
    apart = ReadersApart(find_readers_of_codes(model, outputs=quantize_outputs))
    model = run(model, [OutputsApart(), apart] if quantize_outputs else [apart])
    sites = find_sites(model, outputs=quantize_outputs)
    keys = {site.name: f"w{index}" for index, site in enumerate(sites.weights)}
    keys |= {site.name: f"a{index}" for index, site in enumerate(sites.activations)}
    return Prepared(model, sites.exclude(exclude), _free_stem(model), keys, target, equalize, quantize_outputs)


def trainable(
    prepared: Prepared, encodings: Mapping[str, Encoding], shifts: Mapping[str, NDArray[np.float32]] | None = None
) -> onnx.ModelProto:
    """The float graph quantized at every site in `encodings`; weights, scales and biases are float initializers.

    shifts: by layer, what its bias makes up for.
    """
    passes: list[Pass] = [CorrectBiases(shifts, prepared.stem)] if shifts else []
    insert = InsertQDQ(encodings, prepared.stem, prepared.keys)
    return run(prepared.model, [*passes, insert, PlaceOnCodes(prepared.target.for_onnxruntime)])


def simulate(
    prepared: Prepared, encodings: Mapping[str, Encoding], shifts: Mapping[str, NDArray[np.float32]] | None = None
) -> onnx.ModelProto:
    """The `trainable` graph with biases rounded as well: it computes what the file will, weights still float."""
    return run(trainable(prepared, encodings, shifts), [QuantizeBiases(prepared.stem)])


def with_initializers(model: onnx.ModelProto, values: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """`model` with other numbers in some of its initializers; `model` stays as it is.

    Raises ModelError for an initializer that the model doesn't have in that shape.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name, array in values.items():
        if shapes.get(name) != array.shape:
            raise ModelError(f"the graph has no constant '{name}' of shape {array.shape} to be replaced")
    replaced = onnx.ModelProto()
    replaced.CopyFrom(model)
    for tensor in replaced.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name], np.float32), tensor.name))
    return replaced


def lower(
    prepared: Prepared,
    quantized: onnx.ModelProto,
    encodings: Mapping[str, Encoding],
    *,
    keep_metadata: bool = False,
) -> onnx.ModelProto:
    """The file for the target, of the `trainable` or the simulated graph: biases rounded, weights packed at their
    widths, what the codes imply and exporters note left out."""
    target = prepared.target
    pack = Pack(prepared.recipes(encodings), target.shared)
    passes: list[Pass] = [DropIdentities(), QuantizeBiases(prepared.stem), pack, ClipsOnCodes(target.for_onnxruntime)]
    if target.for_onnxruntime:
        stem = prepared.stem
        fitted = [
            RepeatPixels(stem), AlignOutputs(stem), AlignInputs(stem), AveragePoolsOnCodes(stem), ConcatsOnCodes(stem),
            RepeatChannels(stem), WidenGroups(stem), DequantizeAtLoad(), MaxForRelu(stem), PReluOnCodes(stem),
            ShareDequantized(stem), HalveConstants(stem),
        ]  # fmt: skip
        passes = [*prepared.code_operators.passes(encodings), *passes, *fitted]
    model = run(quantized, passes)
    if not keep_metadata:
        model = strip_exporter_metadata(model)
        model.ir_version = min(model.ir_version, _OLD_IR_VERSION)
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that `model` uses."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("the model names no standard ONNX operator set")


def oldest_runtime(model: onnx.ModelProto) -> str:
    """The oldest onnxruntime release that reads `model`'s operator set."""
    opset = opset_of(model)
    return _FIRST_RUNTIME.get(opset, f"the first with opset {opset}")


def _convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return on_skeleton(model, lambda light: version_converter.convert_version(light, opset))
    except (RuntimeError, ValueError, EncodeError, onnx.checker.ValidationError) as error:
        reason = first_line(error)
        raise ModelError(f"the model can't be converted to opset {opset}: {reason}") from error


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with all folded that depends on constants and known shapes."""
    while True:
        folded = run(_with_shapes(model), _FOLDING)
        if _count(folded.graph) == _count(model.graph):
            return folded
        model = folded


def _count(graph: onnx.GraphProto) -> int:
    return len(graph.node) + sum(len(inner.node) for inner in subgraphs(graph))


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with inferred shapes, as far as onnx can tell; unchanged where inference fails."""
    try:
        inferred = on_skeleton(model, shape_inference.infer_shapes)
    except (RuntimeError, ValueError, EncodeError, onnx.shape_inference.InferenceError):
        return model
    # Inference names free dimensions of inputs and outputs, which are the user's.
    for field in ("input", "output"):
        values = getattr(inferred.graph, field)
        del values[:]
        values.extend(getattr(model.graph, field))
    return inferred


def _free_stem(model: onnx.ModelProto) -> str:
    names = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    names |= {name for node in model.graph.node for name in node.output}
    stem = "q"
    while any(name.startswith(stem) for name in names):
        stem += "q"
    return stem
