import torch

from amq_onnx.tuning.soft_rounding import SoftCodes, annealed_beta

WEIGHT = torch.tensor([-3.2, -0.6, 0.1, 0.4, 0.9, 2.7])
LOW, HIGH = torch.tensor(-2.0), torch.tensor(1.0)


def soft(scale=0.5):
    return SoftCodes(WEIGHT, torch.tensor(scale), LOW, HIGH)


def test_starts_at_the_weight_within_the_bounds():
    expected = (WEIGHT / 0.5).clamp(LOW, HIGH)
    torch.testing.assert_close(soft().soft().detach(), expected, rtol=0, atol=0.011)
    assert soft().nearest.tolist() == [-2, -1, 0, 1, 1, 1]


def test_hard_codes_are_whole_and_within_the_bounds_wherever_the_variable_goes():
    codes = soft()
    for value in (-9.0, 9.0):
        with torch.no_grad():
            codes.variable.fill_(value)
        hard = codes.hard()
        assert torch.equal(hard, hard.round()) and hard.min() >= LOW and hard.max() <= HIGH
        torch.testing.assert_close(codes.soft().detach(), hard)
        assert codes.settled() == len(WEIGHT) and codes.unsettled(2).item() == 0


def test_unsettled_is_greatest_halfway_and_its_gradient_leads_away():
    codes = SoftCodes(torch.tensor([0.4, 0.6]), torch.tensor(1.0), LOW, HIGH)
    codes.unsettled(2).backward()
    assert codes.variable.grad[0] > 0 > codes.variable.grad[1]
    assert codes.settled() == 0


def test_beta_falls_from_20_to_2():
    values = [annealed_beta(step / 10) for step in range(11)]
    assert values[0] == 20 and values[-1] == 2 and values == sorted(values, reverse=True)
