"""If, Loop, Scan, sequences and functions, with onnxruntime as the referee."""

import numpy as np
import pytest
import torch
from onnx import AttributeProto, TensorProto, helper

from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor, unsupported_operators

from .graphs import assert_parity, f, model, onnxruntime_outputs, run

node = helper.make_node
BOOL, FLOAT, INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64


def body_of(nodes, inputs, outputs):
    """A subgraph; inputs and outputs: (name, element type, shape)."""
    infos = [[helper.make_tensor_value_info(n, k, s) for n, k, s in values] for values in (inputs, outputs)]
    return helper.make_graph(nodes, "body", *infos)


def branches(then, other):
    """An If whose branches are the nodes `then` and `other`; the last output of each is its result."""
    return {
        f"{name}_branch": body_of(nodes, [], [(nodes[-1].output[0], FLOAT, None)])
        for name, nodes in (("then", then), ("else", other))
    }


def test_if_runs_one_branch_and_differentiates_what_it_captures():
    attributes = branches([node("Mul", ["x", "w"], ["t"])], [node("Identity", ["x"], ["e"])])
    inputs = {"c": (BOOL, []), "x": (FLOAT, [3])}
    proto = model([node("If", ["c"], ["y"], **attributes)], inputs, {"y": FLOAT}, {"w": f(3)})
    for c in (True, False):
        assert_parity(proto, {"c": np.array(c), "x": f(3)})
    executor = Executor(proto)
    w, x = executor.initializers["w"].clone().requires_grad_(), torch.randn(3)
    y = executor.run({"c": torch.tensor(True), "x": x, "w": w})["y"]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), w)[0], x)


def nested():
    """s <- w s if the sum of s is above `limit`, s + step elsewhere, `n` times while `go` and s stays below 50.

    The inner branches read the loop's state, its counter and two scopes outside.
    """
    inside = branches(
        [node("Mul", ["s", "w"], ["t"])],
        [node("Cast", ["i"], ["fi"], to=FLOAT), node("Add", ["fi", "x"], ["ix"]), node("Add", ["s", "ix"], ["e"])],
    )
    nodes = [
        node("ReduceSum", ["s"], ["sum"], keepdims=0),
        node("Greater", ["sum", "limit"], ["above"]),
        node("If", ["above"], ["next"], **inside),
        node("ReduceMax", ["next"], ["top"], keepdims=0),
        node("Less", ["top", "fifty"], ["again"]),
        node("Mul", ["next", "x"], ["scanned"]),
    ]
    body = body_of(
        nodes,
        [("i", INT64, []), ("going", BOOL, []), ("s", FLOAT, [2])],
        [("again", BOOL, []), ("next", FLOAT, [2]), ("scanned", FLOAT, [2]), ("sum", FLOAT, [])],
    )
    loop = node("Loop", ["n", "go", "start"], ["last", "all", "sums"], body=body)
    constants = {"w": np.float32([1.5, -0.7]), "limit": np.float32(3), "fifty": np.float32(50)}
    inputs = {"n": (INT64, []), "go": (BOOL, []), "x": (FLOAT, [2]), "start": (FLOAT, [2])}
    return model([loop], inputs, {"last": FLOAT, "all": FLOAT, "sums": FLOAT}, constants)


@pytest.mark.parametrize(("n", "go"), [(1, True), (7, True), (100, True), (0, True), (5, False)])
def test_if_inside_loop(n, go):
    feeds = {"n": np.array(n), "go": np.array(go), "x": np.float32([1, 0.5]), "start": np.float32([0.25, 1])}
    assert_parity(nested(), feeds)


def test_loop_is_differentiated_as_if_unrolled():
    executor = Executor(nested(), dtype=torch.float64)
    x, start = (torch.tensor(v, dtype=torch.float64) for v in ([1, 0.5], [0.25, 1]))

    def unrolled(w):
        s = start
        for i in range(6):
            s = s * w if s.sum() > 3 else s + i + x
        return s

    def looped(w):
        return executor.run({"n": torch.tensor(6), "go": torch.tensor(True), "x": x, "start": start, "w": w})["last"]

    w = executor.initializers["w"]
    jacobian = torch.autograd.functional.jacobian
    assert jacobian(unrolled, w).any()
    torch.testing.assert_close(jacobian(looped, w), jacobian(unrolled, w))
    v = torch.ones_like(w)
    products = [torch.autograd.functional.vhp(lambda z, g=g: g(z).square().sum(), w, v)[1] for g in (looped, unrolled)]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("limit", ["", "n"])
