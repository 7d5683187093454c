"""Normalizations, reductions, running sums, losses."""

import numpy as np
from hypothesis import strategies as st

from .drawing import FLAG, SHAPE, SIDE, Case, Leaf, any_of, axis_of, i64


@st.composite
def along_axis(draw, domain="any", opsets=(24,), least=1, **attributes):
    """One input and an axis."""
    shape = draw(st.lists(st.integers(least, 4), min_size=1, max_size=3).map(tuple))
    values = {"axis": axis_of(draw, shape)} | {name: draw(value) for name, value in attributes.items()}
    opset = draw(any_of(*opsets))
    if opset < 11:
        values["axis"] %= len(shape)
    return Case([Leaf(shape, domain)], values, opset=opset)


@st.composite
def normalized(draw, bias):
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple))
    axis = axis_of(draw, shape)
    parameters = [Leaf(shape[axis:])] * (1 + draw(FLAG) * bias)
    return Case([Leaf(shape), *parameters], {"axis": axis})


@st.composite
def by_channel(draw, count, groups=False, positive=()):
    """x [N, C, *] and `count` vectors [C]; the last one of variances."""
    shape = (draw(st.integers(2, 3)), draw(any_of(2, 4)), *draw(st.lists(st.integers(2, 3), min_size=1, max_size=2)))
    vectors = [Leaf(shape[1:2], "positive" if i in positive else "any") for i in range(count)]
    return Case([Leaf(shape), *vectors], {"num_groups": draw(any_of(1, 2))} if groups else {})


@st.composite
def lrn(draw):
    shape = (2, draw(SIDE), draw(SIDE))
    return Case([Leaf(shape)], {"size": draw(any_of(1, 2, 3)), "alpha": 0.3, "beta": draw(any_of(0.5, 0.75))})


@st.composite
def mean_variance(draw):
    return Case([Leaf((2, 3, 2, 2))], {"axes": draw(any_of([0, 2, 3], [1], [-1, 0]))})


@st.composite
def reduction(draw, domain="any"):
    shape = draw(SHAPE)
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=0, max_size=len(shape), unique=True))
    given = i64(*axes) if axes or draw(FLAG) else None
    attributes = {"keepdims": draw(FLAG), "noop_with_empty_axes": draw(FLAG)}
    return Case([Leaf(shape, domain), given], attributes)


@st.composite
def cumulative(draw, domain="any"):
    shape = draw(SHAPE)
    return Case([Leaf(shape, domain), i64(axis_of(draw, shape))], {"exclusive": draw(FLAG), "reverse": draw(FLAG)})


@st.composite
def loss(draw, softmax):
    target = np.array([[draw(st.integers(0, 3)) for _ in range(2)] for _ in range(3)])
    weight = [Leaf((4,), "positive")] if draw(FLAG) else []
    attributes = {"reduction": draw(any_of("none", "sum", "mean"))} | ({"ignore_index": 3} if draw(FLAG) else {})
    target[0, 0] = 1  # never all of them ignored
    return Case([Leaf((3, 4, 2)), target, *weight], attributes, outputs=1 + softmax)


CASES = {
    **{name: along_axis(opsets=(10, 12, 24)) for name in ("LogSoftmax", "Softmax")},
    "LpNormalization": along_axis("nonzero", p=any_of(1, 2)),
    "BatchNormalization": by_channel(4, positive=(3,)),
    "GroupNormalization": by_channel(2, groups=True),
    "InstanceNormalization": by_channel(2),
    "LayerNormalization": normalized(True),
    "LRN": lrn(),
    "MeanVarianceNormalization": mean_variance(),
    "RMSNormalization": normalized(False),
    **{f"Reduce{name}": reduction() for name in ("L1", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare")},
    **{f"Reduce{name}": reduction("nonzero") for name in ("L2", "Prod")},
    "ReduceLogSum": reduction("positive"),
    "CumProd": cumulative("nonzero"),
    "CumSum": cumulative(),
    "NegativeLogLikelihoodLoss": loss(False),
    "SoftmaxCrossEntropyLoss": loss(True),
}
