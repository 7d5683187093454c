from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from small_graphs import model, node, session

from amq_onnx.executor.interpreter import Executor
from amq_onnx.rewriting import with_initializers
from amq_onnx.tuning.finetune import FineTuneOptions, fine_tune
from amq_onnx.tuning.quantizers import find_quantizers
from amq_onnx.tuning.rounding import RoundingOptions, learn_rounding
from amq_onnx.tuning.sums import Sum, SumAligner, aligned_scales, chains, find_sums
from tuning.graphs import quantize, residual


def case(activation_bits=4):
    """The residual network with scales of activations that differ, as calibration finds them."""
    found = quantize(residual(), "scores", 8, activation_bits, loss="softmax")
    values = Executor(found.prepared.model).run(
        {"image": torch.from_numpy(next(found.data.batches(64))["image"])}, ["r0", "b1", "r1", "b2", "r2"]
    )
    levels = 2**activation_bits - 1
    scales = {
        site.scale: np.float32(float(values[name].max() - values[name].min()) / levels * factor)
        for (name, site), factor in zip(_sites(found.quantized, values).items(), (0.8, 0.9, 1.0, 0.7, 0.9), strict=True)
    }
    return replace(found, quantized=with_initializers(found.quantized, scales))


def _sites(quantized, names):
    _, activations = find_quantizers(quantized)
    return {name: activations[name] for name in names}


def aligner(case):
    _, activations = find_quantizers(case.quantized)
    feeds = {"image": torch.from_numpy(next(case.data.batches(64))["image"])}
    expected = Executor(case.prepared.model).run(feeds, ["scores"])
    return SumAligner(
        Executor(case.quantized), case.quantized, activations, case.heads, case.losses, [(feeds, expected)]
    )


def test_finds_the_sums_between_quantizers_and_what_joins_them():
    quantized = case().quantized
    scale = {name: site.scale for name, site in _sites(quantized, ["r0", "b1", "r1", "b2", "r2"]).items()}
    first = Sum((scale["b1"], scale["r0"]), scale["r1"])
    second = Sum((scale["b2"], scale["r1"]), scale["r2"])
    assert find_sums(quantized) == [first, second]
    other = Sum(("x", "y"), "z")
    assert chains([first, other, second]) == [[other], [first, second]]
    assert find_sums(case().prepared.model) == []


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_ALL"])
def test_a_sum_with_one_scale_is_the_sum_of_its_codes_in_onnxruntime(level):
    nodes = []
    for name, zero in (("x", "zx"), ("y", "zy")):
        nodes += [
            node("QuantizeLinear", f"{name} s {zero}", f"{name}q"),
            node("Clip", f"{name}q low high", f"{name}c"),
            node("DequantizeLinear", f"{name}c s {zero}", f"{name}d"),
        ]
    nodes += [
        node("Add", "xd yd", "sum"),
        node("Relu", "sum", "positive"),
        node("QuantizeLinear", "positive s low", "sq"),
        node("Clip", "sq low high", "sc"),
    ]
    shape = ["n", 4]
    codes = (onnx.TensorProto.UINT8, shape)
    constants = {name: np.uint8(value) for name, value in {"zx": 0, "zy": 6, "low": 0, "high": 15}.items()}
    proto = model(nodes, {"x": shape, "y": shape}, {"xc": codes, "yc": codes, "sc": codes}, constants | {"s": f32(0.3)})
    draw = np.random.default_rng(0).standard_normal
    feeds = {"x": np.abs(3 * draw((500, 4))).astype(np.float32), "y": (2 * draw((500, 4))).astype(np.float32)}
    x, y, total = (part.astype(int) for part in session(proto, level).run(None, feeds))
    assert len(np.unique(total)) == 16
    np.testing.assert_array_equal(total, np.clip(x + y - 6, 0, 15))
    # With scales of their own they are rounded again.
    apart = helper.make_tensor("s2", onnx.TensorProto.FLOAT, [], [0.22])
    proto.graph.initializer.append(apart)
    proto.graph.node[3].input[1] = proto.graph.node[5].input[1] = "s2"
    x, y, total = (part.astype(int) for part in session(proto, level).run(None, feeds))
    assert (np.abs(0.3 * x + 0.22 * (y - 6) - 0.3 * total) > 0.01)[(total > 0) & (total < 15)].mean() > 0.5


def f32(value):
    return np.asarray(value, np.float32)


def test_one_scale_is_taken_where_less_is_lost_with_it():
    narrow = case()
    search = aligner(narrow)
    found = search.scales()
    assert len(found) >= 3 and set(found) <= set(search.sites)
    with torch.no_grad():
        assert search._divergence(found).mean() < 0.95 * search._divergence({}).mean()
    leaders = aligned_scales(narrow.quantized, {**Executor(narrow.quantized).initializers, **found})
    assert set(leaders) == set(found) and len(set(leaders.values())) == 1
    assert aligner(case(8)).scales() == {}


def test_what_is_equal_stays_equal_while_it_is_learned():
    narrow = case()
    options = RoundingOptions(steps=20, samples=64, chunk=16, mixes=0)
    arguments = (narrow.prepared.model, narrow.quantized, narrow.heads, narrow.losses, narrow.data)
    found = learn_rounding(*arguments, options)
    expected = {name: float(scale) for name, scale in aligner(narrow).scales().items()}
    assert found.aligned == len(expected) >= 3
    assert {name: float(found.values[name]) for name in expected} == expected
    # Half the scale cuts off so much that training is sure to do better than its start.
    halved = {name: np.float32(scale / 2) for name, scale in expected.items()}
    learned = with_initializers(narrow.quantized, {**found.values, **halved})
    values, reports = fine_tune(
        narrow.prepared.model,
        learned,
        narrow.heads,
        narrow.losses,
        narrow.data,
        FineTuneOptions(epochs=4, batch_size=16, scale_rate=0.01),
    )
    assert any(report.kept for report in reports[1:])
    trained = {float(values[name]) for name in expected}
    assert len(trained) == 1 and min(trained) > 1.02 * max(map(float, halved.values()))
