"""amq spectrum."""

import onnx
import pytest
from onnx import numpy_helper


def test_spectrum_of_chosen_weights_printed_and_saved(amq, case, tmp_path, read_json):
    saved = tmp_path / "spectra.json"
    ran = amq("spectrum", case.model, "--data", case.unlabelled, "--weights", "w[13]", "--top", 3, "--json", saved)
    assert ran.code == 0, ran.err
    assert "w1" in ran.out and "w3" in ran.out and "w2" not in ran.out
    found = read_json(saved)
    assert list(found["weights"]) == ["w1", "w3"]
    for weight in found["weights"].values():
        values = weight["eigenvalues"]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[-1] > 0
        assert 0 < weight["share_of_first"] < 1.2 and weight["converged"]
        assert sum(weight["density"]["weights"]) == pytest.approx(1)


def test_the_hessian_takes_labels(amq, case):
    ran = amq("spectrum", case.model, "--data", case.data, "--weights", "w3", "--top", 2, "--method", "hessian")
    assert ran.code == 0, ran.err
    ran = amq("spectrum", case.model, "--data", case.unlabelled, "--weights", "w3", "--method", "hessian")
    assert ran.code == 2 and "labels" in ran.err


def test_passes_that_were_too_few_are_said(amq, case):
    ran = amq("spectrum", case.model, "--data", case.unlabelled, "--max-products", 3)
    assert ran.code == 0 and "raise --max-products" in ran.out + ran.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--weights", "nothing"), "matches no weight"),
        (("--weights", "("), "no regular expression"),
        (("--top", "0"), "--top"),
        (("--relative-error", "0"), "--relative-error"),
        (("--max-products", "0"), "--max-products"),
    ],
)
def test_wrong_options_are_one_sentence(amq, case, given, said):
    ran = amq("spectrum", case.model, "--data", case.unlabelled, *given)
    assert ran.code == 2 and said in ran.err and len(ran.err.strip().splitlines()) == 1


def test_scores_without_curvature_are_said(amq, case, tmp_path):
    model = onnx.load(case.model)
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "w3")
    last.CopyFrom(numpy_helper.from_array(1e6 * numpy_helper.to_array(last), "w3"))
    onnx.save(model, tmp_path / "sure.onnx")
    given = ("spectrum", tmp_path / "sure.onnx", "--data", case.unlabelled, "--weights", "w1", "--top", 2)
    ran = amq(*given)
    assert ran.code == 0 and "--loss squared" in ran.err
    assert "--loss squared" not in amq(*given, "--loss", "squared").err
