"""quantize() on models of all kinds."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from cli.networks import build, conv_constants, conv_net, conv_nodes, images, node, noise, run_float, save, scaled
from onnx import TensorProto, helper, numpy_helper
from quantized_files import FAST, quantized, relative_noise, run_file

from amq_onnx.compiler import Compiler
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import METHODS
from amq_onnx.model.data import Dataset, open_data
from amq_onnx.model.file import model_bytes
from amq_onnx.model.inputs import input_specs
from amq_onnx.model.random_data import random_data
from amq_onnx.pipeline import quantize
from amq_onnx.rewriting import prepare
from amq_onnx.tuning.finetune import FineTuneOptions
from amq_onnx.tuning.rounding import RoundingOptions
from amq_onnx.tuning.tuner import TuningOptions


def converted(opset, ir_version=4):
    """conv_net as an exporter of old wrote it: opset 7 to 11, initializers among the inputs, format 3 or 4."""
    model = conv_net(opset=opset)
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def constant_nodes():
    constants = conv_constants()
    nodes = [
        helper.make_node("Constant", [], [name], name=f"make_{name}", value=numpy_helper.from_array(value, name))
        for name, value in constants.items()
    ]
    return build([*nodes, *conv_nodes()], {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]})


def batch_norm():
    nodes = conv_nodes()
    nodes[0].output[0] = "raw"
    nodes.insert(1, node("BatchNormalization", "raw gain shift mean variance", "c1"))
    more = {"gain": 1 + noise(21, 16) / 4, "shift": noise(22, 16) / 4, "mean": noise(23, 16) / 4}
    constants = conv_constants() | more | {"variance": 0.5 + noise(24, 16) ** 2}
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def depthwise():
    nodes = conv_nodes()
    nodes[2:3] = [
        node("Conv", "r1 wd bd", "d", group=16, pads=[1, 1, 1, 1]),
        node("Relu", "d", "rd"),
        node("Conv", "rd w2 b2", "c2"),
    ]
    constants = conv_constants() | {
        "wd": scaled(31, 16, 1, 3, 3),
        "bd": noise(32, 16) / 8,
        "w2": scaled(33, 32, 16, 1, 1),
    }
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def no_bias():
    nodes = conv_nodes()
    del nodes[0].input[2], nodes[2].input[2], nodes[-1].input[2]
    constants = {name: value for name, value in conv_constants().items() if name[0] == "w"}
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def matmul_and_add():
    nodes = conv_nodes()
    nodes[-1:] = [node("MatMul", "flat w3", "product"), node("Add", "product b3", "scores")]
    constants = conv_constants() | {"w3": conv_constants()["w3"].T.copy()}
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def shared_weight():
    nodes = conv_nodes()
    nodes[2:2] = [node("Conv", "r1 ws b1", "s1", pads=[1, 1, 1, 1]), node("Conv", "s1 ws b1", "s2", pads=[1, 1, 1, 1])]
    nodes[4].input[0] = "s2"
    constants = conv_constants() | {"ws": scaled(41, 16, 16, 3, 3)}
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def softmax_at_the_end():
    nodes = [*conv_nodes(), node("Softmax", "scores", "probabilities", axis=1)]
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"probabilities": ["n", 10]}, conv_constants())


def dilated_pooling():
    """Between codes onnxruntime refuses the file: it takes dilated means for its own, which have none."""
    nodes = conv_nodes()
    nodes[2:2] = [node("AveragePool", "r1", "means", kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])]
    nodes[3].input[0] = "means"
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, conv_constants(), opset=19)


def smaller_by_axes():
    """onnxruntime's own move of a Transpose behind such a Resize on codes makes a graph that it refuses."""
    nodes = conv_nodes()
    resize = {"axes": [2, 3], "mode": "nearest", "keep_aspect_ratio_policy": "not_larger"}
    nodes.insert(2, helper.make_node("Resize", ["r1", "", "", "sides"], ["smaller"], **resize))
    nodes[3].input[0] = "smaller"
    constants = conv_constants() | {"sides": np.array([3, 4])}
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, constants)


def loss_inside():
    """A second output without dimensions."""
    nodes = [*conv_nodes(), node("ReduceLogSumExp", "scores", "cost", keepdims=0)]
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10], "cost": []}, conv_constants())


def norm_in_training():
    model = batch_norm()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["new_mean", "new_variance"])
    return model


def transposed_data():
    """A Gemm whose data's first dimension isn't the samples."""
    nodes = conv_nodes()
    nodes[-1:] = [node("Transpose", "flat", "columns"), node("Gemm", "columns w3 b3", "scores", transA=1, transB=1)]
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 10]}, conv_constants())


