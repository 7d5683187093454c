"""The search behind quantize(): optimal among all files that could be built."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli.networks import build, conv_net, node, noise, scaled
from quantized_files import FAST

from amq_onnx.compiler import Compiler, compile_plan
from amq_onnx.errors import BudgetError, ModelError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.model.file import fingerprint, model_bytes, read_model
from amq_onnx.model.random_data import random_data
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import Sensitivity, WeightRow


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


def stacked_matrices():
    """Weights with one scale of all, and a Relu that stays float."""
    nodes = [node("MatMul", "x w1", "m"), node("MatMul", "m w2", "p"), node("Relu", "p", "r"), node("Exp", "r", "y")]
    constants = {"w1": scaled(1, 3, 6, 11), "w2": scaled(2, 1, 11, 7)}
    return build(nodes, {"x": ["n", 3, 2, 6]}, {"y": ["n", 3, 2, 7]}, constants)


@pytest.fixture(
    scope="module",
    params=[(three_layers, (2, 3, 4, 6, 8)), (three_layers, (3, 5, 6, 7)), (stacked_matrices, (2, 3, 5, 7, 8))],
    ids=lambda given: f"{given[0].__name__}-{given[1]}",
)
def searched(request):
    """Compiler, and of every plan: perturbation, bytes of its file."""
    network, widths = request.param
    model = network()
    prepared = prepare(model)
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
