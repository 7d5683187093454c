"""Sites on small graphs."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import assert_same_outputs, f, infos, model, node

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.model.sites import find_sites
from amq_onnx.rewriting import prepare

IMAGE = {"x": ["n", 4, 8, 8]}
SAME = {"pads": [1, 1, 1, 1]}


def kernels(*names):
    return {name: f(4, 4, 3, 3) for name in names}


def names(sites):
    return [site.name for site in sites.weights], [site.name for site in sites.activations]


def axes(proto):
    return {site.name: site.axis for site in find_sites(proto).weights}


class TestActivations:
    def test_a_residual_block_quantizes_the_sums_inputs_and_the_shortcuts_source(self):
        nodes = [
            node("Conv", "x w1", "c1", **SAME),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2", "c2", strides=[2, 2], **SAME),
            node("Slice", "r1 start stop axes steps", "sliced"),
            node("Pad", "sliced pads", "padded"),
            node("Add", "c2 padded", "s"),
            node("Relu", "s", "r2"),
            node("Conv", "r2 w3", "z"),
            node("Sigmoid", "z", "y"),
        ]
        constants = {
            **kernels("w1", "w2", "w3"),
            "start": np.array([0, 0]), "stop": np.array([8, 8]), "axes": np.array([2, 3]), "steps": np.array([2, 2]),
            "pads": np.zeros(8, np.int64),
        }  # fmt: skip
        sites = find_sites(model(nodes, IMAGE, {"y": None}, constants))
        assert names(sites) == (["w1", "w2", "w3"], ["x", "r1", "c2", "r2", "z"])
        readers = {site.name: site.readers for site in sites.activations}
        assert readers == {"x": ("Conv",), "r1": ("Conv", "Add"), "c2": ("Add",), "r2": ("Conv",), "z": ("Sigmoid",)}

    def test_a_pad_that_fills_with_another_number_breaks_the_shortcut(self):
        nodes = [
            node("Conv", "x w1", "c1"),
            node("Pad", "c1 pads one", "p"),
            node("Conv", "p w2", "z"),
            node("Sigmoid", "z", "y"),
        ]
        constants = {**kernels("w1", "w2"), "pads": np.ones(8, np.int64) * 0, "one": np.float32(1)}
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, constants)))[1] == ["x", "c1", "p", "z"]

    def test_the_inputs_of_a_concat_and_its_output_are_sites(self):
        nodes = [
            node("Conv", "x w1", "c1"),
            node("Conv", "x w2", "c2"),
            node("Concat", "c1 c2", "k", axis=1),
            node("Conv", "k w3", "z"),
            node("Sigmoid", "z", "y"),
        ]
        constants = {**kernels("w1", "w2"), "w3": f(2, 8, 1, 1)}
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, constants)))[1] == ["x", "c1", "c2", "k", "z"]

    @pytest.mark.parametrize(
        ("pool", "expected"),
        [
            (node("MaxPool", "r", "p", kernel_shape=[2, 2]), ["x", "r", "z"]),
            (node("AveragePool", "r", "p", kernel_shape=[2, 2]), ["x", "r", "p", "z"]),
            (node("GlobalAveragePool", "r", "p"), ["x", "r", "p", "z"]),
            (node("LpPool", "r", "p", kernel_shape=[2, 2]), ["x", "r", "p", "z"]),
        ],
        ids=["a carrier", "average", "global", "no integer kernel"],
    )
    def test_pooling(self, pool, expected):
        nodes = [
            node("Conv", "x w1", "c"),
            node("Relu", "c", "r"),
            pool,
            node("Conv", "p w2", "z", **SAME),
            node("Sigmoid", "z", "y"),
        ]
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w1", "w2"))))[1] == expected

    def test_a_sum_that_leaves_the_quantized_part_stays_float(self):
        nodes = [
            node("Conv", "x w1", "c1"),
            node("Conv", "x w2", "c2"),
            node("Add", "c1 c2", "s"),
            node("Sigmoid", "s", "y"),
        ]
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w1", "w2"))))[1] == ["x", "c1", "c2"]

    def test_a_sum_with_something_that_is_not_quantized_stays_float(self):
        nodes = [
            node("Conv", "x w1", "c1", **SAME),
            node("Sigmoid", "x", "g"),
            node("Add", "c1 g", "s"),
            node("Conv", "s w2", "z"),
            node("Sigmoid", "z", "y"),
        ]
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w1", "w2"))))[1] == ["x", "c1", "s", "z"]

    def test_a_chain_of_sums_is_quantized_throughout_or_not_at_all(self):
        def chain(last):
            nodes = [
                node("Conv", "x w1", "c1"),
                node("Conv", "x w2", "c2"),
                node("Add", "c1 c2", "s"),
                node("Add", "s c1", "t"),
                node(last, "t w3" if last == "Conv" else "t", "z"),
                node("Sigmoid", "z", "y"),
            ]
            return names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w1", "w2", "w3"))))[1]

        assert chain("Conv") == ["x", "c1", "c2", "s", "t", "z"]
        assert chain("Sigmoid") == ["x", "c1", "c2"]

    def test_a_product_of_two_activations_quantizes_both_through_transposes(self):
        nodes = [
            node("MatMul", "x wq", "q"),
            node("MatMul", "x wk", "k"),
            node("Transpose", "k", "kt", perm=[0, 2, 1]),
            node("MatMul", "q kt", "y"),
        ]
        proto = model(nodes, {"x": ["n", 5, 4]}, {"y": None}, {"wq": f(4, 4), "wk": f(4, 4)})
        assert names(find_sites(proto)) == (["wq", "wk"], ["x", "q", "k"])

    def test_a_bias_added_by_a_node_of_its_own_is_no_site(self):
        nodes = [node("MatMul", "x w1", "m"), node("Add", "m b", "s"), node("MatMul", "s w2", "y")]
        proto = model(nodes, {"x": ["n", 4]}, {"y": None}, {"w1": f(4, 4), "b": f(4), "w2": f(4, 4)})
        assert names(find_sites(proto)) == (["w1", "w2"], ["x", "s"])

    def test_large_biases_of_layers_need_no_reason_and_other_constants_do(self):
        nodes = [
            *(node("MatMul", "x w1", "m"), node("Add", "m b1", "s"), node("Gemm", "s w2 b2", "g")),
            node("Add", "g places", "y"),
        ]
        constants = {"w1": f(2, 1024), "b1": f(1024), "w2": f(1024, 1024), "b2": f(1024), "places": f(1024)}
        assert set(find_sites(model(nodes, {"x": ["n", 2]}, {"y": None}, constants)).left_float) == {"places"}

    def test_the_bias_of_a_recurrent_layer_needs_no_reason(self):
        proto = model(
            [node("GRU", "x w r b", "y", hidden_size=192)],
            {"x": [5, "n", 4]}, {"y": None}, {"w": f(1, 576, 4), "r": f(1, 576, 192), "b": f(1, 1152)},
        )  # fmt: skip
        assert find_sites(proto).left_float == {}

    def test_the_bias_of_a_gemm_that_is_computed_is_no_site(self):
        proto = model(
            [node("Relu", "x", "r"), node("Gemm", "r w t", "y")],
            {"x": ["n", 4], "t": [4]}, {"y": None}, {"w": f(4, 4)},
        )  # fmt: skip
        assert names(find_sites(proto))[1] == ["r"]

    @pytest.mark.parametrize(("gate", "quantized"), [("Tanh", "xcsk"), ("Sigmoid", "xcgsk"), ("LeakyRelu", "xcgsk")])
    def test_a_conv_writes_codes_even_where_nothing_else_reads_any(self, gate, quantized):
        """Tanh has no integer kernel; with one, the product of gate and gated has one as well."""
        nodes = [
            node("Conv", "x w1", "c", **SAME),
            node(gate, "c", "g"),
            node("Mul", "c g", "s"),
            node("Conv", "s w2", "r"),
            node("Clip", "r low high", "k"),
            node("Exp", "k", "y"),
        ]
        constants = {**kernels("w1", "w2"), "low": np.float32(0), "high": np.float32(6)}
        sites = find_sites(model(nodes, IMAGE, {"y": None}, constants))
        assert names(sites)[1] == list(quantized)
        assert [site.needs for site in sites.weights] == [(frozenset("xc"),), (frozenset("sk"),)]

    @pytest.mark.parametrize("last", ["Sigmoid", "LeakyRelu"])
    def test_what_only_floats_read_stays_float(self, last):
        nodes = [node("Conv", "x w", "c"), node(last, "c", "y")]
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w"))))[1] == ["x", "c"]

    @pytest.mark.parametrize(
        "last",
        [[], [node("Relu", "c", "y")], [node("Flatten", "c", "l"), node("Concat", "l l", "y", axis=1)]],
        ids=["itself", "absorbed", "moved and joined"],
    )
    def test_a_conv_that_makes_an_output_computes_in_float(self, last):
        nodes = [node("Conv", "x w", "c" if last else "y"), *last]
        sites = find_sites(model(nodes, IMAGE, {"y": None}, kernels("w")))
        assert (names(sites), sites.weights[0].needs) == ((["w"], []), ())


class TestWeights:
    def test_the_output_channels_of_each_operator(self):
        nodes = [
            node("Conv", "x w", "c"),
            node("GlobalAveragePool", "c", "p"),
            node("Flatten", "p", "l"),
            node("Gemm", "l g0", "g"),
            node("Gemm", "g g1", "h", transB=1),
            node("MatMul", "h m", "y"),
        ]
        constants = {"w": f(5, 4, 3, 3), "g0": f(5, 6), "g1": f(7, 6), "m": f(7, 2)}
        proto = model(nodes, IMAGE, {"y": None}, constants)
        assert axes(proto) == {"w": 0, "g0": 1, "g1": 0, "m": 1}
        sizes = {site.name: (site.shape, site.elements, site.operators) for site in find_sites(proto).weights}
        assert sizes["g0"] == ((5, 6), 30, ("Gemm",))

    def test_weights_on_the_left_and_of_three_dimensions(self):
        nodes = [node("MatMul", "left x", "a"), node("MatMul", "a right", "b"), node("MatMul", "stacked b", "y")]
        constants = {"left": f(5, 4), "right": f(2, 3, 6), "stacked": f(2, 7, 5)}
        proto = model(nodes, {"x": [2, 4, 3]}, {"y": None}, constants)
        assert axes(proto) == {"left": 0, "right": None, "stacked": 1}

    def test_a_shared_weight_is_one_site(self):
        nodes = [node("Conv", "x w", "a"), node("Conv", "a w", "y")]
        assert names(find_sites(model(nodes, IMAGE, {"y": None}, kernels("w")))) == (["w"], ["x", "a"])

    def test_a_shared_weight_whose_readers_disagree_has_one_scale(self):
        nodes = [node("Gemm", "x w", "a"), node("Gemm", "a w", "y", transB=1)]
        assert axes(model(nodes, {"x": ["n", 4]}, {"y": None}, {"w": f(4, 4)})) == {"w": None}

    def test_layers_without_integer_kernels(self):
        nodes = [
            node("ConvTranspose", "x t", "a", group=2),
            node("Reshape", "a rows", "b"),
            node("LSTM", "b w r", "s h", hidden_size=4),
            node("Gather", "table i", "e"),
            node("Concat", "h e", "y", axis=0),
        ]
        constants = {
            "t": f(4, 3, 2, 2), "w": f(1, 16, 6), "r": f(1, 16, 4), "table": f(9, 4), "rows": np.array([-1, 1, 6])
        }  # fmt: skip
        inputs = {"x": [1, 4, 3, 3], "i": (TensorProto.INT64, [1, 1])}
        sites = find_sites(model(nodes, inputs, {"y": None}, constants))
        assert {site.name: (site.axis, site.needs) for site in sites.weights} == {
            "t": (1, ()), "w": (1, ()), "r": (1, ()), "table": (1, ())
        }  # fmt: skip
        assert sites.activations == ()

    def test_an_embedding_tied_to_the_last_layer_is_one_site_along_that_layers_channels(self):
        nodes = [
            node("Gather", "table i", "e"),
            node("MatMul", "e w", "h"),
            node("Transpose", "table", "turned", perm=[1, 0]),
            node("MatMul", "h turned", "y"),
        ]
        inputs = {"i": (TensorProto.INT64, ["n", 5])}
        sites = prepare(model(nodes, inputs, {"y": None}, {"table": f(9, 4), "w": f(4, 4)})).sites
        assert {site.name: (site.axis, site.operators) for site in sites.weights} == {
            "table": (0, ("Gather", "MatMul")),
            "w": (1, ("MatMul",)),
        }
        assert names(sites)[1] == ["e", "h"]

    def test_weights_behind_identity_transpose_and_constant_nodes(self):
        constant = helper.make_node("Constant", [], ["held"], value_floats=f(16).tolist())
        nodes = [
            constant,
            node("Identity", "w", "same"),
            node("Transpose", "v", "turned", perm=[1, 0]),
            node("Reshape", "held shape", "square"),
            node("MatMul", "x same", "a"),
            node("MatMul", "a turned", "b"),
            node("MatMul", "b square", "y"),
        ]
        constants = {"w": f(4, 4), "v": f(4, 4), "shape": np.array([4, 4])}
        sites = prepare(model(nodes, {"x": ["n", 4]}, {"y": None}, constants)).sites
        assert names(sites) == (["w", "turned", "square"], ["x", "a", "b"])

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (np.full((4, 4), np.nan, np.float32), "NaN"),
            (f(4), "vector"),
            (np.zeros((4, 0), np.float32), "empty"),
        ],
        ids=["not finite", "vector", "empty"],
    )
    def test_unfit_weights_stay_float_with_the_reason(self, values, reason):
        nodes = [node("MatMul", "x w", "y"), node("MatMul", "x v", "z")]
        sites = find_sites(model(nodes, {"x": ["n", 4]}, {"y": None, "z": None}, {"w": values, "v": f(4, 4)}))
        assert names(sites)[0] == ["v"]
        assert reason in sites.left_float["w"]

    def test_half_precision_weights_stay_float_with_the_reason(self):
        half = {"x": (TensorProto.FLOAT16, ["n", 4])}
        proto = model(
            [node("MatMul", "x w", "y")],
            half,
            {"y": (TensorProto.FLOAT16, ["n", 4])},
            {"w": f(4, 4).astype(np.float16)},
        )
        with pytest.raises(ModelError, match="'w': its values are float16"):
            find_sites(proto)

    def branches(self, first, second):
        def branch(name, weight):
            held = helper.make_tensor(weight, TensorProto.FLOAT, [4, 4], f(16).tolist())
            constant = helper.make_node("Constant", [], [weight], value=held)
            multiply = helper.make_node("MatMul", ["x", weight], [name])
            nodes, tensors = ([constant, multiply], []) if weight == "other" else ([multiply], [held])
            return helper.make_graph(nodes, name, [], infos({name: [1, 4]}), tensors)

        nodes = [
            helper.make_node("If", ["c"], ["a"], then_branch=branch("t", first), else_branch=branch("e", second)),
            node("MatMul", "a w", "y"),
        ]
        return model(nodes, {"x": [1, 4], "c": (TensorProto.BOOL, [])}, {"y": None}, {"w": f(4, 4)})

    def test_weights_in_subgraphs_are_sites_of_float_layers(self):
        before = self.branches("inner", "other")
        prepared = prepare(before)
        assert {site.name: site.needs for site in prepared.sites.weights} == {
            "w": (frozenset("a"),), "inner": (), "other": ()
        }  # fmt: skip
        for condition in (True, False):
            assert_same_outputs(before, prepared.model, {"x": f(1, 4), "c": np.array(condition)})

    def test_a_name_that_two_subgraphs_use_stays_float_with_the_reason(self):
        sites = prepare(self.branches("same", "same")).sites
        assert names(sites)[0] == ["w"]
        assert "several subgraphs" in sites.left_float["same"]

    def test_weights_of_a_function_are_those_of_the_nodes_it_stands_for(self):
        held = helper.make_tensor("", TensorProto.FLOAT, [4, 4], f(16).tolist())
        body = [
            helper.make_node("Constant", [], ["k"], value=held),
            helper.make_node("MatMul", ["a", "k"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["c"]),
        ]
        layer = helper.make_function("mine", "Layer", ["a", "v"], ["c"], body, [helper.make_opsetid("", 18)])
        call = helper.make_node("Layer", ["x", "w"], ["y"], domain="mine")
        before = model(
            [call], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": f(4, 4)},
            extra_opsets=[helper.make_opsetid("mine", 1)], functions=[layer],
        )  # fmt: skip
        prepared = prepare(before)
        assert [site.operators for site in prepared.sites.weights] == [("MatMul",)] * 2
        assert_same_outputs(before, prepared.model, {"x": f(3, 4)})

    def test_a_model_without_layers_is_refused(self):
        with pytest.raises(ModelError, match="no layer to quantize"):
            find_sites(model([node("Relu", "x", "y")], {"x": [1]}, {"y": [1]}))


class TestExclude:
    def sites(self):
        nodes = [node("Conv", "x first.weight", "c1"), node("Conv", "c1 last.weight", "y")]
        return find_sites(model(nodes, IMAGE, {"y": None}, kernels("first.weight", "last.weight")))

    def test_matching_sites_are_left_float_with_the_pattern(self):
        left = self.sites().exclude([r"^first", "c1"])
        assert names(left) == (["last.weight"], ["x"])
        assert left.left_float.pop("y").endswith("--quantize-outputs does")
        assert left.left_float == {"first.weight": "excluded by --exclude '^first'", "c1": "excluded by --exclude 'c1'"}

    def test_no_pattern_excludes_nothing(self):
        assert self.sites().exclude([]) == self.sites()

    @pytest.mark.parametrize(
        ("pattern", "message"), [("nothing", "matches no site"), ("(", "not a regular expression")]
    )
    def test_patterns_that_do_nothing_are_refused(self, pattern, message):
        with pytest.raises(UsageError, match=message):
            self.sites().exclude([pattern])