def test_loop_without_a_condition_or_a_limit(limit):
    nodes = [
        node("Add", ["s", "one"], ["s2"]),
        node("Less", ["s2", "six"], ["again"]),
        node("Unsqueeze", ["s2", "zero"], ["item"]),
    ]
    body = body_of(
        nodes,
        [("i", INT64, []), ("going", BOOL, []), ("s", FLOAT, [])],
        [("again", BOOL, []), ("s2", FLOAT, []), ("item", FLOAT, [1])],
    )
    loop = node("Loop", [limit, "" if limit else "yes", "s0"], ["last", "items"], body=body)
    constants = {"one": np.float32(1), "six": np.float32(6), "zero": np.array([0]), "yes": np.array(True)}
    constants["n"] = np.array(3)
    proto = model([loop], {"s0": (FLOAT, [])}, {"last": FLOAT, "items": FLOAT}, constants)
    assert_parity(proto, {"s0": np.array(0.5, np.float32)})


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_scan_along_axes_and_backward(opset):
    nodes = [node("Add", ["s", "a"], ["t"]), node("Mul", ["t", "b"], ["u"]), node("Sub", ["u", "w"], ["o"])]
    body = body_of(
        nodes,
        [("s", FLOAT, [2]), ("a", FLOAT, [2]), ("b", FLOAT, [])],
        [("t", FLOAT, [2]), ("o", FLOAT, [2]), ("u", FLOAT, [2])],
    )
    scan = node(
        "Scan", ["s0", "x", "z"], ["last", "os", "us"], body=body, num_scan_inputs=2, scan_input_axes=[1, 0],
        scan_input_directions=[0, 1], scan_output_axes=[1, 0], scan_output_directions=[1, 0],
    )  # fmt: skip
    inputs = {"s0": (FLOAT, [2]), "x": (FLOAT, [2, 5]), "z": (FLOAT, [5])}
    proto = model([scan], inputs, {"last": FLOAT, "os": FLOAT, "us": FLOAT}, {"w": f(2)}, opset)
    assert_parity(proto, {"s0": f(2), "x": f(2, 5), "z": f(5)})


def test_scan_before_opset_9_has_a_batch_and_lengths():
    body = body_of(
        [node("Add", ["s", "a"], ["t"]), node("Mul", ["t", "t"], ["o"])],
        [("s", FLOAT, [2]), ("a", FLOAT, [2])],
        [("t", FLOAT, [2]), ("o", FLOAT, [2])],
    )
    scan = node("Scan", ["l", "s0", "x"], ["last", "os"], body=body, num_scan_inputs=1, directions=[1])
    inputs = {"l": (INT64, [3]), "s0": (FLOAT, [3, 2]), "x": (FLOAT, [3, 4, 2])}
    proto = model([scan], inputs, {"last": (FLOAT, [3, 2]), "os": (FLOAT, [3, 4, 2])}, opset=8)
    assert_parity(proto, {"l": np.array([4, 2, 3]), "s0": f(3, 2), "x": f(3, 4, 2)})


