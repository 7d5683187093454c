"""quantize() and the search behind it, from a float file to the written one."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cli.networks import build, conv_constants, conv_net, conv_nodes, images, node, noise, run_float, save, scaled
from onnx import TensorProto, helper, numpy_helper

import amq_onnx
from amq_onnx.compiler import Compiler, compile_plan
from amq_onnx.errors import BudgetError, DataError, GateError, ModelError, UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import METHODS, SensitivityOptions
from amq_onnx.model.data import Dataset, open_data, random_data
from amq_onnx.model.file import fingerprint, model_bytes, read_model
from amq_onnx.model.inputs import input_specs
from amq_onnx.pipeline import quantize
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.session import exact_options
from amq_onnx.sensitivity import Sensitivity, WeightRow

FAST = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8)


def quantized(model, data, folder, size=0.5, **more):
    path = save(model, folder / "m.onnx")
    return quantize(path, data, size=size, output=folder / "o.onnx", options=FAST, **{"tune": "none", **more})


def run_file(path, feeds):
    options = onnxruntime.SessionOptions()
    for key, value in exact_options(onnx.load(path), "cpu").items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def relative_noise(model, path, feeds, output):
    wanted, found = run_float(model, feeds)[output], run_file(path, feeds)[output]
    assert wanted.shape == found.shape
    return np.square(wanted - found).sum() / np.square(wanted).sum()


# The interface.


def test_result_and_file_agree(tmp_path):
    model = conv_net()
    result = quantized(model, random_data(model, 16, 0), tmp_path)
    written = tmp_path / "o.onnx"
    assert written.read_bytes() == model_bytes(result.model)
    assert result.bytes == result.predicted_bytes == written.stat().st_size <= result.budget
    assert result.budget == result.float_bytes // 2
    assert set(result.plan.weights) == {"w1", "w2", "w3"}
    assert sum(result.shares.values()) == pytest.approx(1)
    assert result.verification.quantized_bytes == result.bytes
    assert result.oldest_runtime == "1.14"
    assert relative_noise(model, written, {"image": images()}, "scores") < 0.01


def test_the_gate_of_a_drop(tmp_path):
    model = conv_net()
    found = quantized(model, random_data(model, 16, 0), tmp_path, size=None, max_drop=0.05, metric="cosine")
    assert found.verification.drop <= 0.05
    assert found.bytes == (tmp_path / "o.onnx").stat().st_size == found.predicted_bytes
    assert found.budget is None
    (tmp_path / "o.onnx").unlink()
    with pytest.raises(GateError, match="no file"):
        quantized(model, random_data(model, 16, 0), tmp_path, size=None, max_drop=-0.5, metric="cosine")
    assert not (tmp_path / "o.onnx").exists()
    with pytest.raises(GateError, match="cosine fell by"):
        quantized(model, random_data(model, 16, 0), tmp_path, max_drop=0, metric="cosine")
    with pytest.raises(UsageError, match=r"--size .*--max-drop"):
        quantized(model, random_data(model, 16, 0), tmp_path, size=None)


def test_nothing_is_written_without_an_output(tmp_path, monkeypatch):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    quantize(path, random_data(model, 8, 0), size="50%", options=FAST, tune="none")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_calibration_data_reader_of_onnxruntime(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"image": images()[start : start + 4]} for start in range(0, 32, 4)])

        def get_next(self):
            return next(self.feeds, None)

    model = conv_net()
    np.savez(tmp_path / "data.npz", image=images())
    first = quantized(model, Reader(), tmp_path)
    second = quantized(model, str(tmp_path / "data.npz"), tmp_path)
    assert model_bytes(first.model) == model_bytes(second.model)
    assert first.sensitivity == second.sensitivity
    assert first.verification.samples == 32


def test_an_exhausted_reader(tmp_path):
    class Empty:
        def get_next(self):
            return None

    with pytest.raises(DataError, match="data reader holds no samples"):
        quantized(conv_net(), Empty(), tmp_path)
    assert not (tmp_path / "o.onnx").exists()


def test_progress_is_told(tmp_path):
    model = conv_net()
    seen = []
    quantized(model, random_data(model, 8, 0), tmp_path, progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(what.split(",")[0] for what, _, _ in seen))
    assert stages[:2] == ["ranges of activations", "scales of weights"]
    assert stages[-1] == "verification"
    assert "loss to second order" in stages


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"size": "4"}, UsageError, "--size"),
        ({"size": 4}, UsageError, "--size"),
        ({"size": 1.5}, UsageError, "--size"),
        ({"size": "100B"}, BudgetError, "smallest"),
        ({"data": None}, UsageError, "calibration data"),
        ({"activation_bits": (4, 8)}, UsageError, "--activation-average"),
        ({"activation_bits": (4, 8), "activation_average": 3}, BudgetError, "4.00"),
        ({"activation_bits": None, "activation_average": 5}, UsageError, "float"),
        ({"exclude": ("nosuch",)}, UsageError, "nosuch"),
        ({"opset": 12}, UsageError, "opset"),
        ({"metric": "top1"}, DataError, "labels"),
        ({"output": "gone/o.onnx"}, UsageError, "gone"),
    ],
)
def test_errors_write_nothing(tmp_path, more, error, said):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    asked = {"data": random_data(model, 8, 0), "size": 0.5, "output": tmp_path / "o.onnx", "options": FAST} | more
    if more.get("output"):
        asked["output"] = tmp_path / more["output"]
    with pytest.raises(error, match=said):
        quantize(path, asked.pop("data"), **asked)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_public_names():
    assert amq_onnx.quantize is quantize
    assert set(dir(amq_onnx)) >= {"quantize", "verify", "Plan", "Sensitivity", "AMQError"}
    assert all(hasattr(amq_onnx, name) for name in amq_onnx.__all__)
    with pytest.raises(AttributeError, match="nosuch"):
        _ = amq_onnx.nosuch


def test_the_input_model_is_untouched(tmp_path):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    before = path.read_bytes()
    quantized(model, random_data(model, 8, 0), tmp_path)
    assert path.read_bytes() == before


# The search: optimal among all files that could be built.


def three_layers():
    """Shapes, remainders and kinds that differ, so that what widths share differs from plan to plan."""
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w2 b2", "h", transB=1),
        node("Relu", "h", "g"),
        node("MatMul", "g w3", "y"),
    ]
    constants = {
        "w1": scaled(1, 11, 3, 3, 3),
        "b1": noise(2, 11) / 8,
        "w2": scaled(3, 13, 11),
        "b2": noise(4, 13) / 8,
        "w3": 3 * scaled(5, 13, 7),
    }
    return build(nodes, {"x": ["n", 3, 6, 6]}, {"y": ["n", 7]}, constants)


@pytest.fixture(scope="module", params=[(2, 3, 4, 6, 8), (3, 5, 6, 7)], ids=str)
def searched(request):
    """Compiler, and of every plan: perturbation, bytes of its file."""
    model = three_layers()
    prepared = prepare(model)
    widths = request.param
    table = measure_sensitivity(prepared, random_data(model, 16, 0), widths, (8,), FAST)
    compiler = Compiler(prepared, table, widths, (8,))
    activations = {name: ActivationPlan(8, row.ranges[8]) for name, row in table.activations.items()}
    rest = sum(row.omega(8) for row in table.activations.values())
    every = {}
    for bits in itertools.product(widths, repeat=len(table.weights)):
        plan = Plan(table.model, "mse", dict(zip(table.weights, bits, strict=True)), activations, table.left_float)
        perturbation = rest + sum(row.omega(bits) for row, bits in zip(table.weights.values(), bits, strict=True))
        every[bits] = perturbation, len(model_bytes(compile_plan(prepared, plan)))
    return compiler, every


def test_the_smallest_size_is_the_smallest_file_there_is(searched):
    compiler, every = searched
    assert compiler.least_bytes == min(size for _, size in every.values())


def test_best_is_the_best_of_all_files(searched):
    """For budgets at which the answer changes, and one byte less: the hardest budgets there are."""
    compiler, every = searched
    wrong = {}
    sizes = sorted({size for _, size in every.values()})
    for budget in sorted(size - step for size in sizes[:8] + sizes[8::3] for step in (0, 1)):
        fitting = [perturbation for perturbation, size in every.values() if size <= budget]
        if not fitting:
            with pytest.raises(BudgetError, match=f"{compiler.least_bytes}B"):
                compiler.best(budget)
            continue
        found = compiler.best(budget)
        assert found.bytes == len(model_bytes(found.model)) <= budget
        perturbation, size = every[tuple(found.plan.weights.values())]
        assert (found.allocation.loss, found.bytes) == (pytest.approx(perturbation, rel=1e-9), size)
        if perturbation > min(fitting) * (1 + 1e-9):
            wrong[budget] = perturbation / min(fitting)
    assert not wrong, f"{len(wrong)} budgets, at worst {max(wrong.values()):.3f} of the least perturbation"


def test_predicted_bytes_are_the_files(searched):
    compiler, every = searched
    wrong = {}
    for budget in sorted({size for _, size in every.values()})[::3]:
        found = compiler.best(budget)
        if found.predicted_bytes != found.bytes:
            wrong[budget] = found.predicted_bytes - found.bytes
    assert not wrong


def synthetic(prepared, widths):
    """A table whose losses fall by a factor of four a bit, with traces of all sizes."""
    rng = np.random.default_rng(0)
    weights = {
        site.name: WeightRow(
            site.shape, float(10 ** rng.uniform(-2, 2)), 0.0, {bits: site.elements * 4.0**-bits for bits in widths}
        )
        for site in prepared.sites.weights
    }
    return Sensitivity(fingerprint(prepared.model), "gauss-newton", {}, 1, 2, True, 0, "mse", weights, {})


def test_the_search_of_the_shipped_network_knows_the_bytes_of_its_files():
    """What a plan's widths share differs from plan to plan; the search must end with the bytes that are written."""
    prepared = prepare(read_model(Path("models/digits_resnet.onnx")))
    compiler = Compiler(prepared, synthetic(prepared, range(2, 9)), range(2, 9), None)
    wrong = {}
    for budget in range(33_000, 45_000, 1_500):
        found = compiler.best(budget)
        if found.predicted_bytes != found.bytes:
            wrong[budget] = found.predicted_bytes - found.bytes
    assert not wrong


