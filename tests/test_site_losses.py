"""What each site alone adds to the loss, against whole passes of the network with that site alone changed."""

import numpy as np
import pytest
import torch
from onnx import TensorProto
from small_graphs import model, node

from amq_onnx.curvature.losses import SigmoidLoss, SoftmaxLoss, SquaredLoss
from amq_onnx.executor.interpreter import Executor
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.model.inputs import input_specs
from amq_onnx.perturbation import QuantizedActivation, QuantizedWeight
from amq_onnx.plan import Plan, corrections, rounded_to_nearest
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.rewriting import prepare, simulate
from amq_onnx.site_losses import measure_losses

torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other
SAMPLES, CLASSES, HIDDEN, TOKENS = 24, 3, 4, 2
LOSSES = {"softmax": SoftmaxLoss(), "sigmoid": SigmoidLoss(), "squared": SquaredLoss(0.4)}


def constants(**shapes):
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def perceptron():
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Tanh", "h", "a"), node("MatMul", "a w2", "y")]
    held = constants(w1=(HIDDEN, 2), b1=(HIDDEN,), w2=(HIDDEN, CLASSES))
    return model(nodes, {"x": ["n", 2]}, {"y": None}, held), {"w1": ("h",), "w2": ("y",)}, (SAMPLES, 2)


