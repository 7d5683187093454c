"""Traces of a whole graph against its exact second derivatives."""

import numpy as np
import pytest
import torch
from onnx import TensorProto
from small_graphs import f, model, node
from torch.func import hessian, jacrev

from amq_onnx.curvature.losses import SigmoidLoss, SoftmaxLoss, SquaredLoss
from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import losses_for
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.model.inputs import input_specs
from amq_onnx.model.layers import linear_layers
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.traces import measure_traces

torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other
SAMPLES, CLASSES, HIDDEN = 5, 3, 4
LOSSES = {"softmax": SoftmaxLoss(), "sigmoid": SigmoidLoss(), "squared": SquaredLoss(0.4)}
WEIGHTS = {"w1": 0, "w2": 1}


def network():
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Tanh", "h", "a"), node("MatMul", "a w2", "y")]
    shapes = {"w1": (HIDDEN, 2), "b1": (HIDDEN,), "w2": (HIDDEN, CLASSES)}
    rng = np.random.default_rng(3)  # its own, so that the traces don't depend on which tests ran before
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return model(nodes, {"x": ["n", 2]}, {"y": None}, constants)


class Setting:
    def __init__(self, loss="softmax"):
        self.proto = network()
        self.executor = Executor(self.proto, dtype=torch.float64)
        self.loss = LOSSES[loss]
        self.heads = [Head("y", loss, -1, "y", "")]
        rng = np.random.default_rng(5)
        self.x = rng.standard_normal((SAMPLES, 2)).astype(np.float32)
        kinds = {
            "softmax": rng.integers(0, CLASSES, SAMPLES),
            "sigmoid": rng.integers(0, 2, (SAMPLES, CLASSES)),
            "squared": rng.standard_normal((SAMPLES, CLASSES)),
        }
        self.labels = kinds[loss]
        values = self.run("h", "a")
        self.values = {"x": self.x, **values}
        self.encodings = {
            name: {bits: activation_encoding(float(v.min()), float(v.max()), bits) for bits in (2, 4)}
            for name, v in self.values.items()
        }

    def run(self, *names):
        found = self.executor.run({"x": torch.from_numpy(self.x)}, list(names))
        return {name: value.numpy().astype(np.float32) for name, value in found.items()}

    def data(self, labels=None, **changes):
        batch = {"x": self.x} | ({} if labels is None else {"labels": labels}) | changes
        return Dataset(lambda: [batch], input_specs(self.proto), "the data")

    def measure(self, labels=None, weights=None, activations=None, **options):
        settings = {"relative_error": 0.0, "max_probes": 400, "batch_size": 2} | options
        return measure_traces(
            self.executor,
            self.data(labels),
            WEIGHTS if weights is None else weights,
            self.encodings if activations is None else activations,
            self.heads,
            [self.loss],
            **settings,
        )

    def scores(self, name, value):
        """Scores with one tensor replaced, the rest as it is."""
        return self.executor.run({"x": torch.from_numpy(self.x).double(), name: value}, ["y"])["y"]

    def point(self, name):
        if name in WEIGHTS:
            return self.executor.initializers[name].detach()
        return (
            self.executor.run({"x": torch.from_numpy(self.x).double()}, [name])[name]
            if name != "x"
            else (torch.from_numpy(self.x).double())
        )

    def exact_diagonal(self, name, method):
        """The diagonal of the block of the loss summed over samples, in the tensor's shape."""
        point = self.point(name)
        target = torch.from_numpy(self.labels)

        def scores(flat):
            return self.scores(name, flat.reshape(point.shape))

        def loss(z):
            return self.loss.value(z.reshape(len(self.x), CLASSES), target).sum()

        if method == "hessian":
            return hessian(lambda p: loss(scores(p)))(point.reshape(-1)).diagonal().reshape(point.shape)
        jacobian = jacrev(lambda p: scores(p).reshape(-1))(point.reshape(-1))
        block = jacobian.T @ hessian(loss)(scores(point.reshape(-1)).reshape(-1)) @ jacobian
        return block.diagonal().reshape(point.shape)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["gauss-newton", "hessian"])
