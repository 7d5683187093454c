"""Operators that move, pick and place elements."""

import numpy as np
from hypothesis import strategies as st

from .drawing import FLAG, SHAPE, SIDE, Case, Leaf, Near, any_of, i64, indices


@st.composite
def transpose(draw):
    shape = draw(SHAPE)
    return Case([Leaf(shape)], {"perm": draw(st.permutations(range(len(shape))))})


@st.composite
def unsqueeze(draw):
    return Case([Leaf(draw(SHAPE)), i64(*draw(any_of([0], [-1], [0, 2], [1, 0])))])


@st.composite
def concat(draw):
    axis = draw(any_of(0, 1, -1))
    parts = [(draw(SIDE), 2) if axis == 0 else (2, draw(SIDE)) for _ in range(draw(st.integers(1, 3)))]
    return Case([Leaf(part) for part in parts], {"axis": axis})


@st.composite
def split(draw):
    sizes = draw(st.lists(SIDE, min_size=2, max_size=3))
    return Case([Leaf((2, sum(sizes))), i64(*sizes)], {"axis": 1}, outputs=len(sizes))


@st.composite
def expand(draw):
    shape = draw(SHAPE)
    wanted = [2, *(n if n > 1 else draw(SIDE) for n in shape)][draw(FLAG) :]
    return Case([Leaf(shape), i64(*wanted)])


@st.composite
def tile(draw):
    shape = draw(SHAPE)
    return Case([Leaf(shape), i64(*(draw(st.integers(1, 3)) for _ in shape))])


@st.composite
def slice_(draw):
    starts, ends = i64(draw(st.integers(-6, 6)), 1), i64(draw(st.integers(-6, 6)), 100)
    return Case([Leaf((5, 4)), starts, ends, i64(0, -1), i64(draw(any_of(1, 2, -1, -2)), draw(any_of(1, 3)))])


@st.composite
def pad(draw):
    mode = draw(any_of("constant", "reflect", "edge", "wrap"))
    pads = i64(*(draw(st.integers(0 if mode == "wrap" else -1, 2)) for _ in range(4)))
    return Case([Leaf((4, 3)), pads, Leaf(()) if mode == "constant" else None], {"mode": mode})


@st.composite
def center(draw):
    return Case([Leaf((4, 3, 2)), i64(draw(st.integers(1, 6)), draw(st.integers(1, 6)))], {"axes": [0, -2]})


@st.composite
def blocks(draw, deep):
    attributes = {"blocksize": 2} | ({"mode": draw(any_of("DCR", "CRD"))} if deep else {})
    return Case([Leaf((1, 4 * draw(SIDE), 2, 2) if deep else (1, draw(SIDE), 4, 2))], attributes)


@st.composite
def trilu(draw):
    return Case([Leaf((draw(SIDE), draw(SIDE))), np.array(draw(st.integers(-2, 2)))], {"upper": draw(FLAG)})


@st.composite
def reverse_sequence(draw):
    time = draw(FLAG)
    lengths = i64(*(draw(st.integers(1, 3)) for _ in range(3)))
    return Case([Leaf((3, 3, 2)), lengths], {"time_axis": time, "batch_axis": 1 - time})


@st.composite
def one_hot(draw):
    return Case([indices(draw, 3, draw(SIDE)), np.array(3), Leaf((2,))], {"axis": draw(any_of(0, -1))})


@st.composite
def compress(draw):
    return Case([Leaf((3, 2)), np.array([True, bool(draw(FLAG)), True])], {"axis": 0})


@st.composite
def gather(draw):
    axis = draw(any_of(0, 1, -1))
    return Case([Leaf((3, 3)), indices(draw, 3, *draw(any_of((), (2,), (2, 2))))], {"axis": axis})


@st.composite
def gather_elements(draw):
    return Case([Leaf((3, 3)), indices(draw, 3, draw(st.integers(1, 3)), 3)], {"axis": draw(any_of(0, 1, -1))})


@st.composite
def gather_nd(draw):
    batch = draw(FLAG)
    shape = (2, draw(SIDE), draw(st.integers(1, 2)) if batch else draw(st.integers(1, 3)))
    return Case([Leaf((2, 2, 2)), indices(draw, 2, *shape)], {"batch_dims": batch})


@st.composite
def scatter_elements(draw):
    axis, reduction = draw(FLAG), draw(any_of("none", "add", "mul", "max", "min"))
    places = np.array([draw(st.permutations(range(3)))[:2] for _ in range(3)], np.int64)
    places = places if axis else places.T
    return Case([Leaf((3, 3)), places, Near(places.shape, middle=0.3)], {"axis": axis, "reduction": reduction})


@st.composite
def scatter(draw):
    return Case([Leaf((3, 2)), np.array([[0, 2]]), Leaf((1, 2))], {"axis": draw(any_of(0, -2))}, opset=10)


@st.composite
def scatter_nd(draw):
    reduction = draw(any_of("none", "add", "mul", "max", "min"))
    places = np.array(draw(st.permutations(range(4)))[:2], np.int64)[:, None]
    return Case([Leaf((4, 2)), places, Near((2, 2), middle=0.3)], {"reduction": reduction})


@st.composite
def tensor_scatter(draw):
    mode = draw(any_of("linear", "circular"))
    starts = i64(*(draw(st.integers(0, 2 if mode == "linear" else 3)) for _ in range(2)))
    return Case([Leaf((2, 4, 3)), Leaf((2, 2, 3)), starts], {"mode": mode})


@st.composite
def top_k(draw):
    axis = draw(any_of(0, -1))
    return Case([Leaf((3, 4)), i64(draw(st.integers(1, 3)))], {"axis": axis, "largest": draw(FLAG)}, outputs=2)


CASES = {
    "CenterCropPad": center(),
    "Compress": compress(),
    "Concat": concat(),
    "DepthToSpace": blocks(True),
    "Expand": expand(),
    "Flatten": st.builds(lambda axis: Case([Leaf((2, 3, 2))], {"axis": axis}), st.integers(-3, 3)),
    "Gather": gather(),
    "GatherElements": gather_elements(),
    "GatherND": gather_nd(),
    "OneHot": one_hot(),
    "Pad": pad(),
    "Reshape": st.builds(lambda shape: Case([Leaf(shape), i64(-1)]), SHAPE),
    "ReverseSequence": reverse_sequence(),
    "Scatter": scatter(),
    "ScatterElements": scatter_elements(),
    "ScatterND": scatter_nd(),
    "Slice": slice_(),
    "SpaceToDepth": blocks(False),
    "Split": split(),
    "TensorScatter": tensor_scatter(),
    "Tile": tile(),
    "TopK": top_k(),
    "Transpose": transpose(),
    "Trilu": trilu(),
    "Unique": st.builds(lambda shape, order: Case([Leaf(shape)], {"sorted": order}), SHAPE, FLAG),
    "Unsqueeze": unsqueeze(),
}
