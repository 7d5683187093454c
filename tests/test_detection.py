"""RetinaNet of models/: anchors, losses, metric, and its shared heads through quantization."""

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from amq_onnx.calibration import calibrate
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.file import fingerprint, read_model
from amq_onnx.model.random_data import random_data
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_range
from amq_onnx.rewriting import lower, prepare, simulate

ROOT = Path(__file__).parent.parent
LABELS = np.array(
    [
        [[0, 10, 10, 40, 40], [1, 60, 50, 110, 90], [-1] * 5],
        [[1, 20, 70, 50, 100], [-1] * 5, [-1] * 5],
        [[0, 70, 16, 90, 36], [0, 8, 64, 56, 112], [1, 96, 96, 120, 120]],
    ],
    np.float32,
)


def imported(name):
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("models", "benchmarks"):
            patch.syspath_prepend(ROOT / folder)
        return importlib.import_module(name)


anchors = imported("anchors")
metric = imported("detection_metric")
retinanet = imported("retinanet")
training = imported("train_retinanet")
TINY = anchors.Anchors((4, 8, 16, 32), (4.0,), (1,))


def tiny(classes=3):
    torch.manual_seed(0)
    stages = [torch.nn.Sequential(torch.nn.Conv2d(width, 8, 3, 2, 1), torch.nn.ReLU()) for width in (8, 8, 8)]
    stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU())
    return retinanet.RetinaNet(retinanet.Levels(stem, *stages), (8, 8, 8), TINY, classes, 8, 1)


# Anchors.


def test_anchors_lie_around_the_centres_of_places():
    found = anchors.Anchors((4,), (2.0,), (1, 4)).boxes(4, 8)
    assert found.tolist() == [[-2, -2, 6, 6], [0, -6, 4, 10], [2, -2, 10, 6], [4, -6, 8, 10]]
    assert len(anchors.SMALL.boxes(128, 128)) == 3 * (32**2 + 16**2 + 8**2)
    assert len(anchors.FULL.boxes(512, 512)) == 9 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    assert len(anchors.FULL.boxes(72, 8)) == 9 * (9 + 5 + 3 + 2 + 1)


def test_anchors_have_the_order_of_the_heads():
    kinds = anchors.Anchors((4, 8), (4.0, 5.0), (1,))
    head = retinanet.RetinaHead(3, 0, kinds.places, 3)
    head[-1].weight.data.zero_()
    head[-1].bias.data.zero_()
    levels = []
    for stride in kinds.strides:
        y, x = np.meshgrid(*[(np.arange(16 // stride) + 0.5) * stride] * 2, indexing="ij")
        levels.append(torch.tensor(np.stack([x, y, np.full_like(x, stride)])[None], dtype=torch.float32))
    for kind, size in enumerate(kinds.sizes):
        for value, scale in enumerate((1, 1, size)):
            head[-1].weight.data[kind * 3 + value, value, 1, 1] = scale
    found = head(levels)[0].detach().numpy()  # centre and side of the anchor that each row is for
    boxes = kinds.boxes(16, 16)
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, found[:, :2])
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], found[:, 2])


def test_boxes_come_back_from_their_offsets():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 100, (2, 50, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.uniform(5, 60, (2, 50, 2))], -1).astype(np.float32)
    places = anchors.SMALL.boxes(128, 128)[:50]
    np.testing.assert_allclose(anchors.decode(anchors.encode(boxes, places), places), boxes, rtol=0, atol=1e-3)
    # A tenth of the anchor's width to the right, and e^.2 times as high.
    moved = np.array([[2, 10 - 10 * np.exp(0.2), 22, 10 + 10 * np.exp(0.2)]], np.float32)
    anchor = np.array([[0, 0, 20, 20]], np.float32)
    np.testing.assert_allclose(anchors.encode(moved, anchor), [[1, 0, 0, 1]], atol=1e-6)
    assert np.isfinite(anchors.decode(np.full((1, 4), 1e4, np.float32), anchor)).all()


def test_overlaps_and_suppression():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 9]], np.float32)
    found = anchors.overlaps(boxes[:1], boxes)
    np.testing.assert_allclose(found, [[1, 0.5, 1 / 3, 0, 0.9]], rtol=1e-6)
    assert metric.suppressed(boxes, np.zeros(5, int)).tolist() == [0, 1, 2, 3]
    assert metric.suppressed(boxes, np.arange(5)).tolist() == [0, 1, 2, 3, 4]


# Training.