def test_traces_agree_with_the_exact_ones(method, loss):
    setting = Setting(loss)
    found = setting.measure(setting.labels, method=method)
    assert (found.samples, found.probes, found.converged) == (SAMPLES, 400, False)
    for name in WEIGHTS:
        diagonal = setting.exact_diagonal(name, method) / SAMPLES
        trace = found.weights[name]
        # Rounding alone where every draw is the same (a linear layer under squared error).
        assert abs(trace.trace - diagonal.sum()) <= 4 * trace.error + 1e-6 * diagonal.abs().sum()
        assert trace.error <= 0.2 * diagonal.abs().sum()
        assert trace.elements == diagonal.numel()
        assert trace.mean == trace.trace / trace.elements
        channels = diagonal.movedim(WEIGHTS[name], 0).flatten(1).sum(1)
        assert trace.channels.sum() == pytest.approx(trace.trace, rel=1e-9)
        np.testing.assert_allclose(trace.channels, channels, atol=0.25 * float(channels.abs().max()))
    for name in setting.encodings:
        diagonal = setting.exact_diagonal(name, method) / SAMPLES
        trace = found.activations[name]
        assert abs(trace.trace - diagonal.sum()) <= 4 * trace.error + 1e-6 * diagonal.abs().sum()
        assert trace.elements == diagonal[0].numel()


@pytest.mark.parametrize("method", ["gauss-newton", "hessian"])
def test_perturbations_of_activations_are_the_brute_force_means(method):
    setting = Setting()
    found = setting.measure(setting.labels, method=method)
    for name, encodings in setting.encodings.items():
        per_sample = setting.exact_diagonal(name, method).sum(1).numpy()
        values = setting.values[name]
        for bits, encoding in encodings.items():
            errors = np.square(round_trip(values, encoding).astype(np.float64) - values).sum(1)
            exact = (per_sample / values.shape[1] * errors).mean()
            ours, error = found.activations[name].perturbation[bits]
            assert abs(ours - exact) <= 4 * error + 1e-4 * abs(exact)
            assert 0 < error <= 0.3 * np.abs(per_sample / values.shape[1] * errors).mean()
            # It isn't the product of the means, which the paper's own formula would be.
            assert ours != pytest.approx(found.activations[name].mean * errors.mean(), rel=1e-6)


def test_samples_may_run_along_any_dimension_of_an_activation():
    """A recurrent network computes with time in front; its samples are paired with their own errors all the same."""
    steps, found = 2, {}
    rng = np.random.default_rng(11)
    x = rng.standard_normal((6, steps, 3)).astype(np.float32) * np.linspace(0.2, 2, 6, dtype=np.float32)[:, None, None]
    constants = {"w1": rng.standard_normal((3, 4)).astype(np.float32), "w2": rng.standard_normal((8, 3)), "s": [-1, 8]}
    constants = {name: np.asarray(value, np.int64 if name == "s" else np.float32) for name, value in constants.items()}
    for order in ([1, 0, 2], [0, 1, 2]):
        nodes = [
            node("Transpose", "x", "t", perm=order),
            node("MatMul", "t w1", "h"),
            node("Tanh", "h", "a"),
            node("Transpose", "a", "b", perm=order),
            node("Reshape", "b s", "r"),
            node("MatMul", "r w2", "y"),
        ]
        proto = model(nodes, {"x": ["n", steps, 3]}, {"y": None}, constants)
        data = Dataset(lambda: [{"x": x}], input_specs(proto), "the data")
        encodings = {name: {2: activation_encoding(-2.0, 2.0, 2)} for name in ("h", "a")}
        found[tuple(order)] = measure_traces(
            *(Executor(proto, dtype=torch.float64), data, {"w2": 1}, encodings),
            *([Head("y", "softmax", -1, "y", "")], [SoftmaxLoss()]),
            relative_error=0.0,
            max_probes=8,
            batch_size=steps,
        ).activations
    for name, trace in found[0, 1, 2].items():
        assert found[1, 0, 2][name].trace == pytest.approx(trace.trace, rel=1e-9)
        assert found[1, 0, 2][name].perturbation[2] == pytest.approx(trace.perturbation[2], rel=1e-9)


