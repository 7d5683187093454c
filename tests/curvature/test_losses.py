"""Each loss's root is a square root of its exact Hessian, and its value is the textbook one."""

import pytest
import torch

from amq_onnx.curvature.losses import SigmoidLoss, SoftmaxLoss, SquaredLoss
from amq_onnx.errors import DataError

from .networks import DOUBLE, draw, score_hessian, target_of

CASES = {
    "softmax": (SoftmaxLoss(), (3, 4)),
    "softmax, one sample": (SoftmaxLoss(), (1, 5)),
    "softmax, tokens": (SoftmaxLoss(), (2, 3, 4)),
    "softmax, pixels": (SoftmaxLoss(1), (2, 4, 2, 3)),
    "sigmoid": (SigmoidLoss(), (3, 4)),
    "sigmoid, tokens": (SigmoidLoss(), (2, 3, 4)),
    "sigmoid, vector": (SigmoidLoss(), (4,)),
    "squared": (SquaredLoss(0.3), (3, 4)),
    "squared, tokens": (SquaredLoss(2.5), (2, 3, 4)),
}


@pytest.mark.parametrize(("loss", "shape"), CASES.values(), ids=CASES)
def test_root_times_its_transpose_is_the_hessian(loss, shape):
    scores = draw(*shape, seed=3, scale=2.0)
    basis = torch.eye(scores.numel(), dtype=DOUBLE)
    root = torch.stack([loss.root_product(scores, vector.reshape(shape)).reshape(-1) for vector in basis], 1)
    torch.testing.assert_close(root @ root.T, score_hessian(loss, scores), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("loss", "shape"), CASES.values(), ids=CASES)
def test_trace_is_that_of_the_hessian(loss, shape):
    scores = draw(*shape, seed=3, scale=2.0)
    of_samples = score_hessian(loss, scores).diagonal().reshape(len(scores), -1).sum(1)
    torch.testing.assert_close(loss.trace(scores), of_samples, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("loss", "shape"), CASES.values(), ids=CASES)
def test_divergence_is_the_quadratic_form_of_small_differences(loss, shape):
    scores = draw(*shape, seed=3, scale=2.0)
    change = draw(*shape, seed=4, scale=1e-4)
    exact = 0.5 * change.reshape(-1) @ score_hessian(loss, scores) @ change.reshape(-1)
    torch.testing.assert_close(loss.divergence(scores, scores + change).sum(), exact, rtol=1e-3, atol=0)
    assert loss.divergence(scores, scores).abs().max() < 1e-15


def test_divergence_of_softmax_and_sigmoid_is_kullback_leiblers():
    before, after = draw(3, 4, scale=2.0), draw(3, 4, seed=1, scale=2.0)
    p, q = before.softmax(1), after.softmax(1)
    torch.testing.assert_close(SoftmaxLoss().divergence(before, after), (p * (p / q).log()).sum(1))
    p, q = before.sigmoid(), after.sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(SigmoidLoss().divergence(before, after), each.sum(1))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(SoftmaxLoss(), (5, 7)), (SoftmaxLoss(1), (4, 6, 3)), (SquaredLoss(0.3), (5, 3))],
)
def test_distance_is_the_divergence_at_a_high_temperature(loss, shape):
    generator = torch.Generator().manual_seed(3)
    before, after = (torch.randn(shape, generator=generator, dtype=torch.float64) * 9 for _ in range(2))
    temperature = 1e3
    limit = loss.divergence(before / temperature, after / temperature) * temperature**2
    torch.testing.assert_close(loss.distance(before, after), limit, rtol=0.05, atol=0)


def test_distance_of_independent_scores_forgets_those_that_are_sure():
    """A detector's thousands of scores without an object don't drown the few with one."""
    before = torch.tensor([[-9.0] * 500 + [0.0]], dtype=DOUBLE)
    ground, found = before.clone(), before.clone()
    ground[:, :500] += 1
    found[:, 500] += 1
    assert SigmoidLoss().distance(before, ground) < SigmoidLoss().distance(before, found)


def test_divergence_of_saturated_scores_is_finite():
    before, after = torch.tensor([[1e3, 0.0, -1e3]]), torch.tensor([[-1e3, 0.0, 1e3]])
    assert float(SoftmaxLoss().divergence(before, after)) == pytest.approx(2e3)
    assert float(SigmoidLoss().divergence(before, after)) == pytest.approx(2e3)