def test_best_of_the_shipped_network_is_not_beaten_by_that_of_another_budget():
    """No budget gives a plan that another, found for a budget some bytes off, beats at no more bytes."""
    prepared = prepare(read_model(Path("models/digits_resnet.onnx")))
    compiler = Compiler(prepared, synthetic(prepared, range(2, 9)), range(2, 9), None)
    found = {budget: compiler.best(budget) for budget in range(44_000, 44_400, 50)}
    beaten = {}
    for budget, best in found.items():
        least = min(other.allocation.loss for other in found.values() if other.bytes <= budget)
        if best.allocation.loss > least * (1 + 1e-9):
            beaten[budget] = best.allocation.loss / least
    assert not beaten


def test_best_of_the_shipped_network_uses_its_budget():
    model = read_model(Path("models/digits_resnet.onnx"))
    prepared = prepare(model)
    table = measure_sensitivity(prepared, random_data(model, 8, 0), range(2, 9), (8,), FAST)
    compiler = Compiler(prepared, table, range(2, 9), (8,))
    perturbations = []
    for budget in range(34_000, 62_000, 7_000):
        found = compiler.best(budget)
        assert budget - 1500 < found.bytes <= budget
        perturbations.append(found.allocation.loss)
    assert perturbations == sorted(perturbations, reverse=True)