def test_a_sequence_grows_in_a_loop():
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    body = helper.make_graph(
        [
            node("Identity", ["going"], ["again"]),
            node("Gather", ["x", "i"], ["row"]),
            node("SequenceInsert", ["seq", "row", "zero"], ["longer"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("going", BOOL, []),
            helper.make_value_info("seq", sequence),
        ],
        [helper.make_tensor_value_info("again", BOOL, []), helper.make_value_info("longer", sequence)],
    )
    nodes = [
        node("SplitToSequence", ["x", "one"], ["parts"], axis=0),
        node("SequenceErase", ["parts", "zero"], ["fewer"]),
        node("SequenceAt", ["fewer", "minus"], ["last"]),
        node("SequenceConstruct", ["last"], ["seq0"]),
        node("Loop", ["three", "", "seq0"], ["grown"], body=body),
        node("SequenceLength", ["grown"], ["count"]),
        node("SequenceAt", ["grown", "one"], ["second"]),
        node("SequenceErase", ["grown"], ["without"]),
        node("ConcatFromSequence", ["without"], ["y"], axis=0, new_axis=1),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "minus": np.array(-1), "three": np.array(3)}
    outputs = {"y": FLOAT, "second": FLOAT, "count": INT64}
    proto = model(nodes, {"x": (FLOAT, [4, 2])}, outputs, constants)
    assert_parity(proto, {"x": f(4, 2)})
    x = torch.randn(4, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(Executor(proto).run({"x": x})["y"].sum(), x)
    assert gradient[:, 0].tolist() == [1, 1, 1, 0]


def test_an_empty_optional_is_named():
    kind = helper.make_tensor_type_proto(FLOAT, [2])
    nodes = [
        node("Optional", [], ["o"], type=kind),
        node("OptionalHasElement", ["o"], ["has"]),
        node("OptionalGetElement", ["o"], ["y"], name="opened"),
    ]
    executor = Executor(model(nodes, {}, {"y": FLOAT, "has": BOOL}))
    assert executor.run({}, ["has"])["has"].item() is False
    with pytest.raises(DataError, match="'opened'"):
        executor.run({})


def referring(op_type, inputs, outputs, name, of, **keywords):
    """A node in a function whose attribute `name` has the value of the function's attribute `of`."""
    made = node(op_type, inputs, outputs, **keywords)
    made.attribute.add(name=name, ref_attr_name=of, type=AttributeProto.FLOAT)
    return made


def functions():
    """Scaled(a) = LeakyRelu(a; alpha) * Bent(a; beta); Bent(a) = Elu(a; beta) where the sum is positive, else -a."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    bent = [
        node("ReduceSum", ["a"], ["sum"], keepdims=0),
        node("Constant", [], ["zero"], value_float=0.0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node(
            "If", ["positive"], ["b"],
            **branches([referring("Elu", ["a"], ["t"], "alpha", "beta")], [node("Neg", ["a"], ["e"])]),
        ),
    ]  # fmt: skip
    scaled = [
        referring("LeakyRelu", ["a"], ["l"], "alpha", "alpha"),
        referring("Bent", ["a"], ["h"], "beta", "beta", domain="custom"),
        node("Mul", ["l", "h"], ["c"]),
    ]
    default = [helper.make_attribute("beta", 0.5)]
    return [
        helper.make_function("custom", "Bent", ["a"], ["b"], bent, imports, ["beta"]),
        helper.make_function("custom", "Scaled", ["a"], ["c"], scaled, imports, ["alpha"], default),
    ]


def test_functions_are_inlined_with_their_attributes_and_in_bodies():
    body = body_of(
        [node("Scaled", ["s"], ["t"], domain="custom", alpha=0.2), node("Identity", ["going"], ["again"])],
        [("i", INT64, []), ("going", BOOL, []), ("s", FLOAT, [3])],
        [("again", BOOL, []), ("t", FLOAT, [3])],
    )
    nodes = [
        node("Scaled", ["x"], ["h"], domain="custom", alpha=0.1, beta=0.25),
        node("Loop", ["two", "", "h"], ["y"], body=body),
    ]
    proto = model(
        nodes, {"x": (FLOAT, [3])}, {"y": FLOAT, "h": FLOAT}, {"two": np.array(2)}, functions=functions()
    )  # fmt: skip
    del proto.opset_import[2:]  # both functions are of one domain
    assert not unsupported_operators(proto)
    for x in (np.float32([1, -2, 3]), np.float32([1, -2, 0.5])):
        expected = onnxruntime_outputs(proto, {"x": x})
        for ours, theirs in zip(run(proto, {"x": x}), expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)


def test_a_function_of_another_opset_is_converted():
    mean = [node("ReduceMean", ["a"], ["b"], axes=[1], keepdims=0)]  # an attribute in opset 13, an input in 18
    function = helper.make_function("custom", "Mean", ["a"], ["b"], mean, [helper.make_opsetid("", 13)])
    proto = model(
        [node("Mean", ["x"], ["y"], domain="custom")], {"x": (FLOAT, [2, 3])}, {"y": FLOAT}, functions=[function]
    )
    x = f(2, 3)
    np.testing.assert_allclose(run(proto, {"x": x})[0].numpy(), x.mean(1), rtol=1e-6)