def test_probing_stops_once_every_error_is_small_enough():
    setting = Setting()
    loose = setting.measure(relative_error=0.5)
    tight = setting.measure(relative_error=0.03)
    assert loose.converged
    assert tight.converged
    assert 2 <= loose.probes < tight.probes < 400
    for found, bound in ((loose, 0.5), (tight, 0.03)):
        traces = [*found.weights.values(), *found.activations.values()]
        assert max(trace.error / trace.trace for trace in traces) <= bound


def test_batches_without_curvature_are_not_drawn_again():
    setting = Setting()
    # Gradients of w1 are in proportion to x.
    setting.x = np.concatenate([setting.x[:2], 1e-3 * setting.x[2:], 1e-3 * setting.x[2:]])
    setting.labels = np.zeros(len(setting.x), np.int64)
    drawn = []
    found = setting.measure(
        weights={"w1": 0},
        activations={},
        relative_error=0.05,
        progress=lambda step, done, of: drawn.append((step, done)),
    )
    assert found.converged
    assert found.probes > 20
    assert [done for step, done in drawn if step == "curvature, probe 1"] == [2, 4, 6, 8]
    assert {done for step, done in drawn if step != "curvature, probe 1"} == {2}
    exact = setting.exact_diagonal("w1", "gauss-newton").sum() / len(setting.x)
    assert abs(found.weights["w1"].trace - exact) <= 4 * found.weights["w1"].error
    assert found.weights["w1"].channels.sum() == pytest.approx(found.weights["w1"].trace, rel=1e-9)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_probes_than_allowed(most):
    found = Setting().measure(relative_error=1e-9, max_probes=most)
    assert (found.probes, found.converged) == (most, False)


def test_the_same_seed_gives_the_same_traces_and_another_seed_others():
    setting = Setting()
    one, two, other = (setting.measure(max_probes=4, seed=seed) for seed in (3, 3, 4))
    for name in WEIGHTS:
        assert one.weights[name].trace == two.weights[name].trace
        np.testing.assert_array_equal(one.weights[name].channels, two.weights[name].channels)
        assert one.weights[name].trace != other.weights[name].trace
    for name in setting.encodings:
        assert one.activations[name].perturbation == two.activations[name].perturbation


def test_progress_is_told():
    seen = []
    Setting().measure(max_probes=3, progress=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == [2, 4, 5] * 2


def test_a_weight_that_no_head_depends_on_has_no_trace_and_does_not_hold_up_the_others():
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "x v", "z")]
    proto = model(nodes, {"x": ["n", 2]}, {"y": None, "z": None}, {"w": f(2, 3), "v": f(2, 3)})
    data = Dataset(lambda: [{"x": f(4, 2)}], input_specs(proto), "the data")
    heads = [Head("y", "softmax", -1, "y", "")]
    found = measure_traces(
        Executor(proto), data, {"w": 1, "v": 1}, {}, heads, [SoftmaxLoss()], relative_error=0.3, max_probes=200
    )
    assert found.weights["v"].trace == 0.0
    assert found.weights["w"].trace > 0
    assert found.converged


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels"),
        (np.array([0, 1, 2, 3, 0]), "labels run from"),
        (np.array([0, 1, -1, 2, 0]), "labels run from"),
        (np.zeros((5, 3), np.int64), "labels have shape"),
    ],
    ids=["missing", "too large", "negative", "wrong shape"],
)
def test_labels_that_do_not_fit_raise(labels, message):
    with pytest.raises(DataError, match=message):
        Setting().measure(labels, method="hessian", max_probes=2)