def shared():
    """One weight in two layers, the second behind the first."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Tanh", "h", "a"),
        node("MatMul", "a w1", "g"),
        node("MatMul", "g w2", "y"),
    ]
    held = constants(w1=(HIDDEN, HIDDEN), w2=(HIDDEN, CLASSES))
    return model(nodes, {"x": ["n", HIDDEN]}, {"y": None}, held), {"w1": ("h", "g"), "w2": ("y",)}, (SAMPLES, HIDDEN)


def transposed():
    """A weight that is read behind a Transpose, and a residual branch beside it."""
    nodes = [
        node("Transpose", "w1", "t", perm=[1, 0]),
        node("MatMul", "x t", "h"),
        node("Tanh", "h", "a"),
        node("Add", "a x", "r"),
        node("MatMul", "r w2", "y"),
    ]
    held = constants(w1=(HIDDEN, HIDDEN), w2=(HIDDEN, CLASSES))
    return model(nodes, {"x": ["n", HIDDEN]}, {"y": None}, held), {"w1": ("h",), "w2": ("y",)}, (SAMPLES, HIDDEN)


def tokens_in_front():
    """Samples folded behind tokens, as torch exports attention: [tokens * samples, hidden]."""
    nodes = [
        node("Transpose", "x", "m", perm=[1, 0, 2]),
        node("Reshape", "m fold", "f"),
        node("MatMul", "f w1", "h"),
        node("Tanh", "h", "a"),
        node("Reshape", "a unfold", "u"),
        node("ReduceMean", "u zero", "p", keepdims=0),
        node("MatMul", "p w2", "y"),
    ]
    held = constants(w1=(HIDDEN, HIDDEN), w2=(HIDDEN, CLASSES))
    held |= {"fold": np.array([-1, HIDDEN]), "unfold": np.array([TOKENS, -1, HIDDEN]), "zero": np.array([0])}
    made = model(nodes, {"x": ["n", TOKENS, HIDDEN]}, {"y": ["n", CLASSES]}, held)
    return made, {"w1": ("h",), "w2": ("y",)}, (SAMPLES, TOKENS, HIDDEN)


NETWORKS = {"perceptron": perceptron, "shared": shared, "transposed": transposed, "tokens in front": tokens_in_front}


class Setting:
    """A network in float64 and its sites; a width of 2 stands for a large change, 9 for one a thousandth of it."""

    def __init__(self, kind="perceptron", loss="softmax"):
        self.proto, self.entries, shape = NETWORKS[kind]()
        self.executor = Executor(self.proto, dtype=torch.float64)
        self.loss = LOSSES[loss]
        self.heads = [Head("y", loss, -1, "y", "")]
        rng = np.random.default_rng(5)
        self.x = rng.standard_normal(shape).astype(np.float32)
        self.changed = {}
        for name in self.entries:
            value = self.executor.initializers[name]
            noise = torch.from_numpy(rng.standard_normal(value.shape))
            self.changed[name] = {2: value + noise * 0.5, 9: value + noise * 5e-4}
        self.encodings = {bits: activation_encoding(-3.0, 3.0, bits) for bits in (2, 9)}
        self.sites = {
            name: QuantizedWeight(self.executor, name, self.executor.entries(name), values, {2: {}, 9: {}}, {})
            for name, values in self.changed.items()
        } | {"a": QuantizedActivation("a", self.encodings)}

    def measure(self, method, weights=None, sites=None, seed=0, **options):
        data = Dataset(lambda: [{"x": self.x}], input_specs(self.proto), "the data")
        uniform = torch.full((SAMPLES,), 1 / SAMPLES, dtype=torch.float64)
        weights = uniform if weights is None else weights
        return measure_losses(
            self.executor, data, weights, sites or self.sites, self.heads, [self.loss], method=method, batch_size=5,
            seed=seed, **options,
        )  # fmt: skip

    def exact(self, name, bits, weights=None):
        """The divergence of whole passes."""
        feeds = {"x": torch.from_numpy(self.x).double()}
        before = self.executor.run(feeds, ["y"])["y"]
        if name == "a":
            found = self.executor.run(feeds, ["a"])
            given = feeds | self.sites["a"].quantized(bits, found)
        else:
            given = feeds | {name: self.changed[name][bits]}
        each = self.loss.divergence(before, self.executor.run(given, ["y"])["y"])
        return float(each.mean() if weights is None else (each * weights).sum())


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_enter_where_they_meet_what_varies(kind):
    setting = Setting(kind)
    assert {name: setting.executor.entries(name) for name in setting.entries} == setting.entries


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_measured_losses_are_those_of_whole_passes(kind, loss):
    setting = Setting(kind, loss)
    found = setting.measure("measured")
    assert (found.samples, found.measured) == (SAMPLES, 6)
    for name, by_bits in found.losses.items():
        for bits, (value, error) in by_bits.items():
            assert value == pytest.approx(setting.exact(name, bits), rel=1e-9, abs=1e-18)
            assert 0 <= error < 3 * value + 1e-18


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_quadratic_form_is_true_for_small_changes(kind, loss):
    setting = Setting(kind, loss)
    seeds = [setting.measure("quadratic", seed=seed).losses for seed in range(120)]
    for name in setting.sites:
        draws = np.array([losses[name][9][0] for losses in seeds])
        exact = setting.exact(name, 9)
        assert abs(draws.mean() - exact) <= 4 * draws.std() / len(draws) ** 0.5 + 0.02 * exact
        assert draws.std() < 0.8 * exact  # so that the line above can fail


def test_draws_of_samples_are_told_apart_wherever_the_samples_are():
    """Draws by batch vary as those of one number do; by sample they average."""
    setting = Setting("tokens in front")
    spread = {}
    for name in ("w1", "a"):
        draws = [setting.measure("quadratic", seed=seed).losses[name][9][0] for seed in range(80)]
        spread[name] = np.std(draws) / np.mean(draws)
    assert max(spread.values()) < 0.35  # five batches of one draw each would have (2 / 5)^(1/2)


def test_hybrid_takes_the_small_ones_and_corrects_the_large_ones():
    setting = Setting()
    cheap, mixed = (setting.measure(method).losses for method in ("quadratic", "hybrid"))
    assert setting.measure("hybrid").measured == 3
    for name in setting.sites:
        assert mixed[name][9] == cheap[name][9]
        # All batches are measured here, so that the ratio estimate is the measured mean.
        assert mixed[name][2][0] == pytest.approx(setting.exact(name, 2), rel=1e-9)
    assert abs(cheap["w1"][2][0] / setting.exact("w1", 2) - 1) > 0.1


@pytest.mark.parametrize("method", ["measured", "hybrid"])
def test_samples_count_by_their_weights(method):
    setting = Setting()
    weights = torch.linspace(0.01, 0.3, SAMPLES, dtype=torch.float64)
    found = setting.measure(method, weights).losses
    for name in setting.sites:
        assert found[name][2][0] == pytest.approx(setting.exact(name, 2, weights), rel=1e-9)


def test_sites_that_no_output_depends_on_lose_nothing():
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "x v", "z")]
    proto = model(nodes, {"x": ["n", 2]}, {"y": None, "z": None}, constants(w=(2, 3), v=(2, 3)))
    executor = Executor(proto)
    sites = {
        name: QuantizedWeight(
            executor, name, executor.entries(name), {4: executor.initializers[name] * 1.1}, {4: {}}, {}
        )
        for name in ("w", "v")
    }
    data = Dataset(lambda: [{"x": np.ones((4, 2), np.float32)}], input_specs(proto), "the data")
    head = Head("y", "softmax", -1, "y", "")
    for method in ("quadratic", "hybrid", "measured"):
        found = measure_losses(executor, data, torch.full((4,), 0.25), sites, [head], [SoftmaxLoss()], method=method)
        assert found.losses["v"][4][0] == 0.0
        assert found.losses["w"][4][0] > 0


def test_embeddings_of_integer_inputs():
    """Nothing in front of the table can be differentiated."""
    nodes = [node("Gather", "table i", "e"), node("MatMul", "e w", "y")]
    proto = model(nodes, {"i": (TensorProto.INT64, ["n"])}, {"y": None}, constants(table=(9, 4), w=(4, 3)))
    data = Dataset(lambda: [{"i": np.arange(9)}], input_specs(proto), "the data")
    tables = {
        method: measure_sensitivity(prepare(proto), data, (2, 8), (8,), SensitivityOptions(method=method))
        for method in ("quadratic", "measured")
    }
    for name in ("table", "w"):
        cheap, exact = (tables[method].weights[name].omega(8) for method in tables)
        assert 0 < exact < 0.01
        assert 0.2 * exact < cheap < 5 * exact


@pytest.mark.parametrize("correct_biases", [True, False])
def test_measured_losses_are_those_of_simulated_graphs(correct_biases):
    """With what biases make up for: one weight alone quantized by the passes that write the file."""
    proto, _, _ = perceptron()
    x = np.random.default_rng(0).standard_normal((SAMPLES, 2)).astype(np.float32) + np.float32(3)
    data = Dataset(lambda: [{"x": x}], input_specs(proto), "the data")
    prepared = prepare(proto)
    options = SensitivityOptions(method="measured", correct_biases=correct_biases)
    table = measure_sensitivity(prepared, data, (2, 3), None, options)
    reference = Executor(prepared.model).run({"x": torch.from_numpy(x)}, ["y"])["y"]
    for name in ("w1", "w2"):
        for bits in (2, 3):
            plan = Plan(table.model, "mse", {name: bits}, {}, {}, table.expected_inputs, table.scales)
            encodings = plan.encodings(prepared)
            shifts = corrections(prepared, rounded_to_nearest(prepared, encodings, [name]), plan.expected_inputs)
            simulated = simulate(prepared, encodings, shifts)
            changed = Executor(simulated).run({"x": torch.from_numpy(x)}, ["y"])["y"]
            exact = float(SoftmaxLoss().divergence(reference.double(), changed.double()).mean())
            assert table.weights[name].omega(bits) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("method", ["hybrid", "quadratic", "measured"])
def test_the_same_seed_gives_the_same_table(method):
    proto, _, _ = perceptron()
    x = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32)
    data = Dataset(lambda: [{"x": x}], input_specs(proto), "the data")
    one, two, other = (
        measure_sensitivity(
            prepare(proto), data, (2, 4), (8,), SensitivityOptions(method=method, samples=20, seed=seed)
        ).to_json()
        for seed in (3, 3, 4)
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize("method", ["hybrid", "quadratic", "measured"])
def test_a_wider_width_never_scores_worse(method, monkeypatch):
    """On four samples, where chance alone says otherwise."""
    proto, _, _ = perceptron()
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    data = Dataset(lambda: [{"x": x}], input_specs(proto), "the data")

    def falls():
        widths = range(2, 9)
        table = measure_sensitivity(prepare(proto), data, widths, widths, SensitivityOptions(method=method))
        rows = [*table.weights.values(), *table.activations.values()]
        return all((np.diff([row.omega(bits) for bits in widths]) < 0).all() for row in rows)

    assert falls()
    monkeypatch.setattr("amq_onnx.measurement.falling", dict)
    assert not falls()
