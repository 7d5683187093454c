"""The table of operators. Adding one is one decorated function in the file of its family under `ops/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import onnx

from amq_onnx.errors import UnsupportedOperatorError
from amq_onnx.executor.proto import node_label

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Operator:
    """One ONNX operator: `function(node, *inputs)` returns its output, or a tuple of several.

    A tensor is a torch.Tensor, a sequence a list of them, an empty optional None.

    host: positions of inputs that act as attributes; they arrive as Python numbers and lists.
    literal: positions that arrive as a Python number when they are a constant scalar, as a tensor otherwise.
    codes: the function only moves or compares values, so it also runs on the float tensors in which the
        executor carries the integer codes of QuantizeLinear, and gradients pass.
    indices: positions of such a function's inputs that are indices, hence always integers.
    reads_codes: the function takes such tensors as they are and returns something else (DequantizeLinear).
    """

    function: Callable[..., Any]
    host: frozenset[int] = frozenset()
    literal: frozenset[int] = frozenset()
    codes: bool = False
    indices: frozenset[int] = frozenset()
    reads_codes: bool = False


_TABLE: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str,
    domains: tuple[str, ...] = ("",),
    host: tuple[int, ...] = (),
    literal: tuple[int, ...] = (),
    codes: bool = False,
    indices: tuple[int, ...] = (),
    reads_codes: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function under ONNX operator `names`; the flags are those of `Operator`."""

    def register(function: Function) -> Function:
        entry = Operator(function, frozenset(host), frozenset(literal), codes, frozenset(indices), reads_codes)
        for domain in domains:
            for name in names:
                if (domain, name) in _TABLE:
                    raise ValueError(f"operator {domain}:{name} is registered twice")
                _TABLE[domain, name] = entry
        return function

    return register


@cache
def _load() -> dict[tuple[str, str], Operator]:
    from amq_onnx.executor import ops  # the families register themselves when imported

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    return _TABLE


def find(op_type: str, domain: str) -> Operator | None:
    """The operator registered under that name, or None. `ai.onnx` is the default domain."""
    return _load().get(("" if domain == "ai.onnx" else domain, op_type))


def found_or_failing(node: onnx.NodeProto, opset: int) -> Operator:
    """The operator of `node`; where there is none, one that raises UnsupportedOperatorError once it is to run.

    What only makes outputs that nobody asks for (labels in words, boxes that are left) need not run here.
    """
    # What its optimizers leave behind, offline or in a session that saves its graph.
    optimized = ": it is one of onnxruntime's own, so give the model as it was before onnxruntime optimized it"
    message = (
        f"the executor has no operator {node.op_type} (domain '{node.domain or 'ai.onnx'}', opset {opset}), which "
        f"node '{node_label(node)}' needs{optimized if node.domain.startswith('com.microsoft') else ''}"
    )

    def fail(*_: Any) -> Any:
        raise UnsupportedOperatorError(message)

    return find(node.op_type, node.domain) or Operator(fail)


def names() -> frozenset[str]:
    """Names of all operators of the default domain."""
    return frozenset(name for domain, name in _load() if domain == "")
