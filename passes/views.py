"""Transpositions and dimensions of one, as exporters of channels-last frameworks leave them around convolutions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.affine import NUMBER_SHAPES
from amq_onnx.passes.base import Pass, is_standard, replace_readers
from amq_onnx.passes.names import free_names

_ELEMENTWISE = frozenset(
    {"Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu", "Pow"}
    | {"Relu", "Sigmoid", "Softplus", "Sub", "Tanh"}
)
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceSum"})
_OF_DIMENSIONS = _REDUCTIONS | {"Concat", "Pad"}  # operators that name dimensions
_MOVED_OVER = _ELEMENTWISE | _OF_DIMENSIONS
VIEWS = frozenset({"Squeeze", "Transpose", "Unsqueeze"})
_Parameters = tuple[str, tuple[int, ...]]
_Reading = tuple[dict[str, object], dict[int, NDArray[np.generic]]]


class ViewsBehindElementwise(Pass):
    """Lets elementwise operators read a convolution itself, not through a Transpose, Squeeze or Unsqueeze.

    Before:  Conv -> Transpose(p) -> Relu -> y
             Conv -> Squeeze -> Mul(k) -> Sigmoid -> y
             Conv -> Transpose(p) -> Add <- Transpose(p) <- Conv;  Add -> y
    After:   Conv -> Relu -> Transpose(p) -> y
             Conv -> Mul(k') -> Sigmoid -> Squeeze -> y
             Conv -> Add <- Conv;  Add -> Transpose(p) -> y

    So for Concat, Pad and the Reduce operators behind a Transpose, which then name other dimensions. Factors and
    activations can be folded into the convolution after that, whose kernel writes codes. jax2onnx leaves graphs so, and
    tf2onnx convolutions of one dimension and some networks. Left alone: views that something else reads too, views of
    what no convolution makes, constants that have more elements than what they are computed with along a dimension.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed, again = False, True
        while again:
            again = False
            for node in list(graph.nodes):
                view = _view_read(node, outputs) if node.op in _MOVED_OVER and is_standard(node) else None
                reading = _reading(node, view) if view is not None else None
                if view is not None and reading is not None:
                    graph.nodes += _moved_behind(graph, node, view, *reading)
                    changed = again = True
        return changed


class JoinViews(Pass):
    """Makes one Transpose of views one after another that end with as many dimensions as they began with, or none.

    Before:  x [n, c, 1, l] -> Squeeze(2) -> Transpose(0, 2, 1) -> Unsqueeze(1) -> Transpose(0, 3, 1, 2) -> Conv
             x [n, c, 1, l] -> Squeeze(2) -> Transpose(0, 2, 1) -> Unsqueeze(2) -> Transpose(0, 3, 1, 2) -> MaxPool
    After:   x -> Conv
             x -> Transpose(0, 1, 3, 2) -> MaxPool

    onnxruntime, whose convolutions of codes are channels-last, then has one to move through the graph, or nothing. What
    would be none stays where it makes an output of the graph.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in graph.nodes:
            source, perm, length = _joined(node)
            made = node.outputs[0]
            if perm == tuple(range(len(perm))):
                if length and made.outputs and id(made) not in outputs:
                    replace_readers(made, source)
                    changed = True
            elif length > 1:
                node.op, node.attrs, node.inputs = "Transpose", {"perm": list(perm)}, [source]
                changed = True
        return changed


def _joined(node: gs.Node) -> tuple[gs.Tensor, tuple[int, ...], int]:
    """The farthest tensor of which `node` and views in front of it make a transposition, which, and how many they are;
    what `node` makes itself if there is none."""
    farthest: tuple[gs.Tensor, tuple[int, ...], int] = node.outputs[0], (), 0
    views: list[_Parameters] = []
    while (parameters := _parameters(node)) is not None:
        views.insert(0, parameters)
        source = node.inputs[0]
        perm = _order(views, len(source.shape))
        if perm is not None:
            farthest = source, perm, len(views)
        if not source.inputs:
            break
        node = source.inputs[0]
    return farthest


def _order(views: Sequence[_Parameters], rank: int) -> tuple[int, ...] | None:
    """The order that `views` bring `rank` dimensions to, those of one that come back in the order they went; None where
    more or fewer come back."""
    dimensions: list[int | None] = list(range(rank))
    for operator, parameters in views:
        if operator == "Transpose":
            dimensions = [dimensions[place] for place in parameters]
        elif operator == "Squeeze":
            dimensions = [each for place, each in enumerate(dimensions) if place not in parameters]
        else:
            for place in parameters:  # in ascending order
                dimensions.insert(place, None)
    if len(dimensions) != rank:
        return None
    gone = iter(sorted(set(range(rank)) - set(dimensions)))
    return tuple(next(gone) if each is None else each for each in dimensions)


def _view_read(node: gs.Node, outputs: Collection[int]) -> gs.Node | None:
    """A view that `node` reads all its inputs through, but for constants; None where it may not be moved behind."""
    found: list[gs.Node] = []
    for tensor in node.inputs:
        if isinstance(tensor, gs.Constant) or not tensor.name:
            continue
        view = tensor.inputs[0] if tensor.inputs else None
        if view is None or not _is_movable(view, outputs) or (found and not _is_alike(view, found[0])):
            return None
        found.append(view)
    return found[0] if any(_is_behind_convolution(view.inputs[0]) for view in found) else None


def _is_movable(view: gs.Node, outputs: Collection[int]) -> bool:
    if _parameters(view) is None or id(view.outputs[0]) in outputs:
        return False
    return all(reader.op in _MOVED_OVER | VIEWS for reader in view.outputs[0].outputs)


def _is_alike(view: gs.Node, other: gs.Node) -> bool:
    return _parameters(view) == _parameters(other) and len(view.outputs[0].shape) == len(other.outputs[0].shape)


def _parameters(view: gs.Node) -> _Parameters | None:
    """What tells one view from another: the order of dimensions, or which of them are of one; None if not known, and
    for what is no view."""
    if view.op not in VIEWS or not is_standard(view) or view.inputs[0].shape is None or view.outputs[0].shape is None:
        return None
    rank = max(len(view.inputs[0].shape), len(view.outputs[0].shape))
    if view.op == "Transpose":
        return view.op, tuple(view.attrs.get("perm", range(rank)[::-1]))
    if len(view.inputs) < 2 or not isinstance(view.inputs[1], gs.Constant):
        return None
    return view.op, tuple(sorted(int(axis) % rank for axis in view.inputs[1].values))


def _is_behind_convolution(tensor: gs.Tensor) -> bool:
    """True for what a convolution makes, through views, and for what is computed element by element from that."""
    while tensor.inputs:
        made = tensor.inputs[0]
        if made.op in ("Conv", "ConvTranspose"):
            return True
        if made.op not in _MOVED_OVER | VIEWS | {"BatchNormalization"}:
            return False
        tensor = next((read for read in made.inputs if not isinstance(read, gs.Constant)), gs.Variable.empty())
    return False


def _reading(node: gs.Node, view: gs.Node) -> _Reading | None:
    """Attributes of `node` and constants by their place among its inputs, for it to read what `view` reads; None where
    it can't."""
    operator, places = _parameters(view) or ("", ())
    constants = {place: tensor.values for place, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant)}
    if node.op in _OF_DIMENSIONS:
        return _of_other_dimensions(node, places, constants) if operator == "Transpose" else None
    made = view.outputs[0].shape
    if not all(_fits(values.shape, made) for values in constants.values()):
        return None
    changed = {place: values for place, values in constants.items() if values.shape not in NUMBER_SHAPES}
    return node.attrs, {place: _in_front(values, (operator, places), len(made)) for place, values in changed.items()}


