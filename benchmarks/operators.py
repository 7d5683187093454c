"""The onnx package's own operator tests: how many the executor, onnxruntime and onnx's reference pass.

    python benchmarks/operators.py [--all]

The tests are those of the default domain up to opset 25. The figures are for those with at least one input and one
output of floats (float16, bfloat16, float32, float64), without the function bodies (`_expanded`): 790 with onnx
1.23. With --all they are for every test. What the executor fails is listed with the reason that
tests/executor/known_failures.toml gives.

A result is right when its shape is, and its values are within the test's own tolerances, as onnx's runner has it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.loader
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator

from amq_onnx.executor.interpreter import Executor
from amq_onnx.executor.narrow import NARROW, narrowed
from amq_onnx.executor.types import torch_tensor

Backend = Callable[[onnx.ModelProto, Sequence[Any]], Sequence[Any]]

KNOWN_FAILURES = Path(__file__).parent.parent / "tests" / "executor" / "known_failures.toml"
NEWEST_OPSET = 25
SECONDS = 120  # after which a test counts as failed
_ABSENT_FROM_NUMPY = NARROW - {TensorProto.FLOAT16} | {
    TensorProto.INT4,
    TensorProto.UINT4,
    TensorProto.INT2,
    TensorProto.UINT2,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@cache
def standard_cases() -> dict[str, TestCase]:
    """Every test of the default domain up to opset 25, by its name without `test_`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = onnx.backend.test.loader.load_node_model_tests()
    return {
        case.name.removeprefix("test_"): case
        for case in cases
        if all(item.domain in ("", "ai.onnx") and item.version <= NEWEST_OPSET for item in case.model.opset_import)
    }


def float_cases() -> dict[str, TestCase]:
    """The tests that the figures are for: floats in and out, no function bodies."""

    def has_floats(values: Iterable[onnx.ValueInfoProto]) -> bool:
        return any(value.type.tensor_type.elem_type in _FLOATS for value in values)

    return {
        name: case
        for name, case in standard_cases().items()
        if "_expanded" not in name and has_floats(case.model.graph.input) and has_floats(case.model.graph.output)
    }


def known_failures() -> dict[str, list[str]]:
    """Names of tests that the executor fails, or patterns of them, by reason."""
    reasons: dict[str, list[str]] = tomllib.loads(KNOWN_FAILURES.read_text())
    return reasons


def reason_of(name: str) -> str | None:
    """Why the executor is known to fail a test, None where it isn't."""
    known = known_failures().items()
    return next((reason for reason, names in known if any(fnmatchcase(name, pattern) for pattern in names)), None)


def run_executor(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """In float64 where the test has float64, else in float32; outputs with the values of their declared type."""
    values = [*model.graph.input, *model.graph.output]
    double = any(value.type.tensor_type.elem_type == TensorProto.DOUBLE for value in values)
    dtype = torch.float64 if double else torch.float32

    def given(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return [given(item) for item in value]
        return torch_tensor(_proto(value), dtype)

    executor = Executor(model, dtype=dtype)
    results = executor.run({v.name: given(x) for v, x in zip(model.graph.input, inputs, strict=False)})
    kinds = [value.type.tensor_type.elem_type for value in model.graph.output]
    return [
        narrowed(value, kind, saturate=False)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value, kind in zip((results[name] for name in executor.outputs), kinds, strict=True)
    ]


def run_onnxruntime(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """On the CPU. What numpy has no type for enters as an initializer and leaves through a Cast to float."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    feeds = {}
    for value, x in zip(model.graph.input, inputs, strict=False):
        if isinstance(x, TensorProto) or (isinstance(x, np.ndarray) and x.dtype.isbuiltin != 1):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(_proto(x))
            tensor.name = value.name
        else:
            feeds[value.name] = np.asarray(x) if isinstance(x, np.generic) else x
    for output in proto.graph.output:
        if output.type.tensor_type.elem_type in _ABSENT_FROM_NUMPY:
            name, output.name = output.name, f"{output.name}_as_float"
            proto.graph.node.append(onnx.helper.make_node("Cast", [name], [output.name], to=TensorProto.FLOAT))
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def run_reference(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """onnx.reference."""
    evaluator = ReferenceEvaluator(model)
    return list(evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=False))))


BACKENDS: Mapping[str, Backend] = {
    "executor": run_executor,
    "onnxruntime": run_onnxruntime,
    "onnx.reference": run_reference,
}


def _proto(value: Any) -> TensorProto:
    return value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))


def _array(value: Any) -> np.ndarray:
    """A result in float64, or as it is where it holds text."""
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array if array.dtype.kind in "OUSc" else array.astype(np.float64)


def _compare(ours: Any, expected: Any, case: TestCase) -> None:
    if expected is None or ours is None:
        assert expected is ours is None, f"{ours} where {expected} is expected"
    elif isinstance(expected, list):
        assert len(ours) == len(expected), f"a sequence of {len(ours)} where one of {len(expected)} is expected"
        for item, wanted in zip(ours, expected, strict=True):
            _compare(item, wanted, case)
    else:
        mine, theirs = _array(ours), _array(expected)
        assert mine.shape == theirs.shape, f"shape {mine.shape} where {theirs.shape} is expected"
        if theirs.dtype.kind in "OUS":
            np.testing.assert_array_equal(mine, theirs)
        else:
            np.testing.assert_allclose(mine, theirs, rtol=case.rtol, atol=case.atol)


def failure(case: TestCase, backend: Backend) -> str | None:
    """None when every data set of a test comes out right, else what is wrong, in one line."""
    try:
        for inputs, outputs in case.data_sets:
            results = backend(case.model, inputs)
            for ours, expected in zip(results, outputs, strict=True):
                _compare(ours, expected, case)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _judge(cases: Mapping[str, TestCase], backend: Backend, names: Sequence[str], results: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        results.send((name, failure(cases[name], backend)))


def failures(cases: Mapping[str, TestCase], backend: Backend) -> dict[str, str]:
    """What fails, by name. The tests run in a process of their own: some make onnxruntime crash."""
    forked = multiprocessing.get_context("fork")
    found: dict[str, str] = {}
    pending = list(cases)
    while pending:
        receiving, sending = forked.Pipe(duplex=False)
        process = forked.Process(target=_judge, args=(cases, backend, pending, sending))
        process.start()
        sending.close()
        done = 0
        try:
            while done < len(pending) and receiving.poll(SECONDS):
                name, text = receiving.recv()
                done += 1
                if text is not None:
                    found[name] = text
        except EOFError:
            pass
        process.kill()
        process.join()
        if done < len(pending):
            found[pending[done]] = "the process crashed or hung"
        pending = pending[done + 1 :]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    cases = standard_cases() if parser.parse_args().all else float_cases()
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}: {len(cases)} tests")
    found = {name: failures(cases, backend) for name, backend in BACKENDS.items()}
    for name, failed in found.items():
        print(f"{name:15} passes {len(cases) - len(failed)}")
    print("the executor fails")
    for name, text in found["executor"].items():
        print(f"  {name}: {reason_of(name) or 'NOT LISTED'} ({text})")


if __name__ == "__main__":
    main()