def test_mixed_activations_are_the_best_of_all(tmp_path):
    model = three_layers()
    prepared = prepare(model)
    table = measure_sensitivity(prepared, random_data(model, 16, 0), (4,), (3, 4, 8), FAST)
    elements = {name: row.elements for name, row in table.activations.items()}
    for average in (3, 3.7, 4, 5.5, 8):
        compiler = Compiler(prepared, table, (4,), (3, 4, 8), activation_average=average)
        found = compiler.best(10**6)
        least = np.inf
        for bits in itertools.product((3, 4, 8), repeat=len(elements)):
            if sum(b * count for b, count in zip(bits, elements.values(), strict=True)) <= average * sum(
                elements.values()
            ):
                least = min(least, sum(row.omega(b) for row, b in zip(table.activations.values(), bits, strict=True)))
        chosen = sum(table.activations[name].omega(site.bits) for name, site in found.plan.activations.items())
        assert chosen == pytest.approx(least, rel=1e-9)


def test_frontier_is_optimal_and_reached(searched):
    compiler, every = searched
    points = compiler.frontier(1000)
    sizes, perturbations = [point.bytes for point in points], [point.perturbation for point in points]
    assert sizes == sorted(set(sizes))
    assert perturbations == sorted(set(perturbations), reverse=True)
    least = min(perturbation for perturbation, _ in every.values())
    assert perturbations[-1] == pytest.approx(least)
    for point in points:
        perturbation, size = every[tuple(point.plan.weights.values())]
        assert point.perturbation == pytest.approx(perturbation)
        assert abs(point.bytes - size) < 500  # shared tables and constants aren't charged to a point


def test_a_table_of_another_model_is_refused():
    model = three_layers()
    table = measure_sensitivity(prepare(model), random_data(model, 8, 0), (4,), None, FAST)
    with pytest.raises(ModelError, match="another model"):
        Compiler(prepare(conv_net()), table, (4,), None)


def test_negative_traces_count_by_their_size():
    """A Hessian away from a minimum: a site isn't free because its trace is negative."""
    model = three_layers()
    prepared = prepare(model)
    table = measure_sensitivity(
        prepared, random_data(model, 16, 0), (2, 4, 8), (8,), replace(FAST, method="gauss-newton")
    )
    row = table.weights["w2"]
    turned = replace(table, weights={**table.weights, "w2": replace(row, trace=-row.trace)})
    assert turned.negative_traces() == ["w2"]
    for budget in (2900, 3200):
        plans = [Compiler(prepared, each, (2, 4, 8), (8,)).best(budget).plan for each in (table, turned)]
        assert plans[0] == plans[1]


def test_sensitivity_without_sites_of_activations(tmp_path):
    """Every activation excluded is the same as float activations."""
    model = conv_net()
    names = "|".join(site.name for site in prepare(model).sites.activations)
    data = random_data(model, 8, 0)
    first = quantized(model, data, tmp_path, exclude=[f"^({names})$"])
    second = quantized(model, data, tmp_path, activation_bits=None)
    assert first.plan.activations == second.plan.activations == {}
    assert model_bytes(first.model) == model_bytes(second.model)


# Models of all kinds.


def converted(opset):
    """conv_net as an exporter of old wrote it: opset 9 or 11, initializers among the inputs, format 4."""
    model = conv_net(opset=opset)
    model.ir_version = 4
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


MODELS = {
    "dynamic batch": (conv_net, 3),
    "batch without a name": (lambda: conv_net(batch=None), 3),
    "fixed batch of 1": (lambda: conv_net(batch=1), 3),
    "fixed batch of 4": (lambda: conv_net(batch=4), 3),
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
