"""Metrics against closed forms."""

import numpy as np
import pytest

from amq_onnx.errors import DataError, UsageError
from amq_onnx.runtime.confidence import DisagreementDrop, PairedDrop
from amq_onnx.runtime.metrics import METRICS, metric_named

rng = np.random.default_rng(5)


def score(name, batches):
    """batches: (reference, outputs, labels), outputs a dict or the only output."""
    metric = metric_named(name)()
    for reference, outputs, labels in batches:
        metric.add(*(as_outputs(item) for item in (reference, outputs)), labels)
    return metric.score()


def as_outputs(item):
    return item if isinstance(item, dict) else {"scores": np.asarray(item)}


def test_top1_counts_right_answers_over_batches_of_any_size():
    first, second = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:2]
    found = score("top1", [(first, first, np.array([0, 1, 2, 0])), (second, second, np.array([1, 1]))])
    assert found == 4 / 6


def test_top5_against_sorting():
    scores = rng.standard_normal((200, 12))
    labels = rng.integers(0, 12, 200)
    rank = (np.argsort(-scores, 1) == labels[:, None]).argmax(1)
    assert score("top5", [(scores, scores, labels)]) == np.mean(rank < 5)
    assert score("top1", [(scores, scores, labels)]) == np.mean(rank < 1)


@pytest.mark.parametrize(
    ("scores", "label", "top1", "top5"),
    [
        ([1, 1, 0, 0, 0, 0, 0], 0, 0, 1),  # a tie for the first place is not the first place
        ([2, 1, 1, 1, 1, 1, 0], 5, 0, 0),  # six with as much or more
        ([2, 1, 1, 1, 1, 0, 0], 4, 0, 1),  # five with as much or more
        ([0, 0, 0, 0, 0, 0, 0], 0, 0, 0),  # a constant output knows nothing
        ([0, 0, 0, 0, 0, 0, 1], 6, 1, 1),
    ],
)
def test_ties_count_against_the_label(scores, label, top1, top5):
    batch = [([scores], [scores], np.array([label]))]
    assert (score("top1", batch), score("top5", batch)) == (top1, top5)


def test_nan_scores_are_wrong():
    scores = np.array([[np.nan, 0, 0]])
    assert score("top1", [(scores, scores, np.array([1]))]) == 0
    assert score("top1", [(scores, scores, np.array([0]))]) == 0
    assert score("top1", [(np.full((1, 3), np.nan),) * 2 + (np.array([2]),)]) == 0


def test_top5_of_fewer_classes_is_always_right():
    scores = rng.standard_normal((9, 3))
    assert score("top5", [(scores, scores, rng.integers(0, 3, 9))]) == 1


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "needs `labels`"),
        (np.array([0, 3]), "0 to 3.*3 classes"),
        (np.array([-1, 0]), "-1 to 0"),
        (np.array([0]), "1 labels for 2 samples"),
        (np.array([0.0, 1.0]), "float64"),
    ],
)
def test_labels_that_do_not_fit(labels, said):
    scores = np.zeros((2, 3))
    with pytest.raises(DataError, match=said):
        score("top1", [(scores, scores, labels)])


def test_labels_as_a_column():
    scores = np.eye(3)
    assert score("top1", [(scores, scores, np.array([[0], [1], [0]]))]) == 2 / 3


@pytest.mark.parametrize("name", ["top1", "top5", "agreement"])
@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (2, 3, 1, 1)])
def test_scores_of_another_rank(name, shape):
    with pytest.raises(UsageError, match=f"{len(shape)} dimensions"):
        score(name, [(np.zeros(shape), np.zeros(shape), np.zeros(2, int))])


def test_agreement():
    first = np.array([[3, 1, 2], [0, 1, 0], [0, 0, 5]])
    second = np.array([[9, 1, 2], [1, 0, 0], [4, 3, 5]])
    assert score("agreement", [(first, second, None)]) == 2 / 3
    assert score("agreement", [(first, first, None), (first[1:2], second[1:2], None)]) == 3 / 4


def test_cosine():
    first = np.array([[1, 0], [1, 1], [3, 4]], np.float32)
    second = np.array([[0, 2], [1, 0], [6, 8]], np.float32)
    assert score("cosine", [(first, second, None)]) == pytest.approx((0 + 1 / np.sqrt(2) + 1) / 3, rel=1e-12)
    assert score("cosine", [(first, -first, None)]) == pytest.approx(-1)


def test_cosine_of_zeros():
    zeros, ones = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert score("cosine", [(zeros, zeros, None)]) == 1
    assert score("cosine", [(zeros, ones, None)]) == 0
    assert score("cosine", [(ones, zeros, None)]) == 0


def test_cosine_of_several_outputs_is_their_mean_without_integers():
    first = {"boxes": np.array([[[3.0, 0.0]]]), "count": np.array([1]), "scores": np.array([[4.0]])}
    second = {"boxes": np.array([[[0.0, 0.0]]]), "count": np.array([7]), "scores": np.array([[4.0]])}
    assert score("cosine", [(first, second, None)]) == pytest.approx(0.5)


