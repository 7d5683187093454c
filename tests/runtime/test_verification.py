"""Two files on the same data, end to end."""

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from cli.networks import build, conv_net, images, node, noise, run_float, save, two_inputs
from onnx import TensorProto

from amq_onnx.errors import DataError, GateError, ModelError, UsageError
from amq_onnx.model.data import open_data
from amq_onnx.runtime import verification as module
from amq_onnx.runtime.confidence import PairedDrop
from amq_onnx.runtime.latency import Latency
from amq_onnx.runtime.verification import check_gate, doubt, require_gate, verify


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One run of each in place of some hundred."""

    def once(first, second):
        first()
        second()
        return Latency(1.0, 2.0, 1)

    monkeypatch.setattr(module, "alternate", once)


def data_for(model, tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return open_data(str(tmp_path / "data.npz"), model)


def shifted(model, name, by):
    """`model` with `by` added to the initializer `name`."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(by), name))
    return other


def test_errors_and_scores_against_closed_forms(tmp_path):
    model = conv_net()
    second = shifted(model, "b3", 0.25)  # every score of the second is 0.25 more
    feeds = images(70)  # more than two batches
    scores = run_float(model, {"image": feeds})["scores"]
    labels = scores.argmax(1)
    labels[:7] = (labels[:7] + 1) % 10
    one, other = save(model, tmp_path / "1.onnx"), save(second, tmp_path / "2.onnx")
    seen = []
    found = verify(
        one, other, data_for(model, tmp_path, image=feeds, labels=labels), progress=lambda *step: seen.append(step)
    )
    assert (found.metric, found.samples, found.provider) == ("top1", 70, "cpu")
    assert found.float_score == found.quantized_score == 63 / 70
    assert found.drop == 0
    error = found.outputs["scores"]
    assert error.largest == pytest.approx(0.25, rel=1e-4)
    assert error.mean == pytest.approx(0.25, rel=1e-4)
    wanted = 10 * np.log10(np.square(scores).sum() / (0.0625 * scores.size))
    assert error.sqnr == pytest.approx(wanted, abs=1e-3)
    assert (found.float_bytes, found.quantized_bytes) == (one.stat().st_size, other.stat().st_size)
    assert [done for _, done, _ in seen] == [32, 64, 70]
    assert found.to_dict()["latency_ratio"] == 2


def test_the_metric_follows_from_labels_and_outputs(tmp_path):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    assert verify(path, path, data_for(model, tmp_path, image=images(3))).metric == "agreement"
    labels = np.zeros(3, np.int64)
    assert verify(path, path, data_for(model, tmp_path, image=images(3), labels=labels)).metric == "top1"
    for tail, shape in (
        ([node("Unsqueeze", "scores axes", "y")], ["n", 1, 10]),
        ([node("ReduceMax", "scores axes", "y", keepdims=1)], ["n", 1]),
    ):
        other = build(
            [*model.graph.node, *tail],
            {"image": ["n", 3, 8, 8]},
            {"y": shape},
            {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | {"axes": np.array([1])},
        )
        path = save(other, tmp_path / "o.onnx")
        data = data_for(other, tmp_path, image=images(3), labels=labels)
        assert verify(path, path, data).metric == "cosine"


def test_several_outputs_with_integers_and_constants(tmp_path):
    model = two_inputs()
    second = shifted(model, "b3", 1.0)
    one, other = save(model, tmp_path / "1.onnx"), save(second, tmp_path / "2.onnx")
    data = data_for(model, tmp_path, image=images(5), side=noise(2, 5, 6))
    found = verify(one, other, data)
    assert set(found.outputs) == {"scores"}
    assert found.outputs["scores"].mean == pytest.approx(1, rel=1e-4)
    assert found.metric == "agreement"
    assert found.quantized_score == 1


def test_an_integer_output_in_front(tmp_path):
    nodes = [node("Gemm", "x w", "s"), node("ArgMax", "s", "k", axis=1, keepdims=0)]
    outputs = {"k": (TensorProto.INT64, ["n"]), "s": ["n", 5]}
    model = build(nodes, {"x": ["n", 4]}, outputs, {"w": noise(1, 4, 5)})
    path = save(model, tmp_path / "m.onnx")
    found = verify(path, path, data_for(model, tmp_path, x=noise(3, 6, 4)))
    assert (found.metric, found.quantized_score) == ("agreement", 1)


def pipeline(kind):
    """conv_net's scores with labels in front, as a sequence of two or as maps."""
    model = conv_net()
    scores = model.graph.output.pop()
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["scores"], ["label"], axis=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]))
    if kind == "sequence":
        model.graph.node.append(node("SequenceConstruct", "scores label", "all"))
        model.graph.node[-1].input[1] = "scores"
        model.graph.output.append(onnx.helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None))
    else:
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
        labels = range(10) if kind == "numbers" else [f"class {number}" for number in range(10)]
        attribute = {f"classlabels_{'int64s' if kind == 'numbers' else 'strings'}": labels}
        model.graph.node.append(onnx.helper.make_node("ZipMap", ["scores"], ["all"], domain="ai.onnx.ml", **attribute))
        key = TensorProto.INT64 if kind == "numbers" else TensorProto.STRING
        value = onnx.helper.make_tensor_type_proto(scores.type.tensor_type.elem_type, None)
        maps = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(key, value))
        model.graph.output.append(onnx.helper.make_value_info("all", maps))
    return model


