"""Nodes to be run by the executor and by onnxruntime, over several opsets."""

from functools import partial
from itertools import count

import numpy as np
import pytest

from .graphs import assert_parity, f, single

_numbers = count()
x4 = f(2, 6, 9, 8)


def case(op_type, *arrays, const=(), opsets=(18,), **keywords):
    """One operator, as a check for each opset; positions in `const` are initializers, None is an input left out."""
    named = {f"x{i}": np.zeros(0, np.float32) if a is None else a for i, a in enumerate(arrays)}
    absent = [f"x{i}" for i, a in enumerate(arrays) if a is None]
    constants = {f"x{i}": True for i in const}
    feeds = {name: a for name, a in named.items() if name not in constants and name not in absent}

    def parity(opset):
        proto = single(op_type, named, constants=constants, absent=absent, opset=opset, **keywords)
        assert_parity(proto, feeds)

    return [pytest.param(partial(parity, opset), id=f"{op_type}-{opset}-{next(_numbers)}") for opset in opsets]
