"""Small models for the tests of the executor, and their comparison with onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from amq_onnx.executor.interpreter import Executor

rng = np.random.default_rng(0)

TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def ir_version(opset):
    return 8 if opset < 19 else 10 if opset < 25 else 13


def model(nodes, inputs, outputs, constants=None, opset=18, functions=()):
    """inputs and outputs: {name: element type} or {name: (element type, shape)}."""

    def infos(values):
        return [
            helper.make_tensor_value_info(name, *(value if isinstance(value, tuple) else (value, None)))
            for name, value in values.items()
        ]

    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), tensors)
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(f.domain, 1) for f in functions]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version(opset), functions=list(functions))


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def perceptron(activation="Tanh", opset=20, **attributes):
    """y = W2 activation(W1 x + b1): all of its derivatives are known."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node(activation, ["h"], ["a"], **attributes),
        helper.make_node("MatMul", ["a", "w2"], ["y"]),
    ]
    constants = {"w1": f(4, 3), "b1": f(4), "w2": f(4, 2)}
    return model(nodes, {"x": (TensorProto.FLOAT, ["n", 3])}, {"y": TensorProto.FLOAT}, constants, opset)


def single(op_type, arrays, *, constants=None, outputs=1, opset=18, kind=TensorProto.FLOAT, absent=(), **attributes):
    """A model of one node. `arrays` are its inputs in order; those in `constants` are initializers."""
    constants = constants or {}
    names = ["" if name in absent else name for name in arrays]
    kinds = kind if isinstance(kind, (list, tuple)) else [kind] * outputs
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], name="the_node", **attributes)
    return model(
        [node],
        {n: (TYPES[a.dtype], list(a.shape)) for n, a in arrays.items() if n not in constants and n not in absent},
        {f"y{i}": kinds[i] for i in range(outputs)},
        {n: a for n, a in arrays.items() if n in constants},
        opset,
    )


def onnxruntime_outputs(proto, feeds, optimize=False):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in feeds.items()})


def run(proto, feeds, **options):
    executor = Executor(proto, **options)
    results = executor.run({name: torch.tensor(value) for name, value in feeds.items()})
    return [results[name] for name in executor.outputs]


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    if not theirs.size:
        return 0.0
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def assert_parity(proto, feeds, tolerance=1e-4):
    expected = onnxruntime_outputs(proto, feeds)
    for ours, theirs in zip(run(proto, feeds), expected, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        assert relative_error(ours.detach().numpy(), theirs) <= tolerance
