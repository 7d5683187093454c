from dataclasses import replace

import pytest
from cli import networks

from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.random_data import random_data
from amq_onnx.pipeline import quantize
from amq_onnx.report import Run

LONG = "stage/" * 30 + "weight"
HOSTILE = {
    "w1": "<script>alert(1)</script>",
    "w2": "</script><img/src=x/onerror=alert(2)>",
    "w3": LONG,
    "r1": '<a/href="https://example.org">&amp;</a>',
}
RUN = Run(
    "<b>model</b>.onnx",
    ["quantize", "my model.onnx", "-o", "o.onnx", "--size", "0.3", "--data", "</script>.npz"],
    {"amq-onnx": "1.2.3", "onnxruntime": "4.5.6"},
    ["this <i>should</i> give pause"],
)


def renamed(model, names):
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A result of a model whose names are tags; activations have widths of their own."""
    path = networks.save(renamed(networks.conv_net(), HOSTILE), tmp_path_factory.mktemp("report") / "m.onnx")
    options = SensitivityOptions(samples=8)
    widths = {"activation_bits": (4, 8), "activation_average": 6}
    data = random_data(networks.conv_net(), 16, 0)
    return quantize(path, data, size=0.4, options=options, tune="none", details=True, **widths)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A result whose weights have channels of several widths, made without calibration data."""
    path = networks.save(networks.conv_net(), tmp_path_factory.mktemp("report") / "m.onnx")
    options = SensitivityOptions(method="gauss-newton", max_probes=2, samples=8)
    data = random_data(networks.conv_net(), 16, 0)
    first = quantize(path, data, size=0.27, options=options, tune="none", granularity="channel", details=True)
    again = quantize(path, size=0.27, granularity="channel", sensitivity=first.sensitivity, details=True)
    return first, again


@pytest.fixture(scope="session")
def large(hostile):
    """As of a model of 250 layers."""
    names = [f"model/layers/{number}/attention/projection/weight" for number in range(250)]
    table, plan = hostile.sensitivity, hostile.plan
    row = next(iter(table.weights.values()))

    def wide(plan):
        return replace(plan, weights=dict.fromkeys(names, 4), activations={})

    return replace(
        hostile,
        sensitivity=replace(table, weights=dict.fromkeys(names, row), activations={}),
        plan=wide(plan),
        frontier=tuple(replace(point, plan=wide(point.plan)) for point in hostile.frontier),
        shares=dict.fromkeys(names, 1 / 250),
        measured=replace(hostile.measured, losses={name: {4: (1e-3, 1e-4)} for name in names}),
    )