def test_gauss_newton_needs_no_labels_and_ignores_bad_ones():
    setting = Setting()
    assert (
        setting.measure(max_probes=2).weights["w1"].trace
        == setting.measure(np.full(SAMPLES, 99), max_probes=2).weights["w1"].trace
    )


def test_squared_errors_are_relative_to_the_output():
    softmax, sigmoid, squared = losses_for(
        [Head("a", "softmax", 1, "a", ""), Head("b", "sigmoid", -1, "b", ""), Head("c", "squared", -1, "c", "")],
        {"a": 1.0, "b": 1.0, "c": 25.0},
    )
    assert softmax == SoftmaxLoss(1)
    assert sigmoid == SigmoidLoss()
    assert squared == SquaredLoss(0.04)


def test_activations_behind_integer_inputs_have_traces():
    """A one-hot code hangs on no float input; giving it as a float input gives the same traces."""
    constants = {"w": f(5, 4), "v": f(4, 3), "depth": np.array(5), "values": np.float32([0, 1])}
    body = [node("MatMul", "h w", "m"), node("Tanh", "m", "t"), node("MatMul", "t v", "y")]
    coded = model(
        [node("OneHot", "i depth values", "h"), *body], {"i": (TensorProto.INT64, ["n"])}, {"y": None}, constants
    )
    plain = model(body, {"h": ["n", 5]}, {"y": None}, {"w": constants["w"], "v": constants["v"]})
    indices = np.array([0, 3, 4, 1])
    found = []
    for proto, batch in ((coded, {"i": indices}), (plain, {"h": np.eye(5, dtype=np.float32)[indices]})):
        data = Dataset(lambda batch=batch: [batch], input_specs(proto), "the data")
        head = Head("y", "softmax", -1, "y", "")
        found.append(
            measure_traces(
                Executor(proto),
                data,
                {"w": 1},
                {"h": {}, "t": {}},
                [head],
                [SoftmaxLoss(-1)],
                max_probes=8,
                relative_error=1e-9,
            )
        )
    for kind in ("weights", "activations"):
        one, two = (getattr(traces, kind) for traces in found)
        assert {name: trace.trace for name, trace in one.items()} == pytest.approx(
            {name: trace.trace for name, trace in two.items()}, rel=1e-5
        )
    assert found[0].activations["h"].trace > 0


def test_traces_are_those_of_centred_inputs_where_biases_are_corrected():
    """As of a network whose inputs have their mean taken off and put into the bias instead."""
    constants = {"w": f(4, 3), "b": f(4), "v": f(5, 4)}
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Tanh", "h", "t"), node("Gemm", "t v", "y", transB=1)]
    proto = model(nodes, {"x": ["n", 3]}, {"y": None}, constants)
    x = f(6, 3) + np.float32(5)
    mean = x.mean(0, keepdims=True)
    moved = constants | {"b": constants["b"] + (constants["w"] @ mean[0])}
    plain = model(nodes, {"x": ["n", 3]}, {"y": None}, moved)
    head, options = Head("y", "softmax", -1, "y", ""), {"max_probes": 16, "relative_error": 1e-9, "batch_size": 3}

    def measured(network, values, **more):
        data = Dataset(lambda: [{"x": values}], input_specs(network), "the data")
        found = measure_traces(
            Executor(network), data, {"w": 0, "v": 0}, {}, [head], [SoftmaxLoss(-1)], **options, **more
        )
        return {name: trace.trace for name, trace in found.weights.items()}

    layers = [layer for layer in linear_layers(proto, {"w", "v"}) if layer.shiftable]
    assert [layer.bias for layer in layers] == ["b", None]
    ours = measured(proto, x, layers=layers, expected_inputs={"h": mean, "y": np.zeros((1, 4), np.float32)})
    assert ours == pytest.approx(measured(plain, x - mean), rel=1e-4)
    assert measured(proto, x)["w"] > 5 * ours["w"]