@pytest.mark.parametrize(
    ("kind", "names"), [("sequence", ["all[0]", "all[1]"]), ("numbers", ["all"]), ("strings", ["all"])]
)
def test_outputs_that_are_no_tensors(tmp_path, kind, names):
    model = pipeline(kind)
    feeds = images(40)
    labels = run_float(conv_net(), {"image": feeds})["scores"].argmax(1)
    labels[:4] = (labels[:4] + 1) % 10
    one, other = save(model, tmp_path / "1.onnx"), save(shifted(model, "b3", 0.25), tmp_path / "2.onnx")
    found = verify(one, other, data_for(model, tmp_path, image=feeds, labels=labels))
    assert (found.metric, found.float_score, found.quantized_score) == ("top1", 0.9, 0.9)
    assert list(found.outputs) == names
    assert found.outputs[names[0]].largest == pytest.approx(0.25, rel=1e-4)


def test_integer_outputs_only(tmp_path):
    model = build(
        [node("Gemm", "x w", "s"), node("ArgMax", "s", "k", axis=1, keepdims=0)],
        {"x": ["n", 4]},
        {"k": (TensorProto.INT64, ["n"])},
        {"w": noise(1, 4, 5)},
    )
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no float output"):
        verify(path, path, data_for(model, tmp_path, x=noise(3, 6, 4)))
    (tmp_path / "m.py").write_text("def score(outputs, labels):\n    return len(outputs['k'])\n")
    data = data_for(model, tmp_path, x=noise(3, 40, 4))
    found = verify(path, path, data, metric=f"{tmp_path / 'm.py'}:score")
    assert (found.float_score, found.outputs) == (40, {})


def fixed_batch(size):
    return build([node("MatMul", "x w", "y")], {"x": [size, 4]}, {"y": [size, 5]}, {"w": noise(1, 4, 5)})


@pytest.mark.parametrize(("size", "samples"), [(1, 6), (4, 4)])
def test_a_fixed_batch(tmp_path, size, samples):
    model = fixed_batch(size)
    path = save(model, tmp_path / "m.onnx")
    found = verify(path, path, data_for(model, tmp_path, x=noise(3, 6, 4)))
    assert found.samples == samples