def test_sqnr():
    first = rng.standard_normal((6, 5)).astype(np.float32)
    second = first + np.float32(0.01) * rng.standard_normal((6, 5)).astype(np.float32)
    noise = np.square(second.astype(float) - first).sum()
    wanted = 10 * np.log10(np.square(first.astype(float)).sum() / noise)
    assert score("sqnr", [(first[:2], second[:2], None), (first[2:], second[2:], None)]) == pytest.approx(wanted)
    assert score("sqnr", [(first, first, None)]) == np.inf
    assert score("sqnr", [(first, 1.1 * first, None)]) == pytest.approx(20, abs=1e-3)


def test_sqnr_of_several_outputs_is_that_of_their_mean_noise():
    first = {"boxes": np.array([[100.0, 100.0]]), "scores": np.array([[1.0]])}
    second = {"boxes": np.array([[100.0, 90.0]]), "scores": np.array([[0.7]])}
    assert score("sqnr", [(first, second, None)]) == pytest.approx(-10 * np.log10((0.005 + 0.09) / 2))


def test_sqnr_of_no_signal_is_minus_infinity_without_a_warning(recwarn):
    assert score("sqnr", [(np.zeros((1, 2)), np.ones((1, 2)), None)]) == -np.inf
    assert not recwarn.list


@pytest.mark.parametrize("name", ["top1", "agreement", "cosine", "sqnr"])
def test_no_output(name):
    with pytest.raises(UsageError, match="no float output"):
        metric_named(name)().add({}, {}, np.zeros(0, np.int64))


@pytest.mark.parametrize("name", ["cosine", "sqnr"])
def test_no_float_output(name):
    with pytest.raises(UsageError, match="no float output"):
        score(name, [(np.array([1, 2]), np.array([1, 2]), None)])


@pytest.mark.parametrize("name", ["cosine", "sqnr"])
def test_a_scalar_output(name):
    found = score(name, [(np.float32(2), np.float32(2), None)])
    assert found == (1 if name == "cosine" else np.inf)


@pytest.fixture
def script(tmp_path):
    def write(body):
        path = tmp_path / "metric.py"
        path.write_text(f"import numpy as np\ncalls = []\ndef score(outputs, labels):\n    {body}\n")
        return f"{path}:score"

    return write


def test_user_function_sees_all_samples_at_once(script):
    where = script("return (outputs['scores'].argmax(1) == labels).mean() + 10 * len(outputs['scores'])")
    scores = np.eye(3)
    found = score(where, [(scores, scores, np.array([0, 1, 0])), (scores[:1], scores[:1], np.array([0]))])
    assert found == 3 / 4 + 40


def test_user_function_without_labels(script):
    where = script("assert labels is None; return sum(array.sum() for array in outputs.values())")
    outputs = {"a": np.ones((2, 2)), "b": np.ones((2, 1), np.int64)}
    assert score(where, [(outputs, outputs, None)] * 3) == 18


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no such class')", "ValueError: no such class"),
        ("return 'good'", "ValueError"),
        ("return None", "TypeError"),
        ("return np.zeros(3)", "TypeError"),
        ("return outputs['boxes']", "KeyError"),
    ],
)
def test_user_function_that_fails(script, body, said):
    where = script(body)
    with pytest.raises(DataError, match=f"metric '.*metric.py:score' failed: {said}"):
        score(where, [(np.eye(2), np.eye(2), None)])


def drop(name, reference, outputs, labels=None):
    first, second = metric_named(name)(), metric_named(name)()
    for start in range(0, len(reference), 2):
        rows = slice(start, start + 2)
        batch = None if labels is None else labels[rows]
        first.add(as_outputs(reference[rows]), as_outputs(reference[rows]), batch)
        second.add(as_outputs(reference[rows]), as_outputs(outputs[rows]), batch)
    return second.drop_from(first)


def test_drops_come_from_each_sample():
    first = np.eye(5)
    second = np.eye(5)[[0, 2, 1, 3, 4]]
    labels = np.array([0, 1, 1, 3, 0])  # 0: both right, 1: lost, 2: gained, 3: both right, 4: both wrong
    assert drop("top1", first, second, labels) == PairedDrop(5, 1, 1)
    assert drop("agreement", first, second) == DisagreementDrop(5, 2)
    found = drop("cosine", np.eye(4), np.eye(4)[[0, 1, 2, 2]])
    assert (found.samples, found.mean, found.deviation) == (4, 0.25, 0.5)
    assert drop("sqnr", first, second) is None


def test_unknown_metrics():
    for name in ("top2", "", "script.txt:score", "Top1"):
        with pytest.raises(UsageError, match="--metric"):
            metric_named(name)
    for name in METRICS:
        assert metric_named(name)().name == name
