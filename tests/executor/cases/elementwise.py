"""Functions of single elements, of one tensor or of several that broadcast."""

from math import prod

import numpy as np
from hypothesis import strategies as st

from .drawing import FLAG, SHAPE, Case, Leaf, any_of


def unary(domain="any", **attributes):
    """One input of any shape; attributes: strategies."""

    @st.composite
    def cases(draw):
        return Case([Leaf(draw(SHAPE), domain)], {name: draw(value) for name, value in attributes.items()})

    return cases()


def broadcasting(first="any", second="any", **attributes):
    """Two inputs whose shapes broadcast."""

    @st.composite
    def cases(draw):
        shape = draw(SHAPE)
        other = tuple(n if draw(FLAG) else 1 for n in shape)[draw(st.integers(0, len(shape) - 1)) :]
        pair = [Leaf(shape, first), Leaf(other, second)]
        flip = first == second and draw(FLAG)
        return Case(pair[::-1] if flip else pair, {name: draw(value) for name, value in attributes.items()})

    return cases()


@st.composite
def prelu(draw):
    shape = draw(SHAPE)
    return Case([Leaf(shape), Leaf(tuple(n if draw(FLAG) else 1 for n in shape))])


@st.composite
def clip(draw):
    low, high = draw(any_of(None, np.float32(-0.1))), draw(any_of(None, np.float32(0.15)))
    return Case([Leaf(draw(SHAPE)), low, high])


@st.composite
def where(draw):
    shape = draw(SHAPE)
    chosen = np.array([bool(draw(FLAG)) for _ in range(prod(shape))]).reshape(shape)
    return Case([chosen, Leaf(shape), Leaf(shape[-1:])])


ALPHA = any_of(0.2, 0.75, 1.5)


CASES = {
    **{name: unary() for name in (
        "Abs", "Asinh", "Atan", "Cos", "Cosh", "Dropout", "Erf", "Exp", "HardSwish", "Identity", "Mish", "Neg", "Relu",
        "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Squeeze", "Tanh",
    )},
    **{name: unary(alpha=ALPHA) for name in ("Celu", "Elu", "LeakyRelu", "Swish", "ThresholdedRelu")},
    **{name: unary("unit") for name in ("Acos", "Asin", "Atanh", "Tan")},
    **{name: unary("positive") for name in ("Log", "Sqrt")},
    "Acosh": unary("above"),
    "Cast": unary(to=st.just(1)),
    "Clip": clip(),
    "Gelu": unary(approximate=any_of("none", "tanh")),
    "HardSigmoid": unary(alpha=any_of(0.2, 0.5), beta=any_of(0.1, 0.5)),
    "Mod": st.builds(lambda shape: Case([Leaf(shape), np.float32(0.73)], {"fmod": 1}), SHAPE),
    "PRelu": prelu(),
    "Reciprocal": unary("nonzero"),
    "Shrink": unary(bias=any_of(0.0, 0.3), lambd=any_of(0.1, 0.5)),
    **{name: broadcasting() for name in ("Add", "CastLike", "Mean", "Mul", "Sub", "Sum")},
    **{name: broadcasting(second="small") for name in ("Max", "Min")},
    "Div": broadcasting(second="nonzero"),
    "Pow": broadcasting("positive"),
    "Where": where(),
}  # fmt: skip
