import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_graphs import initializers, model, node, outputs

from amq_onnx.errors import UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.rewriting import lower, prepare, with_initializers
from amq_onnx.tuning.block_data import Chunk
from amq_onnx.tuning.blocks import find_blocks
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.quantizers import find_biases, find_quantizers
from amq_onnx.tuning.rounding import RoundingOptions, learn_rounding, samples_a_step
from tuning.graphs import encodings_of, linear, quantize, residual

OPTIONS = RoundingOptions(steps=60, samples=64, chunk=16, mixes=1)


def learned(case, options=OPTIONS, **more):
    return learn_rounding(case.prepared.model, case.quantized, case.heads, case.losses, case.data, options, **more)


def error(case, values):
    """Mean squared error of the outputs on the data, computed in onnxruntime."""
    feeds = next(case.data.batches(1024))
    expected = outputs(case.prepared.model, feeds)[0]
    found = outputs(with_initializers(case.quantized, values), feeds)[0]
    return float(np.square(found - expected).sum(1).mean())


def divergence(case, values):
    """KL of the softmax of the outputs on the data, computed in onnxruntime."""
    feeds = next(case.data.batches(1024))
    expected, found = (
        torch.from_numpy(outputs(proto, feeds)[0])
        for proto in (case.prepared.model, with_initializers(case.quantized, values))
    )
    return float(case.losses[0].divergence(expected, found).mean())


@pytest.mark.parametrize("seed", [4, 9, 11])
def test_the_codes_are_the_best_of_all(seed):
    case = quantize(linear(seed=seed), "y", 2)
    found = learned(case, RoundingOptions(steps=300, samples=64, chunk=64, mixes=0))
    weights, _ = find_quantizers(case.quantized)
    site, held = weights["w"], initializers(case.quantized)
    inputs = next(case.data.batches(1024))["x"]

    def squared(codes):
        return float(np.square(inputs @ (codes * held[site.scale] - held["w"])).sum(1).mean())

    exact = held["w"] / held[site.scale]
    below = np.clip(np.floor(exact), -2, 0)
    least = min(squared(below + np.reshape(up, below.shape)) for up in itertools.product((0, 1), repeat=below.size))
    assert least < 0.6 * squared(np.clip(np.rint(exact), -2, 1))  # else there was nothing to learn
    assert error(case, found.values) == pytest.approx(least, rel=1e-3)


def test_settled_better_and_written_as_it_was_learned():
    case = quantize(residual(), "scores", 3, 8, loss="softmax")
    found = learned(case, RoundingOptions(steps=250, samples=64, chunk=16, mixes=1))
    assert [len(block.weights) for block in found.blocks] == [3, 3]
    for block in found.blocks:
        assert block.learned < 0.8 * block.nearest and block.settled > 0.99 and block.changed > 0
    assert divergence(case, found.values) < 0.7 * divergence(case, {})
    weights, activations = find_quantizers(case.quantized)
    scales = {site.scale for site in activations.values()}
    assert set(found.values) == {*weights, *scales, *find_biases(case.quantized)}
    simulated = with_initializers(case.quantized, found.values)
    held = initializers(simulated)
    codes = Executor(simulated).run({}, [site.codes for site in weights.values()])
    for site in weights.values():
        scale = held[site.scale].reshape([-1 if axis == site.axis else 1 for axis in range(held[site.tensor].ndim)])
        np.testing.assert_array_equal(held[site.tensor], codes[site.codes].numpy() * scale)
        assert codes[site.codes].min() >= -4 and codes[site.codes].max() <= 3


def test_the_last_block_learns_from_its_layers_besides_the_scores():
    case = quantize(residual(), "scores", 2, loss="softmax", samples=16)
    found = learned(case, RoundingOptions(steps=250, samples=16, chunk=16, mixes=0))
    unseen = {"image": np.random.default_rng(5).standard_normal((256, 3, 6, 6)).astype(np.float32)}
    layers = ["a2", "b2"]
    feeds = {name: torch.from_numpy(array) for name, array in unseen.items()}
    exact = Executor(case.prepared.model).run(feeds, [*layers, "r1"])

    def errors(values):
        given = {"r1": exact["r1"]}  # what the blocks before make is not the last one's error
        quantized = Executor(with_initializers(case.quantized, values)).run({**feeds, **given}, layers)
        return np.array([float((quantized[name] - exact[name]).square().mean()) for name in layers])

    assert (errors(found.values) < 0.8 * errors({})).all()