def kept_mask():
    nodes = [*conv_nodes(), node("Dropout", "scores", "left mask"), node("Identity", "left", "all")]
    outputs = {"all": ["n", 10], "mask": (TensorProto.BOOL, ["n", 10])}
    return build(nodes, {"image": ["n", 3, 8, 8]}, outputs, conv_constants())


MODELS = {
    "dynamic batch": (conv_net, 3),
    "batch without a name": (lambda: conv_net(batch=None), 3),
    "fixed batch of 1": (lambda: conv_net(batch=1), 3),
    "fixed batch of 4": (lambda: conv_net(batch=4), 3),
    "opset 7, format 3": (lambda: converted(7, 3), 3),
    "opset 9": (lambda: converted(9), 3),
    "opset 11": (lambda: converted(11), 3),
    "opset 13": (lambda: conv_net(opset=13), 3),
    "opset 21": (lambda: conv_net(opset=21), 3),
    "Constant nodes": (constant_nodes, 3),
    "BatchNormalization": (batch_norm, 3),
    "depthwise": (depthwise, 4),
    "no bias": (no_bias, 3),
    "MatMul and Add": (matmul_and_add, 3),
    "one weight, two readers": (shared_weight, 4),
    "Softmax at the end": (softmax_at_the_end, 3),
    "dilated pooling": (dilated_pooling, 3),
    "a Resize of some axes": (smaller_by_axes, 3),
    "a scalar output": (loss_inside, 3),
    "BatchNormalization in training": (norm_in_training, 3),
    "Gemm of transposed data": (transposed_data, 3),
    "Dropout whose mask leaves": (kept_mask, 3),
}


@pytest.mark.parametrize(("make", "weights"), MODELS.values(), ids=MODELS)
def test_models_of_all_kinds(tmp_path, make, weights):
    model = make()
    np.savez(tmp_path / "d.npz", image=images())
    path = save(model, tmp_path / "m.onnx")
    data = open_data(str(tmp_path / "d.npz"), model)
    result = quantize(path, data, size=0.6, output=tmp_path / "o.onnx", bits=(4, 6, 8), options=FAST, tune="none")
    written = onnx.load(tmp_path / "o.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert written.ir_version >= helper.find_min_ir_version_for(list(written.opset_import))
    assert len(result.plan.weights) == weights
    assert result.bytes == (tmp_path / "o.onnx").stat().st_size <= 0.6 * path.stat().st_size
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert [value.name for value in written.graph.input] == ["image"]
    wanted_input = next(value for value in model.graph.input if value.name not in initializers)
    assert written.graph.input[0].type == wanted_input.type
    assert list(written.graph.output) == list(model.graph.output)
    large = [t.name for t in written.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 100]
    assert large == []
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 32
    noise_share = relative_noise(model, tmp_path / "o.onnx", {"image": images()[:size]}, model.graph.output[0].name)
    assert noise_share < 0.02


def test_a_pipeline_of_scaled_features_to_named_classes(tmp_path):
    """As scikit-learn's converter writes a network: ai.onnx.ml around it, labels and maps for outputs."""
    ml = {"domain": "ai.onnx.ml"}
    nodes = [
        helper.make_node("Scaler", ["x"], ["scaled"], offset=[1.0], scale=[0.5], **ml),
        *(node("MatMul", "scaled w1", "m1"), node("Add", "m1 b1", "a1"), node("Relu", "a1", "h")),
        *(node("MatMul", "h w2", "m2"), node("Add", "m2 b2", "a2"), node("Softmax", "a2", "p", axis=1)),
        helper.make_node("ZipMap", ["p"], ["probabilities"], classlabels_strings=list("abcde"), **ml),
        node("ArgMax", "p", "place", axis=1),
        helper.make_node("ArrayFeatureExtractor", ["names", "place"], ["name"], **ml),
    ]
    constants = {"w1": scaled(1, 16, 64), "b1": noise(2, 64), "w2": scaled(3, 64, 5), "b2": noise(4, 5)}
    names = {"names": np.array(list("abcde"), object)}
    model = build(nodes, {"x": ["n", 16]}, {"name": (TensorProto.STRING, [1, "n"])}, constants | names)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("probabilities", helper.make_sequence_type_proto(row)))
    path = save(model, tmp_path / "m.onnx")
    data = open_data(_written(tmp_path, x=1 + noise(5, 64, 16), labels=np.arange(64) % 5), model)
    tune = TuningOptions("rounding", rounding=RoundingOptions(steps=20))
    result = quantize(path, data, size=0.5, output=tmp_path / "o.onnx", bits=(4, 8), options=FAST, tune=tune)
    assert (set(result.plan.weights), result.verification.metric) == ({"w1", "w2"}, "top1")
    assert result.verification.outputs["probabilities"].divergence < 0.01
    assert [value.name for value in onnx.load(tmp_path / "o.onnx").graph.output] == ["name", "probabilities"]


