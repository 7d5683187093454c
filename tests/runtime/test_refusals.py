"""Who is to blame where the executor fails: data that onnxruntime can't run the model on either, or we."""

import numpy as np
import pytest
from small_graphs import f, model, node

from amq_onnx.errors import DataError, UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.random_data import random_data
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.refusals import blamed_on_data

NETWORK = model(
    [node("MatMul", "x w", "m"), node("Reshape", "m shape", "y")],
    {"x": ["n", "length", 8]},
    {"y": None},
    {"w": f(8, 4), "shape": np.array([0, 2, 8])},
)


def data(length):
    return random_data(NETWORK, 6, 0, {"x": (1, length, 8)})


def test_sizes_that_the_model_cannot_work_with():
    with pytest.raises(DataError, match=r"can't run on random data.*sizes.*Reshape"):
        measure_sensitivity(prepare(NETWORK), data(5), [8], [8], SensitivityOptions(method="norm"))
    measure_sensitivity(prepare(NETWORK), data(4), [8], [8], SensitivityOptions(method="norm"))


@pytest.mark.parametrize("error", [RuntimeError("ours"), UsageError("theirs"), MemoryError()])
def test_other_failures_stay_what_they_were(error):
    with pytest.raises(type(error)) as raised, blamed_on_data(NETWORK, data(4)):
        raise error
    assert raised.value is error


def test_what_the_user_did_wrong_is_said_as_it_was():
    error = UsageError("theirs")
    with pytest.raises(UsageError, match="theirs"), blamed_on_data(NETWORK, data(5)):
        raise error