@pytest.mark.parametrize(("channels", "side", "expected"), [(64, 64, 4), (512, 64, 2), (4, 64, 4), (1, 4, 1 << 10)])
def test_steps_have_fewer_samples_where_a_tensor_inside_a_block_is_large(channels, side, expected):
    """However small the tensors are that blocks hand on."""
    proto = model(
        [
            node("Conv", "x w", "wide"),
            node("Relu", "wide", "kept"),
            node("GlobalAveragePool", "kept", "pooled"),
            node("Conv", "pooled v", "y"),
        ],
        {"x": ["n", 1, side, side]},
        {"y": None},
        {"w": np.ones((channels, 1, 1, 1), np.float32), "v": np.ones((3, channels, 1, 1), np.float32)},
    )
    proto = prepare(proto).model
    (block,) = find_blocks(proto, ["w", "v"], ["y"])
    inputs = torch.ones(8, 1, side, side)
    chunk = Chunk({"x": inputs}, 8, None, None, {"y": torch.ones(8, 3, 1, 1)}, None)
    assert samples_a_step(Executor(proto), block, chunk) == expected


def test_the_same_numbers_from_a_run_that_was_interrupted(tmp_path):
    case = quantize(residual(), "scores", 2, 4, loss="softmax")
    whole = learned(case)

    class Stopped(Exception):
        pass

    def stop(what, done, of):
        if what == "learned rounding, blocks":
            raise Stopped

    with pytest.raises(Stopped):
        learned(case, checkpoint=Checkpoint(tmp_path / "c"), progress=stop)
    resumed = learned(case, checkpoint=Checkpoint(tmp_path / "c", resume=True))
    assert resumed.blocks == whole.blocks and resumed.values.keys() == whole.values.keys()
    for name, value in whole.values.items():
        np.testing.assert_array_equal(resumed.values[name], value)


def test_a_block_that_shares_a_weight_is_trained_with_what_was_learned_of_it():
    draw = np.random.default_rng(1).standard_normal
    nodes, constants = [], {f"w{index}": 0.3 * draw((12, 12)).astype(np.float32) for index in range(4)}
    for index, weight in enumerate(("w0", "w1", "w2", "w0", "w3")):
        nodes += [node("MatMul", f"h{index} {weight}", f"p{index}"), node("Tanh", f"p{index}", f"h{index + 1}")]
    case = quantize(model(nodes, {"h0": ["n", 12]}, {"h5": ["n", 12]}, constants), "h5", 2)
    found = learned(case, replace(OPTIONS, mixes=0, steps=200))
    assert [block.weights for block in found.blocks] == [("w0", "w1", "w2"), ("w3",)]
    assert found.blocks[0].changed > 0
    # The last block's loss is that of the whole network, as it will be written.
    assert 2 * found.blocks[-1].learned == pytest.approx(error(case, found.values), rel=1e-4)


def test_another_run_is_not_resumed(tmp_path):
    case = quantize(linear(), "y", 2)
    learned(case, checkpoint=Checkpoint(tmp_path))
    with pytest.raises(UsageError, match="another run"):
        learned(quantize(linear(), "y", 3), checkpoint=Checkpoint(tmp_path, resume=True))
    (tmp_path / "tuning-rounding-0000.npz").write_bytes(b"PK cut short")
    with pytest.raises(UsageError, match=r"tuning-rounding-0000\.npz"):
        learned(case, checkpoint=Checkpoint(tmp_path, resume=True))
    with pytest.raises(UsageError, match="--checkpoint"):
        Checkpoint(None, resume=True)
    with pytest.raises(UsageError, match="no checkpoint"):
        learned(case, checkpoint=Checkpoint(tmp_path / "empty", resume=True))


def test_other_files_in_the_folder_of_a_checkpoint_stay(tmp_path):
    (tmp_path / "calibration.npz").write_bytes(b"mine")
    learned(quantize(linear(), "y", 2), checkpoint=Checkpoint(tmp_path))
    assert (tmp_path / "calibration.npz").read_bytes() == b"mine"


def test_a_tuned_graph_is_packed_like_any_other():
    case = quantize(residual(), "scores", 4, 8, loss="softmax")
    found = learned(case)
    tuned = with_initializers(case.quantized, found.values)
    packed = lower(case.prepared, tuned, encodings_of(case.prepared, 4, 8))
    plain = lower(case.prepared, case.quantized, encodings_of(case.prepared, 4, 8))
    assert packed.ByteSize() == plain.ByteSize()
    feeds = next(case.data.batches(8))
    np.testing.assert_allclose(outputs(packed, feeds)[0], outputs(tuned, feeds)[0], rtol=0, atol=0.05)