def _of_other_dimensions(
    node: gs.Node, perm: Sequence[int], constants: Mapping[int, NDArray[np.generic]]
) -> _Reading | None:
    """The reading of an operator that names dimensions, in front of a Transpose; None where it computes with constants
    or there is no order for what it makes."""
    if node.op == "Concat":
        return None if constants else ({**node.attrs, "axis": perm[node.attrs["axis"]]}, {})
    if node.op == "Pad":
        if 1 not in constants or (len(node.inputs) > 3 and node.inputs[3].name):
            return None
        return node.attrs, {1: constants[1].reshape(2, -1)[:, np.argsort(perm)].reshape(-1)}
    axes = constants.get(1, node.attrs.get("axes"))
    if axes is None or (not node.attrs.get("keepdims", 1) and not _keeps_order(perm, axes)):
        return None
    named = [perm[axis] for axis in axes]
    return (node.attrs, {1: np.array(named, np.int64)}) if 1 in constants else ({**node.attrs, "axes": named}, {})


def _fits(constant: Sequence[int], read: Sequence[int | str]) -> bool:
    """True where a constant adds neither a dimension nor an element to what it is computed with."""
    if len(constant) > len(read):
        return False
    return all(size in (1, other) for size, other in zip(constant, read[len(read) - len(constant) :], strict=True))


def _in_front(values: NDArray[np.generic], parameters: _Parameters, rank: int) -> NDArray[np.generic]:
    """A constant for what a view reads, of one for what it makes, which has `rank` dimensions."""
    values = values.reshape([1] * (rank - values.ndim) + list(values.shape))
    if parameters[0] == "Transpose":
        return np.transpose(values, np.argsort(parameters[1]))
    return values.reshape([int(size) for size in _sizes_in_front(values.shape, parameters)])


def _moved_behind(
    graph: gs.Graph,
    node: gs.Node,
    view: gs.Node,
    attributes: dict[str, object],
    constants: Mapping[int, NDArray[np.generic]],
) -> list[gs.Node]:
    """Let `node` read what `view` reads. Returns the view that makes what `node` made of that, none where there is
    nothing to be done."""
    made, parameters = node.outputs[0], _parameters(view)
    assert parameters is not None
    node.attrs = dict(attributes)
    for place, tensor in enumerate(node.inputs):
        if place in constants:
            node.inputs[place] = gs.Constant(next(free_names(graph, f"{tensor.name}_")), constants[place])
        elif not isinstance(tensor, gs.Constant) and tensor.name:
            node.inputs[place] = tensor.inputs[0].inputs[0]
    if node.op in _REDUCTIONS and not node.attrs.get("keepdims", 1):
        return []
    shape = None if made.shape is None else _sizes_in_front(made.shape, parameters)
    inside = gs.Variable(next(free_names(graph, f"{made.name}_")), made.dtype, shape)
    node.outputs = [inside]
    return [gs.Node(view.op, "", dict(view.attrs), [inside, *view.inputs[1:]], [made])]


def _keeps_order(perm: Sequence[int], axes: Sequence[int]) -> bool:
    """True where the dimensions that a reduction leaves are in the order that they have in front of the Transpose."""
    gone = {perm[axis] for axis in axes}
    left = [place for place in perm if place not in gone]
    return left == sorted(left)


def _sizes_in_front(sizes: Sequence[int | str], parameters: _Parameters) -> list[int | str]:
    """The shape in front of a view, of that behind it."""
    operator, places = parameters
    if operator == "Transpose":
        return [sizes[places.index(place)] for place in range(len(sizes))]
    if operator == "Unsqueeze":
        return [size for place, size in enumerate(sizes) if place not in places]
    found = list(sizes)
    for place in places:  # in ascending order
        found.insert(place, 1)
    return found
