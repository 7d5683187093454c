"""Small models for the tests of passes, targets and sites, and onnxruntime as their referee."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from amq_onnx.passes.base import run
from amq_onnx.quantizer.encoding import Encoding

rng = np.random.default_rng(7)
IMAGE = {"x": ["n", 3, 6, 6]}


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def node(op_type, inputs, output, **attributes):
    """inputs and outputs are names separated by spaces; '-' is an absent input."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, output.split(), name=f"{op_type}_{output.split()[0]}", **attributes)


def infos(values):
    """{name: shape} of float tensors, or {name: (element type, shape)}."""
    return [
        helper.make_tensor_value_info(name, *(value if isinstance(value, tuple) else (TensorProto.FLOAT, value)))
        for name, value in values.items()
    ]


def model(nodes, inputs, outputs, constants=None, opset=18, extra_opsets=(), functions=()):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "small", infos(inputs), infos(outputs), tensors)
    imports = [helper.make_opsetid("", opset), *extra_opsets]
    made = helper.make_model(
        graph, opset_imports=imports, ir_version=8 if opset < 21 else 10, functions=list(functions)
    )
    # Outputs given as None have the shape that onnx infers.
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph.output
    for value, shaped in zip(made.graph.output, inferred, strict=True):
        value.CopyFrom(shaped)
    onnx.checker.check_model(made)
    return made


def operators(proto):
    return [item.op_type for item in proto.graph.node]


def initializers(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def session(proto, level="DISABLE_ALL", exact=True, optimized_file=None):
    """exact: 8-bit weights computed without saturating 16-bit sums on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized_file is not None:
        options.optimized_model_filepath = str(optimized_file)
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def operators_run(proto, folder, level="ENABLE_ALL"):
    """The operators that onnxruntime makes of a model when it loads it."""
    path = folder / "optimized.onnx"
    session(proto, level, optimized_file=path)
    return operators(onnx.load(path))


def outputs(proto, feeds, level="DISABLE_ALL"):
    return session(proto, level).run(None, feeds)


def assert_same_outputs(one, other, feeds, tolerance=0.0):
    """Bit for bit without a tolerance; else relative to the largest output."""
    for ours, theirs in zip(outputs(one, feeds), outputs(other, feeds), strict=True):
        if not tolerance:
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def initializer_bytes(proto, names):
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer if tensor.name in names)


def assert_rewrites(rewrite, before, expected, feeds=None, tolerance=0.0):
    """The operators afterwards, the same outputs, and nothing to do for a second run; returns the model."""
    after = run(before, [rewrite])
    assert operators(after) == expected
    assert_same_outputs(before, after, feeds or {"x": f(2, 3, 6, 6)}, tolerance)
    assert run(after, [rewrite]) is after
    return after


def assert_left_alone(rewrite, before):
    assert run(before, [rewrite]) is before


def encoded(bits=8, signed=False, scale=0.05, zero=0, axis=None):
    return Encoding(bits, signed, np.asarray(scale, np.float32), zero, axis)