def test_scalars_beside_samples(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h gain", "y")]
    model = build(nodes, {"gain": [], "x": ["n", 4]}, {"y": ["n", 5]}, {"w": noise(1, 4, 5)})
    path = save(model, tmp_path / "m.onnx")
    found = verify(path, path, data_for(model, tmp_path, gain=np.float32(2), x=noise(3, 6, 4)))
    assert found.samples == 6


def test_a_scalar_output(tmp_path):
    nodes = [node("MatMul", "x w", "y"), node("ReduceMean", "y", "mean", keepdims=0)]
    model = build(nodes, {"x": ["n", 4]}, {"y": ["n", 5], "mean": []}, {"w": noise(1, 4, 5)})
    path = save(model, tmp_path / "m.onnx")
    data = data_for(model, tmp_path, x=noise(3, 6, 4))
    assert verify(path, path, data).outputs["mean"].largest == 0
    assert verify(path, path, data, metric="cosine").quantized_score == pytest.approx(1)


def test_outputs_whose_number_depends_on_the_values(tmp_path):
    """Detections: how many there are differs between the two files, so they can't be compared one by one."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", "h b", "s"),
        node("Greater", "s zero", "positive"),
        node("Reshape", "s minus", "flat"),
        node("Reshape", "positive minus", "kept"),
        node("Compress", "flat kept", "y"),
    ]
    constants = {"w": noise(1, 4, 5), "b": np.zeros(5, np.float32), "zero": np.float32(0), "minus": np.array([-1])}
    model = build(nodes, {"x": ["n", 4]}, {"y": ["found"]}, constants)
    one, other = save(model, tmp_path / "1.onnx"), save(shifted(model, "b", 0.7), tmp_path / "2.onnx")
    data = data_for(model, tmp_path, x=noise(3, 6, 4))
    with pytest.raises(ModelError, match=r"output 'y'.*shape"):
        verify(one, other, data)
    (tmp_path / "m.py").write_text("def score(outputs, labels):\n    return outputs['y'].size\n")
    found = verify(one, other, data, metric=f"{tmp_path / 'm.py'}:score")
    assert found.quantized_score > found.float_score
    assert found.outputs == {}
    assert "output 'y'" in found.notes[-1]


def test_other_outputs_are_refused(tmp_path):
    model = conv_net()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[-1].output[0] = other.graph.output[0].name = "logits"
    one, second = save(model, tmp_path / "1.onnx"), save(other, tmp_path / "2.onnx")
    with pytest.raises(ModelError, match=r"2.onnx' has other outputs"):
        verify(one, second, data_for(model, tmp_path, image=images(2)))


def test_other_inputs_are_refused_in_one_line(tmp_path):
    model = conv_net()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[0].input[0] = other.graph.input[0].name = "picture"
    one, second = save(model, tmp_path / "1.onnx"), save(other, tmp_path / "2.onnx")
    with pytest.raises(ModelError, match=r"^[^\n]*(picture|image)[^\n]*$"):
        verify(one, second, data_for(model, tmp_path, image=images(2)))


def test_metrics_that_need_labels(tmp_path):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    for metric in ("top1", "top5"):
        with pytest.raises(DataError, match="labels"):
            verify(path, path, data_for(model, tmp_path, image=images(2)), metric=metric)


def test_a_run_that_fails_is_one_line(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Reshape", "h shape", "y")]
    constants = {"w": noise(1, 4, 5), "shape": np.array([7, 5])}
    model = build(nodes, {"x": ["n", 4]}, {"y": [7, 5]}, constants)
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"^onnxruntime failed to run[^\n]*$"):
        verify(path, path, data_for(model, tmp_path, x=noise(3, 6, 4)))


def test_external_data_count(tmp_path):
    model = conv_net()
    inside, outside = save(model, tmp_path / "1.onnx"), tmp_path / "2.onnx"
    onnx.save_model(model, outside, save_as_external_data=True, location="2.data", size_threshold=0)
    found = verify(inside, outside, data_for(conv_net(), tmp_path, image=images(2)))
    assert found.quantized_bytes == outside.stat().st_size + (tmp_path / "2.data").stat().st_size
    assert found.outputs["scores"].largest == 0


# Gates.


@pytest.fixture
def verified(tmp_path):
    model = conv_net()
    # Every image is of the class 3 for the second file.
    one = save(model, tmp_path / "1.onnx")
    second = onnx.ModelProto()
    second.CopyFrom(model)
    bias = np.zeros(10, np.float32)
    bias[3] = 1000
    for tensor in second.graph.initializer:
        if tensor.name == "b3":
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b3"))
    labels = run_float(model, {"image": images(32)})["scores"].argmax(1)
    data = data_for(model, tmp_path, image=images(32), labels=labels)
    return verify(one, save(second, tmp_path / "2.onnx"), data), float(np.mean(labels != 3))


def test_gate(verified):
    found, drop = verified
    assert found.drop == pytest.approx(drop)
    assert drop > 0.2
    require_gate(found, None)
    require_gate(found, drop + 1e-9)
    with pytest.raises(GateError, match=r"top1 fell by .*--max-drop") as raised:
        require_gate(found, drop - 1e-3)
    assert raised.value.exit_code == 1


def test_a_score_that_is_no_number_fails_the_gate(verified):
    with pytest.raises(GateError):
        require_gate(replace(verified[0], drop=float("nan")), 0.5)


def test_the_interval_comes_from_paired_samples(verified):
    found, drop = verified
    assert (found.estimate.samples, found.estimate.lost, found.estimate.gained) == (32, round(32 * drop), 0)
    assert found.to_dict()["drop_interval"] == found.drop_interval == found.estimate.interval()


def test_doubt_where_the_interval_reaches_beyond_the_gate(verified):
    found = replace(verified[0], drop=0.0625, quantized_score=0.9375, estimate=PairedDrop(32, 3, 1))
    low, high = found.drop_interval
    assert low < 0 < 0.0625 < high
    assert doubt(found, None) is doubt(found, high + 1e-6) is None
    said = doubt(found, 0.1)
    assert re.search(rf"top1 fell by 0.0625 .*{high:.4f}\).*32 samples.*about [\d,]+ would settle", said)
    assert "no number of samples" in doubt(found, 0.0625)
    with pytest.raises(GateError, match=f"interval of the fall {low:.4f} to {high:.4f}"):
        require_gate(found, 0.05)
    assert doubt(replace(found, estimate=None), 0.1) is None


def test_the_float_model_runs_once(tmp_path, monkeypatch):
    model = conv_net()
    one, other = save(model, tmp_path / "1.onnx"), save(shifted(model, "b3", 0.25), tmp_path / "2.onnx")
    data = data_for(model, tmp_path, image=images(70))
    evaluator = module.Evaluator(one, data, metric="cosine")
    ran = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda session, *rest: ran.append(session) or run(session, *rest))
    found = [evaluator.compare(path) for path in (other, one, other)]
    assert ran.count(evaluator.session) == 3  # batches
    assert len(ran) == 12
    assert found[0] == found[2]
    assert found[1].drop == pytest.approx(0)
    # What doesn't fit memory is computed again, to the same end.
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    assert module.Evaluator(one, data, metric="cosine").compare(other) == found[0]


def test_gates_that_mean_nothing():
    with pytest.raises(UsageError, match="sqnr"):
        check_gate("sqnr", 0.1)
    with pytest.raises(UsageError, match="--max-drop"):
        check_gate("top1", float("nan"))
    with pytest.raises(UsageError, match="--metric"):
        check_gate("top3", None)
    check_gate("sqnr", None)
    check_gate(None, 0.1)