def _written(folder, **arrays):
    np.savez(folder / "d.npz", **arrays)
    return str(folder / "d.npz")


def test_weights_in_an_external_file(tmp_path):
    inside, outside = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save_model(conv_net(), inside)
    onnx.save_model(conv_net(), outside, save_as_external_data=True, location="out.data", size_threshold=0)
    results = []
    for path in (inside, outside):
        data = random_data(conv_net(), 8, 0)
        output = tmp_path / f"{path.stem}.q.onnx"
        results.append(quantize(path, data, size="8KB", output=output, options=FAST, tune="none"))
    assert (tmp_path / "in.q.onnx").read_bytes() == (tmp_path / "out.q.onnx").read_bytes()
    total = outside.stat().st_size + (tmp_path / "out.data").stat().st_size
    assert results[1].float_bytes == results[1].verification.float_bytes == total
    assert results[0].float_bytes == inside.stat().st_size


def test_what_the_owner_wrote_into_the_model_stays(tmp_path):
    model = conv_net()
    model.doc_string = "trained on Tuesday"
    model.producer_name, model.producer_version, model.domain, model.model_version = "we", "3", "org.we", 7
    model.metadata_props.add(key="labels", value="a,b,c")
    model.graph.doc_string = "the graph"
    model.graph.name = "digits"
    model.graph.input[0].doc_string = "images in RGB"
    model.graph.output[0].doc_string = "logits"
    result = quantized(model, random_data(model, 8, 0), tmp_path)
    written = onnx.load(tmp_path / "o.onnx")
    assert written == result.model
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        assert getattr(written, field) == getattr(model, field)
    assert list(written.metadata_props) == list(model.metadata_props)
    assert (written.graph.name, written.graph.doc_string) == ("digits", "the graph")
    assert list(written.graph.input) == list(model.graph.input)
    assert list(written.graph.output) == list(model.graph.output)


def test_names_that_look_like_ours(tmp_path):
    """A model whose names start with the stem that packed constants have."""
    model = conv_net()
    renamed = {"c1": "qw0", "r1": "qw0k", "w2": "qt4", "c2": "q", "image": "qqa0q", "b1": "qc15"}
    for item in model.graph.node:
        item.input[:] = [renamed.get(name, name) for name in item.input]
        item.output[:] = [renamed.get(name, name) for name in item.output]
    for value in (*model.graph.input, *model.graph.initializer):
        value.name = renamed.get(value.name, value.name)
    quantized(model, random_data(model, 8, 0), tmp_path)
    assert relative_noise(model, tmp_path / "o.onnx", {"qqa0q": images()}, "scores") < 0.01


def test_dead_nodes_and_unused_weights_take_no_bytes(tmp_path):
    model = conv_net()
    model.graph.initializer.append(numpy_helper.from_array(noise(1, 100, 100), "unused"))
    model.graph.node.append(node("MatMul", "unused unused", "dead"))
    result = quantized(model, random_data(model, 8, 0), tmp_path, size="12KB")
    clean = tmp_path / "clean"
    clean.mkdir()
    plain = quantized(conv_net(), random_data(conv_net(), 8, 0), clean, size="12KB")
    assert result.bytes == plain.bytes
    assert set(result.plan.weights) == set(plain.plan.weights)


def test_an_input_called_labels(tmp_path):
    nodes = [node("Gemm", "labels w b", "scores")]
    model = build(nodes, {"labels": ["n", 16]}, {"scores": ["n", 96]}, {"w": scaled(1, 16, 96), "b": noise(2, 96)})
    np.savez(tmp_path / "d.npz", labels=noise(3, 32, 16))
    result = quantized(model, str(tmp_path / "d.npz"), tmp_path, size=0.9)
    assert result.verification.quantized_score > 0.5


def test_every_width_from_1_to_8(tmp_path):
    model = conv_net()
    table = measure_sensitivity(prepare(model), random_data(model, 16, 0), range(1, 9), (8,), FAST)
    noises = []
    for bits in range(1, 9):
        plan = Compiler(prepare(model), table, (bits,), (8,)).best(10**6)
        path = tmp_path / f"{bits}.onnx"
        path.write_bytes(model_bytes(plan.model))
        assert set(plan.plan.weights.values()) == {bits}
        noises.append(relative_noise(model, path, {"image": images()}, "scores"))
    assert noises == sorted(noises, reverse=True)
    assert noises[0] > 0.1
    assert noises[-1] < 1e-3


