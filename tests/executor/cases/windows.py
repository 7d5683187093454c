"""Products, convolutions, pooling, and what reads images at fractional positions."""

from math import prod

import numpy as np
from hypothesis import strategies as st

from .drawing import FLAG, SIDE, Case, Leaf, Near, any_of, i64


def window(draw, rank):
    """Kernel, strides, dilations and pads of a window over axes of length 5."""
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [draw(st.integers(0, k - 1)) for k in kernel + kernel],
    }
    return kernel, attributes


@st.composite
def conv(draw, transposed=False):
    rank, group = draw(any_of(1, 2)), draw(any_of(1, 2))
    kernel, attributes = window(draw, rank)
    x, channels = (1, 2 * group, *[5] * rank), (2 * group, 2)
    w = (*(channels if transposed else (channels[0], 2)), *kernel)
    bias = [Leaf((w[1] * group if transposed else w[0],))] if draw(FLAG) else []
    return Case([Leaf(x), Leaf(w, "small"), *bias], attributes | {"group": group})


@st.composite
def deform_conv(draw):
    parts = draw(any_of(1, 2))
    x, w = (1, 2, 4, 5), (2, 2, 2, 2)
    out = (4, 5)  # with pads of 1 at the ends
    shift = Near((1, parts * 8, *out), middle=draw(st.integers(-1, 1)) + draw(any_of(0.25, 0.6)))
    mask = [None, Leaf((1, parts * 4, *out), "unit")] if draw(FLAG) else []
    return Case([Leaf(x), Leaf(w, "small"), shift, *mask], {"offset_group": parts, "pads": [0, 0, 1, 1]})