def test_root_of_saturated_scores_is_finite_and_zero():
    scores = torch.tensor([[1e4, 0.0, -1e4]])
    for loss in (SoftmaxLoss(), SigmoidLoss()):
        product = loss.root_product(scores, torch.ones_like(scores))
        assert torch.isfinite(product).all()
        assert product[0, [0, 2]].abs().max() == 0.0


@pytest.mark.parametrize(("loss", "shape"), CASES.values(), ids=CASES)
def test_draws_have_the_hessian_for_covariance_and_no_mean(loss, shape):
    scores = draw(*shape, seed=3, scale=2.0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([loss.root_draw(scores, generator).reshape(-1) for _ in range(4000)])
    products = draws[:, :, None] * draws[:, None, :]
    hessian = score_hessian(loss, scores)
    assert ((products.mean(0) - hessian).abs() <= 5 * products.std(0) / len(draws) ** 0.5 + 1e-12).all()
    assert (draws.mean(0).abs() <= 5 * draws.std(0) / len(draws) ** 0.5).all()


@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 4)), (1, (2, 4, 2, 3))])
def test_softmax_draws_have_one_length_at_each_position(axis, shape):
    scores = draw(*shape, seed=3, scale=2.0)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.stack([SoftmaxLoss(axis).root_draw(scores, generator).square().sum(axis) for _ in range(50)])
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), rtol=1e-9, atol=0)


def test_softmax_draws_of_certain_and_saturated_scores_are_finite():
    scores = torch.tensor([[1e4, 0.0, -1e4], [20.0, 0.0, 0.0], [0.0, 90.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = SoftmaxLoss().root_draw(scores, generator)
        assert torch.isfinite(drawn).all()
        assert drawn[0].abs().max() == 0.0
        assert drawn[1].abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_softmax_value_is_cross_entropy_averaged_over_positions(shape):
    scores = draw(*shape, scale=2.0)
    target = target_of(SoftmaxLoss(), scores)
    each = torch.nn.functional.cross_entropy(scores.reshape(-1, 4), target.reshape(-1), reduction="none")
    torch.testing.assert_close(SoftmaxLoss().value(scores, target), each.reshape(shape[0], -1).mean(1))


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_value_of_shares_is_that_of_each_class_in_its_share(axis):
    loss, scores = SoftmaxLoss(axis), draw(2, 3, 4, scale=2.0)
    shares = torch.softmax(draw(2, 3, 4), axis)
    expected = torch.nn.functional.cross_entropy(scores.movedim(axis, 1), shares.movedim(axis, 1), reduction="none")
    torch.testing.assert_close(loss.value(scores, shares), expected.mean(1))
    numbers = scores.argmax(axis)
    alone = torch.nn.functional.one_hot(numbers, scores.shape[axis]).movedim(-1, axis).to(DOUBLE)
    torch.testing.assert_close(loss.value(scores, alone), loss.value(scores, numbers))


def test_sigmoid_value_is_binary_cross_entropy_summed_over_scores_averaged_over_positions():
    scores = draw(2, 3, 4, scale=2.0)
    target = target_of(SigmoidLoss(), scores)
    each = torch.nn.functional.binary_cross_entropy_with_logits(scores, target.to(DOUBLE), reduction="none")
    torch.testing.assert_close(SigmoidLoss().value(scores, target), each.sum(2).mean(1))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (SoftmaxLoss(), torch.tensor([0, 4])),
        (SoftmaxLoss(), torch.tensor([-1, 0])),
        (SoftmaxLoss(), torch.tensor([0, 1, 2])),
        (SoftmaxLoss(), torch.tensor([[0], [1]])),
        (SoftmaxLoss(), torch.zeros(2, 3)),
        (SigmoidLoss(), torch.tensor([0, 1])),
        (SquaredLoss(), torch.zeros(2, 3)),
    ],
    ids=["too large", "negative", "too many", "a dimension more", "shares of too few classes", "sigmoid", "squared"],
)
def test_targets_that_do_not_fit_raise(loss, target):
    with pytest.raises(DataError, match="labels"):
        loss.value(torch.zeros(2, 4), target)