@pytest.mark.parametrize("tune", ["rounding", "full"])
def test_samples_of_a_fixed_batch_stay_together(tmp_path, tune):
    """A part of the batch can't be computed alone where the graph holds its size or constants for each sample."""
    nodes = conv_nodes()
    nodes[4:6] = [
        node("Concat", "r2 each", "told", axis=1),
        node("GlobalAveragePool", "told", "pooled"),
        node("Reshape", "pooled sizes", "flat"),
    ]
    constants = conv_constants() | {"each": noise(9, 4, 32, 4, 4), "sizes": np.array([4, -1]), "w3": scaled(5, 10, 64)}
    model = build(nodes, {"image": [4, 3, 8, 8]}, {"scores": [4, 10]}, constants)
    options = TuningOptions(tune, RoundingOptions(steps=20), FineTuneOptions(epochs=1, batch_size=2))
    quantized(model, random_data(model, 16, 0), tmp_path, size=0.5, tune=options)
    assert relative_noise(model, tmp_path / "o.onnx", {"image": images()[:4]}, "scores") < 0.1


@pytest.mark.parametrize("tune", ["none", "rounding"])
def test_a_model_of_float16(tmp_path, tune):
    """Half the bytes are half the budget; the file takes and gives float16 as the model does."""
    model = conv_net()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    options = TuningOptions(tune, RoundingOptions(steps=50))
    result = quantized(model, random_data(model, 32, 0), tmp_path, size=0.62, tune=options)
    assert (result.float_bits, result.bytes <= 0.62 * (tmp_path / "m.onnx").stat().st_size) == (16, True)
    feeds = {"image": images().astype(np.float16)}
    found = run_file(tmp_path / "o.onnx", feeds)["scores"]
    known = run_float(conv_net(), {"image": feeds["image"].astype(np.float32)})["scores"]
    assert found.dtype == np.float16
    assert np.linalg.norm(found - known) < 0.05 * np.linalg.norm(known)


def branches():
    """If(c): x a, else x b; then w."""

    def branch(name, weight):
        held = helper.make_tensor(weight, TensorProto.FLOAT, [4, 4], noise(len(weight), 4, 4).ravel().tolist())
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node("MatMul", f"x {weight}", name)], name, [], [output], [held])

    chosen = helper.make_node("If", ["c"], ["m"], then_branch=branch("t", "a"), else_branch=branch("e", "bb"))
    nodes = [chosen, node("MatMul", "m w", "y")]
    inputs = {"x": ["n", 4], "c": (TensorProto.BOOL, [])}
    return build(nodes, inputs, {"y": ["n", 3]}, {"w": noise(9, 4, 3)})


# A Hessian would need labels; the norm looks at no output.
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("hessian", "norm")])
def test_a_branch_that_no_sample_takes_stays_float_with_the_reason(method):
    model = branches()
    prepared = prepare(model)
    batches = [{"x": noise(seed, 6, 4), "c": np.array(seed == 1)} for seed in (1, 2)]
    found = {}
    for count in (1, 2):
        data = Dataset(lambda count=count: batches[:count], input_specs(model), "the data")
        found[count] = measure_sensitivity(prepared, data, (4,), (8,), replace(FAST, method=method))
    assert set(found[2].weights) == {"a", "bb", "w"}
    assert set(found[1].weights) == {"a", "w"}
    assert "a branch never taken" in found[1].left_float["bb"]
    plan = Compiler(prepared, found[1], (4,), (8,)).best(10**6).plan
    assert set(plan.weights) == {"a", "w"}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "hessian"])
def test_a_graph_without_derivatives_is_quantized_as_well(method, tmp_path):
    """Nothing behind the Hardmax tells how sensitive what is in front of it is."""
    nodes = [*conv_nodes(), node("Hardmax", "scores", "chosen")]
    model = build(nodes, {"image": ["n", 3, 8, 8]}, {"chosen": ["n", 10]}, conv_constants())
    np.savez(tmp_path / "d.npz", image=images())
    tune = TuningOptions(rounding=RoundingOptions(steps=5))
    more = {"bits": (8,), "tune": tune, "options": replace(FAST, method=method)}
    path, data = save(model, tmp_path / "m.onnx"), open_data(str(tmp_path / "d.npz"), model)
    quantize(path, data, size=0.6, output=tmp_path / "o.onnx", **more)
    assert relative_noise(model, tmp_path / "o.onnx", {"image": images()}, "chosen") < 0.3
