"""Operators along time: recurrent networks, attention, Fourier transforms."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from .drawing import FLAG, Case, Leaf, any_of, i64, indices


@st.composite
def dft(draw):
    onesided, inverse = draw(FLAG), draw(FLAG)
    last = 2 if inverse else 1 if onesided else draw(any_of(1, 2))
    length = draw(any_of(None, i64(5)[0], i64(8)[0]))
    return Case(
        [Leaf((2, 6, 3, last)), length, i64(draw(any_of(1, -2)))[0]], {"onesided": onesided, "inverse": inverse}
    )


@st.composite
def stft(draw):
    given = draw(FLAG)
    signal, shape = Leaf((2, 9, 1)), i64(4)[0]
    return Case([signal, i64(draw(any_of(2, 3)))[0], Leaf((4,)) if given else None, shape], {"onesided": draw(FLAG)})


@st.composite
def recurrent(draw, gates, states):
    direction = draw(any_of("forward", "reverse", "bidirectional"))
    count, size = (2 if direction == "bidirectional" else 1), 2
    inputs: list[Any] = [Leaf((3, 2, 2)), Leaf((count, gates * size, 2), "small"), Leaf((count, gates * size, size))]
    inputs.append(Leaf((count, 2 * gates * size)) if draw(FLAG) else None)
    inputs.append(np.int32([3, 2]) if draw(FLAG) else None)
    inputs += [Leaf((count, 2, size)) if draw(FLAG) else None for _ in range(states)]
    attributes: dict[str, Any] = {"hidden_size": size, "direction": direction}
    if gates == 4:
        inputs.append(Leaf((count, 3 * size)) if draw(FLAG) else None)
        attributes["input_forget"] = draw(FLAG)
    if gates == 3:
        attributes["linear_before_reset"] = draw(FLAG)
    return Case(inputs, attributes, outputs=1 + states)


@st.composite
def attention(draw):
    groups, size, queries, keys = draw(any_of(1, 2)), 2, draw(st.integers(1, 3)), 3
    q, k = (1, 2 * groups, queries, size), (1, 2, keys, size)
    attributes: dict[str, Any] = {"is_causal": draw(FLAG), "softcap": draw(any_of(0.0, 2.0))}
    if draw(FLAG):
        q, k = (1, queries, 2 * groups * size), (1, keys, 2 * size)
        attributes |= {"q_num_heads": 2 * groups, "kv_num_heads": 2}
    mask = draw(any_of(None, Leaf((queries, keys)), np.eye(queries, keys) > 0))
    return Case([Leaf(q), Leaf(k), Leaf(k), mask], attributes)


@st.composite
def rotary(draw):
    positions = indices(draw, 3, 2, 3) % 3 if draw(FLAG) else None
    cache = (3, 2) if positions is not None else (2, 3, 2)
    return Case([Leaf((2, 2, 3, 4)), Leaf(cache), Leaf(cache), positions], {"interleaved": draw(FLAG)})


CASES = {
    "DFT": dft(),
    "STFT": stft(),
    "GRU": recurrent(3, 1),
    "LSTM": recurrent(4, 2),
    "RNN": recurrent(1, 1),
    "Attention": attention(),
    "RotaryEmbedding": rotary(),
}
