"""RNN, GRU and LSTM, step by step: torch's fused ones have other gates and no second derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]

_DEFAULTS = {
    "affine": (1.0, 0.0),
    "elu": (1.0, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, 0.0),
    "scaledtanh": (1.0, 1.0),
    "thresholdedrelu": (1.0, 0.0),
}


def _activation(node: NodeContext, name: str, alpha: float | None, beta: float | None) -> Activation:
    """The function that ONNX knows under `name`, in any case."""
    key = name.lower()
    default = _DEFAULTS.get(key, (0.0, 0.0))
    a = default[0] if alpha is None else alpha
    b = default[1] if beta is None else beta
    table: dict[str, Activation] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "affine": lambda x: a * x + b,
        "elu": lambda x: F.elu(x, a),
        "hardsigmoid": lambda x: torch.clamp(a * x + b, 0.0, 1.0),
        "leakyrelu": lambda x: F.leaky_relu(x, a),
        "scaledtanh": lambda x: a * torch.tanh(b * x),
        "softplus": F.softplus,
        "softsign": lambda x: x / (1 + torch.abs(x)),
        "thresholdedrelu": lambda x: torch.where(x > a, x, torch.zeros_like(x)),
    }
    if key not in table:
        raise node.unsupported(f"activation {name}")
    return table[key]


def _activations(node: NodeContext, defaults: list[str], direction: int) -> list[Activation]:
    """The activations of one direction. alpha and beta are listed only for those that take them, in order."""
    count = len(defaults)
    names = node.texts("activations") or defaults * 2
    alphas, betas = list(node.numbers("activation_alpha") or []), list(node.numbers("activation_beta") or [])
    functions = []
    for name in names:
        takes = _DEFAULTS.get(name.lower())
        alpha = alphas.pop(0) if takes is not None and alphas else None
        beta = betas.pop(0) if name.lower() in ("affine", "hardsigmoid", "scaledtanh") and betas else None
        functions.append(_activation(node, name, alpha, beta))
    return functions[direction * count : (direction + 1) * count]


def _clipped(node: NodeContext, x: Tensor) -> Tensor:
    limit = node.number("clip")
    return torch.clamp(x, -limit, limit) if limit else x


def _scan(cell: Cell, inputs: Tensor, state: State, lengths: Tensor | None, reverse: bool) -> tuple[Tensor, State]:
    """Run `cell` over inputs [time, batch, *]; returns hidden [time, batch, hidden] and the last state."""
    steps = inputs.shape[0]
    hidden: list[Tensor] = [state[0]] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        fresh = cell(inputs[t], state)
        if lengths is None:
            state = fresh
            hidden[t] = state[0]
        else:  # beyond its length a sequence keeps its state and yields zeros
            live = (t < lengths)[:, None]
            state = tuple(torch.where(live, new, old) for new, old in zip(fresh, state, strict=True))
            hidden[t] = torch.where(live, state[0], torch.zeros_like(state[0]))
    return torch.stack(hidden), state


def _recurrent(
    node: NodeContext,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial: list[Tensor | None],
    make_cell: Callable[[int, Tensor], tuple[Cell, Tensor]],
) -> tuple[Tensor, ...]:
    """What the three operators share: directions, layout, initial states.

    make_cell(direction, x) gives the cell of one direction and x [time, batch, *] times its input weights.
    """
    hidden = node.integer("hidden_size", weight.shape[1])
    batch_first = bool(node.integer("layout"))
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if state is None else state.transpose(0, 1) for state in initial]
    zeros = torch.zeros(x.shape[1], hidden, dtype=x.dtype, device=x.device)
    kind = node.text("direction", "forward")
    sequences, finals = [], []
    for direction in range(weight.shape[0]):
        cell, projected = make_cell(direction, x)
        state = tuple(zeros if given is None else given[direction] for given in initial)
        sequence, final = _scan(cell, projected, state, lengths, kind == "reverse" or direction == 1)
        sequences.append(sequence)
        finals.append(final)
    y = torch.stack(sequences, 1)  # [time, directions, batch, hidden]
    last = [torch.stack(states) for states in zip(*finals, strict=True)]
    if batch_first:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (y, *last)


def _biases(bias: Tensor | None, direction: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Input and recurrent bias of one direction; zeros where there is none."""
    if bias is None:
        none = torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return none, none
    first, second = bias[direction].chunk(2)
    return first, second


@operator("RNN")
def rnn(
    node: NodeContext,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """x [time, batch, input], w [directions, hidden, input], r [directions, hidden, hidden]."""

    def make_cell(direction: int, inputs: Tensor) -> tuple[Cell, Tensor]:
        (f,) = _activations(node, ["Tanh"], direction)
        wb, rb = _biases(bias, direction, w)

        def cell(projected: Tensor, state: State) -> State:
            return (f(_clipped(node, projected + F.linear(state[0], r[direction]))),)

        return cell, F.linear(inputs, w[direction], wb + rb)

    return _recurrent(node, x, w, bias, lengths, [initial], make_cell)


@operator("GRU")
def gru(
    node: NodeContext,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """x [time, batch, input], w [directions, 3 hidden, input], gates in the order update, reset, hidden."""

    def make_cell(direction: int, inputs: Tensor) -> tuple[Cell, Tensor]:
        f, g = _activations(node, ["Sigmoid", "Tanh"], direction)
        wb, rb = _biases(bias, direction, w)
        gates_r, hidden_r = r[direction].tensor_split([2 * r.shape[2]])
        gates_b, hidden_b = rb.tensor_split([2 * r.shape[2]])
        before_reset = bool(node.integer("linear_before_reset"))

        def cell(projected: Tensor, state: State) -> State:
            (h,) = state
            xz, xr, xh = projected.chunk(3, -1)
            z, reset = (_clipped(node, F.linear(h, gates_r, gates_b) + torch.cat([xz, xr], -1))).chunk(2, -1)
            z, reset = f(z), f(reset)
            pulled = (
                reset * F.linear(h, hidden_r, hidden_b) if before_reset else F.linear(reset * h, hidden_r, hidden_b)
            )
            return ((1 - z) * g(_clipped(node, xh + pulled)) + z * h,)

        return cell, F.linear(inputs, w[direction], wb)

    return _recurrent(node, x, w, bias, lengths, [initial], make_cell)


@operator("LSTM")
def lstm(
    node: NodeContext,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """x [time, batch, input], w [directions, 4 hidden, input], gates: input, output, forget, cell."""

    def make_cell(direction: int, inputs: Tensor) -> tuple[Cell, Tensor]:
        f, g, h = _activations(node, ["Sigmoid", "Tanh", "Tanh"], direction)
        wb, rb = _biases(bias, direction, w)
        coupled = bool(node.integer("input_forget"))
        none = torch.zeros(3 * r.shape[2], dtype=x.dtype, device=x.device)
        pi, po, pf = (none if peepholes is None else peepholes[direction]).chunk(3)

        def cell(projected: Tensor, state: State) -> State:
            hidden, c = state
            i, o, forget, new = (projected + F.linear(hidden, r[direction])).chunk(4, -1)
            if peepholes is not None:
                i, forget = i + pi * c, forget + pf * c
            i = f(_clipped(node, i))
            forget = 1 - i if coupled else f(_clipped(node, forget))
            c = forget * c + i * g(_clipped(node, new))
            o = f(_clipped(node, o if peepholes is None else o + po * c))
            return o * h(c), c

        return cell, F.linear(inputs, w[direction], wb + rb)

    return _recurrent(node, x, w, bias, lengths, [initial_h, initial_c], make_cell)
