import numpy as np
from small_graphs import f, model, node

from amq_onnx.rewriting import prepare
from amq_onnx.tuning.blocks import find_blocks
from tuning.graphs import residual


def blocks_of(proto, outputs):
    prepared = prepare(proto)
    return find_blocks(prepared.model, [site.name for site in prepared.sites.weights], outputs)


def test_residual_parts_are_cut_where_one_tensor_is_handed_on():
    blocks = blocks_of(residual(), ["scores"])
    assert [(block.input, block.outputs) for block in blocks] == [(None, ("r1",)), ("r1", ("scores",))]
    assert [set(block.weights) for block in blocks] == [{"w0", "w1a", "w1b"}, {"w2a", "w2b", "w"}]
    assert "r0" in blocks[0].tensors and "r0" not in blocks[1].tensors
    assert "r1" in blocks[1].tensors
    assert [block.layers for block in blocks] == [("c0", "a1", "b1"), ("a2", "b2")]


def test_branches_that_never_meet_are_one_block_with_all_outputs():
    nodes = [node("MatMul", "x w0", "h")]
    nodes += [node("MatMul", f"h w{index}", f"y{index}") for index in (1, 2)]
    constants = {f"w{index}": f(4, 4) for index in range(3)}
    found = blocks_of(model(nodes, {"x": ["n", 4]}, {"y1": ["n", 4], "y2": ["n", 4]}, constants), ["y1", "y2"])
    assert [block.outputs for block in found] == [("y1", "y2")]
    assert set(found[0].weights) == {"w0", "w1", "w2"}


def decoder(side):
    """Four layers, each with keys that leave the graph; side: where one has a weight that nothing else needs."""
    nodes, constants, outputs = [], {}, {}
    for index in range(4):
        constants |= {f"k{index}": f(4, 4), f"q{index}": f(4, 4), f"o{index}": f(4, 4)}
        nodes += [
            node("MatMul", f"h{index} k{index}", f"keys{index}"),
            node("MatMul", f"h{index} q{index}", f"asked{index}"),
            node("Mul", f"keys{index} asked{index}", f"seen{index}"),
            node("MatMul", f"seen{index} o{index}", f"made{index}"),
            node("Add", f"h{index} made{index}", f"h{index + 1}"),
        ]
        outputs[f"keys{index}"] = ["n", 4]
    if side is not None:
        constants["s"] = f(4, 4)
        nodes.append(node("MatMul", f"keys{side} s", "side"))
        outputs["side"] = ["n", 4]
    nodes.append(node("Relu", "h4", "y"))
    return model(nodes, {"h0": ["n", 4]}, outputs | {"y": ["n", 4]}, constants), [*outputs, "y"]


def test_outputs_that_a_block_makes_on_its_way_are_settled_with_what_it_hands_on():
    found = blocks_of(*decoder(None))
    assert [block.outputs for block in found] == [("h1",), ("h2",), ("h3",), ("y",)]
    assert [set(block.weights) for block in found] == [{f"{kind}{index}" for kind in "kqo"} for index in range(4)]


def test_an_output_with_a_weight_of_its_own_is_judged_by_itself():
    """Behind it, no cut: what the next blocks hand on can't teach that weight."""
    found = blocks_of(*decoder(1))
    assert [block.outputs for block in found] == [("h1",), ("keys1", "keys2", "keys3", "side", "y")]
    assert {"s", "k1", "k3"} <= set(found[1].weights)


def chain():
    nodes, constants = [], {}
    for index in range(8):
        constants[f"w{index}"] = f(4, 4)
        nodes += [node("MatMul", f"h{index} w{index}", f"p{index}"), node("Add", f"p{index} m", f"h{index + 1}")]
    return nodes, constants


def test_what_follows_from_inputs_without_weights_may_cross_a_cut():
    nodes, constants = chain()
    proto = model([node("Neg", "mask", "m"), *nodes], {"h0": ["n", 4], "mask": ["n", 4]}, {"h8": ["n", 4]}, constants)
    found = blocks_of(proto, ["h8"])
    assert [len(block.weights) for block in found] == [3, 3, 2]
    assert [block.input for block in found] == [None, "h3", "h6"]


def test_a_weight_read_twice_belongs_to_the_block_that_reads_it_first():
    nodes, constants = chain()
    nodes[8] = node("MatMul", "h4 w0", "p4")
    del constants["w4"]
    proto = model([node("Neg", "mask", "m"), *nodes], {"h0": ["n", 4], "mask": ["n", 4]}, {"h8": ["n", 4]}, constants)
    found = blocks_of(proto, ["h8"])
    assert "w0" in found[0].weights
    assert sum("w0" in block.weights for block in found) == 1
    assert [block.shared for block in found] == [(), ("w0",), ()]


def test_parts_without_weights_join_a_neighbour():
    nodes = [node("Relu", "x", "a"), node("Neg", "a", "b"), node("MatMul", "b w", "c"), node("Relu", "c", "y")]
    found = blocks_of(model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.eye(4, dtype=np.float32)}), ["y"])
    assert [(block.input, block.outputs, block.weights) for block in found] == [(None, ("y",), ("w",))]