def test_targets_are_the_objects_of_the_anchors_that_overlap_them():
    places = anchors.SMALL.boxes(128, 128)
    kinds, offsets = (found.numpy() for found in training.targets(LABELS, places))
    for scene, rows in enumerate(LABELS):
        objects = rows[rows[:, 0] >= 0]
        shared = anchors.overlaps(places, objects[:, 1:])
        best = set(shared.argmax(0).tolist())
        for place in range(len(places)):
            most = shared[place].max()
            if most >= 0.5 or place in best:
                number = shared[place].argmax()
                assert kinds[scene, place] == objects[number, 0]
                box = anchors.decode(offsets[scene, place], places[place])
                np.testing.assert_allclose(box, objects[number, 1:], atol=1e-3)
            else:
                assert kinds[scene, place] == (-1 if most < 0.4 else -2)
                assert not offsets[scene, place].any()


def test_focal_loss_is_the_papers():
    scores = torch.tensor([[[2.0, -1.0], [0.5, 0.0], [3.0, 3.0], [-2.0, 1.0]]])
    kinds = torch.tensor([[0, -1, -2, 1]])
    truth = np.array([[1, 0], [0, 0], [0, 1]], bool)
    probability = 1 / (1 + np.exp(-scores.numpy()[0, [0, 1, 3]].astype(np.float64)))
    right = np.where(truth, probability, 1 - probability)
    expected = -(np.where(truth, 0.25, 0.75) * (1 - right) ** 2 * np.log(right)).sum() / 2
    assert training.focal_loss(scores, kinds).item() == pytest.approx(expected, rel=1e-5)
    offsets = torch.tensor([[[0.0, 0.25, 2, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, -1]]])
    # Quadratic up to one half, where it is a quarter.
    found = training.box_loss(offsets, torch.zeros(1, 4, 4), kinds).item()
    assert found == pytest.approx((0.25**2 + 1.75 + 0.75) / 2)


# The metric.


def heads(boxes_of, classes=2):
    """Outputs that find every object once, at the box that `boxes_of` makes of its own."""
    places = anchors.SMALL.boxes(128, 128)
    scores = np.full((len(LABELS), len(places), classes), -9, np.float32)
    offsets = np.zeros((len(LABELS), len(places), 4), np.float32)
    for scene, rows in enumerate(LABELS):
        for kind, *box in rows[rows[:, 0] >= 0]:
            moved = np.array(boxes_of(*box), np.float32)
            place = anchors.overlaps(places, moved[None])[:, 0].argmax()
            scores[scene, place, int(kind)] = 3
            offsets[scene, place] = anchors.encode(moved, places[place])
    return {"scores": scores, "boxes": offsets}


def test_perfect_boxes_have_an_average_precision_of_one(capsys):
    assert metric.mean_average_precision(heads(lambda *box: box), LABELS) == pytest.approx(1)
    assert capsys.readouterr().out == ""


def test_shifted_boxes_count_up_to_their_overlap():
    def shifted(left, top, right, bottom):
        step = (right - left) * 0.16  # overlap .84 / 1.16 = .724: right at .5, .55, .6, .65 and .7
        return left + step, top, right + step, bottom

    assert metric.average_precisions(heads(shifted), LABELS) == pytest.approx((0.5, 1))


def test_what_is_missed_false_or_of_another_class():
    found = heads(lambda *box: box)
    swapped = found | {"scores": found["scores"][:, :, ::-1]}
    assert metric.mean_average_precision(swapped, LABELS) == 0
    assert metric.mean_average_precision(found | {"scores": found["scores"] - 9}, LABELS) == 0
    # Each class has three objects. Without the last scene class 0 has found one and class 1 two: of COCO's 101 recalls
    # those up to 1/3 and 2/3.
    found["scores"][2] = -9
    assert metric.mean_average_precision(found, LABELS) == pytest.approx((34 + 67) / 2 / 101)


def test_a_false_box_above_the_right_ones():
    found = heads(lambda *box: box)
    places = anchors.SMALL.boxes(128, 128)
    alone = np.flatnonzero(anchors.overlaps(places, LABELS[1, :1, 1:])[:, 0] == 0)[0]
    found["scores"][1, alone, 0] = 6
    # Of class 0, 1, 2 and 3 of the best 2, 3 and 4 boxes are right: precision 3/4 at every recall. Class 1 is perfect.
    assert metric.mean_average_precision(found, LABELS) == pytest.approx((0.75 + 1) / 2)


def test_what_the_metric_refuses():
    found = heads(lambda *box: box)
    with pytest.raises(ValueError, match="labels"):
        metric.mean_average_precision(found, None)
    with pytest.raises(ValueError, match="4032 anchors"):
        metric.mean_average_precision({name: array[:, :-1] for name, array in found.items()}, LABELS)


