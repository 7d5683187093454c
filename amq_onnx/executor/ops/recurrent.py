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


def _rnn_cell(
    node: NodeContext, functions: list[Activation], r: Tensor, late: Tensor | None, peep: Tensor | None
) -> Cell:
    """r [hidden, hidden]."""
    (f,), turned = functions, r.t()

    def cell(projected: Tensor, state: State) -> State:
        return (f(_clipped(node, torch.addmm(projected, state[0], turned))),)

    return cell


def _gru_cell(
    node: NodeContext, functions: list[Activation], r: Tensor, late: Tensor | None, peep: Tensor | None
) -> Cell:
    """r [3 hidden, hidden], gates in the order update, reset, hidden; late: a bias that the reset gate weighs."""
    f, g = functions
    size = r.shape[1]
    gates_r, hidden_r = r[: 2 * size].t(), r[2 * size :]
    turned = hidden_r.t()

    def cell(projected: Tensor, state: State) -> State:
        (h,) = state
        gates, new = torch.split(projected, [2 * size, size], -1)
        z, reset = f(_clipped(node, torch.addmm(gates, h, gates_r))).chunk(2, -1)
        if node.integer("linear_before_reset"):
            new = new + reset * F.linear(h, hidden_r, late)
        else:
            new = torch.addmm(new, reset * h, turned)
        return ((1 - z) * g(_clipped(node, new)) + z * h,)

    return cell


def _lstm_cell(
    node: NodeContext, functions: list[Activation], r: Tensor, late: Tensor | None, peep: Tensor | None
) -> Cell:
    """r [4 hidden, hidden], gates in the order input, output, forget, cell; peep [3 hidden]: input, output, forget."""
    f, g, h = functions
    size, turned = r.shape[1], r.t()
    coupled = bool(node.integer("input_forget"))

    def cell(projected: Tensor, state: State) -> State:
        hidden, c = state
        gates, new = torch.split(torch.addmm(projected, hidden, turned), [3 * size, size], -1)
        if peep is None:
            i, o, forget = f(_clipped(node, gates)).chunk(3, -1)
        else:
            (i, o, forget), (pi, po, pf) = gates.chunk(3, -1), peep.chunk(3)
            i, forget = f(_clipped(node, i + pi * c)), f(_clipped(node, forget + pf * c))
        c = (1 - i if coupled else forget) * c + i * g(_clipped(node, new))
        if peep is not None:
            o = f(_clipped(node, o + po * c))
        return o * h(c), c

    return cell


_CELLS: dict[str, tuple[Callable[..., Cell], list[str]]] = {
    "RNN": (_rnn_cell, ["Tanh"]),
    "GRU": (_gru_cell, ["Sigmoid", "Tanh"]),
    "LSTM": (_lstm_cell, ["Sigmoid", "Tanh", "Tanh"]),
}


def _scan(cell: Cell, inputs: Tensor, state: State, lengths: Tensor | None, reverse: bool) -> tuple[Tensor, State]:
    """Run `cell` over inputs [time, batch, *]; returns hidden [time, batch, hidden] and the last state."""
    steps = inputs.unbind(0)
    hidden: list[Tensor] = [state[0]] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        fresh = cell(steps[t], state)
        if lengths is None:
            state = fresh
            hidden[t] = state[0]
        else:  # beyond its length a sequence keeps its state and yields zeros
            live = (t < lengths)[:, None]
            state = tuple(torch.where(live, new, old) for new, old in zip(fresh, state, strict=True))
            hidden[t] = torch.where(live, state[0], torch.zeros_like(state[0]))
    return torch.stack(hidden), state


def _biases(node: NodeContext, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The sum of input and recurrent bias, and what of the latter GRU may not add before its reset gate."""
    if bias is None:
        return None, None
    first, second = bias.chunk(2)
    if not node.integer("linear_before_reset"):
        return first + second, None
    early, late = second.tensor_split([second.shape[0] // 3 * 2])
    return first + torch.cat([early, torch.zeros_like(late)]), late


@operator("RNN", "GRU", "LSTM")
def recurrent(
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
    """x [time, batch, input], w [directions, gates * hidden, input], r [directions, gates * hidden, hidden].

    Returns all hidden states [time, directions, batch, hidden], and the last state [directions, batch, hidden] of
    each kind; batch comes first where `layout` says so. The inputs of all steps are projected in one product.
    """
    make_cell, defaults = _CELLS[node.op_type]
    initial = [initial_h, initial_c] if node.op_type == "LSTM" else [initial_h]
    batch_first = bool(node.integer("layout"))
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if state is None else state.transpose(0, 1) for state in initial]
    zeros = torch.zeros(x.shape[1], r.shape[2], dtype=x.dtype, device=x.device)
    reverse = node.text("direction", "forward") == "reverse"
    sequences, finals = [], []
    for direction in range(w.shape[0]):
        functions = _activations(node, defaults, direction)
        together, late = _biases(node, None if bias is None else bias[direction])
        cell = make_cell(node, functions, r[direction], late, None if peepholes is None else peepholes[direction])
        state = tuple(zeros if given is None else given[direction] for given in initial)
        projected = F.linear(x, w[direction], together)
        sequence, final = _scan(cell, projected, state, lengths, reverse or direction == 1)
        sequences.append(sequence)
        finals.append(final)
    y = torch.stack(sequences, 1)
    last = [torch.stack(states) for states in zip(*finals, strict=True)]
    if batch_first:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (y, *last)
