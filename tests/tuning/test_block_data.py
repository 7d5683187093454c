"""Samples of a block in chunks."""

from dataclasses import replace

import torch

from amq_onnx.layout import channels_last
from amq_onnx.tuning.block_data import BlockData, Chunk


def data(samples=10):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator)

    chunk = Chunk(
        {"input": drawn(samples, 3)},
        samples,
        drawn(samples, 4),
        drawn(samples, 4),
        {"out": drawn(samples, 2, 5)},
        drawn(samples).double(),
    )
    return BlockData("in", ("out",), {"scale": torch.ones(())}, [chunk])


def test_parts_hold_the_same_samples_and_their_losses_add_up():
    whole = data()
    (chunk,) = whole.chunks
    cut = whole.parts(4)
    assert [part.samples for part in cut.chunks] == [4, 4, 2]
    found = torch.rand(10, 2, 5)
    parts = found.split(4)
    total = sum(cut.loss(part, {"out": value}) * part.samples for part, value in zip(cut.chunks, parts, strict=True))
    torch.testing.assert_close(total / 10, whole.loss(chunk, {"out": found}))
    for name in ("quantized", "floating", "importance"):
        joined = torch.cat([getattr(part, name) for part in cut.chunks])
        assert torch.equal(joined, getattr(chunk, name)), name


def test_a_chunk_whose_tensors_do_not_count_samples_first_stays_whole():
    whole = data()
    (chunk,) = whole.chunks
    shared = replace(chunk, feeds={**chunk.feeds, "mask": torch.ones(3)})
    assert shared.parts(4) == [shared]
    assert replace(chunk, targets={"out": torch.zeros(())}).parts(4)[0].samples == 10


def test_errors_of_layers_are_means_over_their_elements():
    whole = data()
    (chunk,) = whole.chunks
    layers = {"a": torch.rand(10, 3, 2), "b": torch.rand(10, 7)}
    whole = replace(whole, layers=("a", "b"), chunks=[replace(chunk, targets={**chunk.targets, **layers})])
    found = {"a": layers["a"] + 0.5, "b": layers["b"].clone()}
    found["b"][:, 0] += 1
    errors = whole.layer_errors(whole.chunks[0], found)
    torch.testing.assert_close(errors, torch.tensor([0.25, 1 / 7]))
    cut = whole.parts(4)
    assert [part.targets["a"].shape[0] for part in cut.chunks] == [4, 4, 2]


def test_inputs_are_mixed_from_both_networks_only_in_training():
    whole = data()
    (chunk,) = whole.chunks
    assert torch.equal(whole.values(chunk)["in"], chunk.quantized)
    mixed = whole.values(chunk, torch.Generator().manual_seed(0))["in"]
    floating = mixed == chunk.floating
    assert torch.equal(mixed[~floating], chunk.quantized[~floating]) and 5 < floating.sum() < 35


def test_mixed_images_lie_in_memory_as_they_were():
    whole = data()
    images = {"quantized": torch.rand(10, 4, 3, 2), "floating": torch.rand(10, 4, 3, 2)}
    for layout in (torch.Tensor.contiguous, channels_last):
        chunk = replace(whole.chunks[0], **{name: layout(image) for name, image in images.items()})
        mixed = whole.values(chunk, torch.Generator().manual_seed(0))["in"]
        assert mixed.stride() == layout(images["quantized"]).stride()
        floating = mixed == images["floating"]
        assert torch.equal(mixed[~floating], images["quantized"][~floating]) and 90 < floating.sum() < 150


def test_numbers_that_are_not_floats_are_not_mixed():
    whole = data()
    chunk = replace(whole.chunks[0], quantized=torch.arange(10), floating=torch.zeros(10, dtype=torch.int64))
    assert torch.equal(whole.values(chunk, torch.Generator().manual_seed(0))["in"], torch.arange(10))