@st.composite
def col2im(draw):
    size, block = [5, 4], [draw(st.integers(1, 3)), draw(st.integers(1, 2))]
    strides, pads = [draw(any_of(1, 2)), 1], [draw(FLAG), 0, draw(FLAG), 1]
    steps = [(size[i] + pads[i] + pads[i + 2] - block[i]) // strides[i] + 1 for i in range(2)]
    x = Leaf((1, 2 * prod(block), prod(steps)))
    return Case([x, i64(*size), i64(*block)], {"strides": strides, "pads": pads})


@st.composite
def gemm(draw):
    m, n, k = draw(SIDE), draw(SIDE), draw(SIDE)
    a, b = draw(FLAG), draw(FLAG)
    c = draw(any_of(None, (n,), (m, 1), (1, n), (1,)))
    shapes = [(k, m) if a else (m, k), (n, k) if b else (k, n)]
    leaves = [Leaf(shape) for shape in shapes] + ([] if c is None else [Leaf(c)])
    attributes = {"transA": a, "transB": b, "alpha": draw(any_of(1.0, 0.5)), "beta": draw(any_of(1.0, 2.0))}
    return Case(leaves, attributes)


@st.composite
def matmul(draw):
    k = draw(SIDE)
    a = draw(any_of((k,), (3, k), (2, 1, 3, k)))
    b = draw(any_of((k,), (k, 2), (4, k, 2)))
    return Case([Leaf(a), Leaf(b)])


@st.composite
def einsum(draw):
    equation = draw(any_of("ij,jk->ki", "bij,bjk->bik", "ij,ij->", "...ij,...j->...i", "ii,ij->j"))
    sizes = {"i": 2, "j": 2, "k": 3, "b": 2}
    terms = equation.split("->")[0].replace("...", "b").split(",")
    return Case([Leaf(tuple(sizes[c] for c in term)) for term in terms], {"equation": equation})


@st.composite
def pool(draw, power=False, average=False):
    rank = draw(any_of(1, 2))
    kernel, attributes = window(draw, rank)
    attributes |= {"kernel_shape": kernel, "ceil_mode": draw(FLAG)}
    if power:
        attributes["p"] = draw(any_of(2, 3))
    if average:
        attributes["count_include_pad"] = draw(FLAG)
    return Case([Leaf((1, 2, *[5] * rank), "nonzero" if power else "any")], attributes)


def global_pool(domain="any", **attributes):
    @st.composite
    def cases(draw):
        shape = (2, draw(SIDE), *draw(st.lists(SIDE, min_size=1, max_size=3)))
        return Case([Leaf(shape, domain)], {name: draw(value) for name, value in attributes.items()})

    return cases()


@st.composite
def max_unpool(draw):
    places = np.array(draw(st.permutations(range(16)))[:4]).reshape(1, 1, 2, 2)
    return Case([Leaf((1, 1, 2, 2)), places], {"kernel_shape": [2, 2], "strides": [2, 2]})


@st.composite
def regions(draw, aligned):
    boxes = np.float32([[0.3, 0.2, 4.1, 3.3], [1.2, -0.7, 2.9, 6.4]])
    if not aligned:
        boxes = np.concatenate([np.float32([[1], [0]]), boxes], 1)
        return Case([Leaf((2, 2, 5, 6)), boxes], {"pooled_shape": [2, draw(st.integers(1, 3))]}, opset=18)
    mode, ratio = draw(any_of("avg", "max")), draw(st.integers(0, 2))
    attributes = {"output_height": 2, "output_width": draw(st.integers(1, 3)), "mode": mode, "sampling_ratio": ratio}
    return Case([Leaf((2, 2, 5, 6)), boxes, i64(1, 0)], attributes)


@st.composite
def resize(draw):
    attributes = {
        "mode": draw(any_of("nearest", "linear", "cubic")),
        "coordinate_transformation_mode": draw(any_of("half_pixel", "align_corners", "asymmetric")),
        "antialias": draw(FLAG),
        "exclude_outside": 0,
    }
    if attributes["mode"] == "nearest":
        attributes["antialias"] = 0
    return Case([Leaf((1, 2, 4, 3)), None, None, i64(1, 2, draw(st.integers(1, 6)), draw(SIDE))], attributes, opset=19)


@st.composite
def upsample(draw):
    scales = np.float32([1, 1, draw(st.integers(1, 3)), draw(any_of(1, 1.5, 2))])
    return Case([Leaf((1, 2, 3, 2)), scales], {"mode": draw(any_of("nearest", "linear"))}, opset=9)


@st.composite
def grid_sample(draw):
    mode = draw(any_of("linear", "nearest", "cubic"))
    padding, aligned = draw(any_of("zeros", "border", "reflection")), draw(FLAG)
    pixel = draw(st.integers(-1, 4)) + draw(any_of(0.2, 0.7))
    middle = 2 * pixel / 4 - 1 if aligned else (2 * pixel + 1) / 5 - 1
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    return Case([Leaf((2, 2, 5, 5)), Near((2, 2, 3, 2), middle=middle, spread=0.02)], attributes)


@st.composite
def affine_grid(draw):
    rank = draw(any_of(2, 3))
    size = i64(2, 1, *(draw(SIDE) for _ in range(rank)))
    return Case([Leaf((2, rank, rank + 1)), size], {"align_corners": draw(FLAG)})


CASES = {
    "Col2Im": col2im(),
    "Conv": conv(),
    "ConvTranspose": conv(transposed=True),
    "DeformConv": deform_conv(),
    "Det": st.builds(lambda n: Case([Leaf((2, n, n))]), SIDE),
    "Einsum": einsum(),
    "Gemm": gemm(),
    "MatMul": matmul(),
    "AveragePool": pool(average=True),
    "GlobalAveragePool": global_pool(),
    "GlobalLpPool": global_pool("nonzero", p=any_of(2, 3)),
    "GlobalMaxPool": global_pool(),
    "LpPool": pool(power=True),
    "MaxPool": pool(),
    "MaxRoiPool": regions(False),
    "MaxUnpool": max_unpool(),
    "RoiAlign": regions(True),
    "AffineGrid": affine_grid(),
    "GridSample": grid_sample(),
    "Resize": resize(),
    "Upsample": upsample(),
}