# Scenes.


def test_scenes_follow_from_the_seed_and_their_labels_are_where_the_objects_are(monkeypatch):
    scenes = imported("scenes")
    images = torch.full((10, 3, 32, 32), 50.0)  # far above the ground
    monkeypatch.setattr(scenes, "_images", lambda split: (images, np.arange(10)))
    monkeypatch.setattr(scenes, "_ground", lambda images, count, generator: torch.zeros(count, 3, 128, 128))
    drawn, again = ([*scenes.scenes("test", 12, seed, size=5)] for seed in (3, 3))
    assert [len(batch["input"]) for batch in drawn] == [5, 5, 2]
    for batch, same in zip(drawn, again, strict=True):
        assert all(np.array_equal(batch[name], same[name]) for name in ("input", "labels"))
        for scene, rows in zip(batch["input"], batch["labels"], strict=True):
            objects = rows[rows[:, 0] >= 0]
            assert 1 <= len(objects) <= 4
            inside = np.zeros((128, 128), bool)
            for left, top, right, bottom in objects[:, 1:].astype(int):
                inside[top:bottom, left:right] = True
                assert scene[0, (top + bottom) // 2, (left + right) // 2] > 20
                middle = scene[0, top:bottom, left:right]
                assert middle[:, 0].max() > 5 < middle[:, -1].max()
                assert middle[0].max() > 5 < middle[-1].max()
            assert not scene[:, ~inside].any()
    other = next(scenes.scenes("test", 12, 4, size=5))
    assert not np.array_equal(other["labels"], drawn[0]["labels"])


# The graph.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("retinanet") / "tiny.onnx"
    network = tiny()
    retinanet.export_detector(network, path, 64)
    return network, path


def test_the_file_computes_the_networks_heads_for_any_batch(exported):
    network, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    count = len(TINY.boxes(64, 64))
    assert count == 16**2 + 8**2 + 4**2 + 2**2
    assert [output.name for output in session.get_outputs()] == ["scores", "boxes"]
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            expected = network(images)
        found = session.run(None, {"input": images.numpy()})
        assert [array.shape for array in found] == [(batch, count, 3), (batch, count, 4)]
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_an_untrained_network_expects_few_objects(exported):
    with torch.inference_mode():
        scores, _ = exported[0](torch.zeros(1, 3, 64, 64))
    assert torch.sigmoid(scores).mean().item() == pytest.approx(0.01, rel=0.2)


def test_shared_heads_are_one_site_and_the_file_is_its_simulation(exported):
    model = read_model(exported[1])
    prepared = prepare(model)
    readers = Counter(name for node in prepared.model.graph.node if node.op_type == "Conv" for name in node.input[1:2])
    shared = {f"{head}.{layer}.weight" for head in ("scores", "boxes") for layer in (0, 2)}
    assert {name for name, count in readers.items() if count > 1} == shared
    assert all(readers[name] == len(TINY.strides) for name in shared)
    weights = [site.name for site in prepared.sites.weights]
    assert sorted(weights) == sorted(readers)
    assert all(reason.endswith("--quantize-outputs does") for reason in prepared.sites.left_float.values())
    assert len(prepared.sites.left_float) == 2 * len(TINY.strides)

    activations = [site.name for site in prepared.sites.activations]
    data = random_data(model, 8, 0)
    seen = calibrate(Executor(prepared.model), data, activations, [])
    widths = {name: (8, 4)[number % 2] for number, name in enumerate(activations)}
    plan = Plan(
        fingerprint(prepared.model),
        "mse",
        {name: (8, 5, 3)[number % 3] for number, name in enumerate(weights)},
        {
            name: ActivationPlan(bits, activation_range(seen.histograms[name], bits, "mse"))
            for name, bits in widths.items()
        },
    )
    encodings = plan.encodings(prepared)
    simulated = simulate(prepared, encodings)
    agreement = imported("agreement")
    quantized = agreement.Quantized(simulated, lower(prepared, simulated, encodings), activations)
    floats = (t for t in quantized.file.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert max(np.prod(t.dims) for t in floats) <= 64  # no weight
    batch = next(iter(data.batches(4)))
    agreements, runs = agreement.compare_levels(quantized, batch)
    for (level, _), found in agreements.items():
        assert not runs[level].faults
        assert found.steps.sum() > 10_000
        assert found.steps[2:].sum() == 0
        assert found.output_error < 1e-5
