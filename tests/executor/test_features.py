"""Operators of ai.onnx.ml, beside onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from .graphs import assert_parity, f, model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NAN = float("nan")
gaps = np.array([[1.0, NAN, 3.0], [NAN, 5.0, -1.0]], np.float32)
zeros = np.array([[0.0, 0.0, 0.0], [1.0, -4.0, 2.0], [-3.0, -1.0, -2.0]], np.float32)


@pytest.mark.parametrize(
    ("operator", "arrays", "attributes"),
    [
        ("Scaler", [f(4, 3)], {"offset": [0.5, -1.0, 2.0], "scale": [2.0, 0.25, -1.0]}),
        ("Scaler", [f(4, 3)], {"offset": [0.5], "scale": [2.0]}),
        ("Scaler", [np.arange(6).reshape(2, 3)], {"offset": [0.5], "scale": [2.0]}),
        ("Normalizer", [zeros], {"norm": "MAX"}),
        ("Normalizer", [zeros], {"norm": "L1"}),
        ("Normalizer", [zeros], {"norm": "L2"}),
        ("Normalizer", [zeros[1]], {"norm": "L2"}),
        ("Imputer", [gaps], {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": NAN}),
        ("Imputer", [gaps], {"imputed_value_floats": [7.0], "replaced_value_float": NAN}),
        ("Imputer", [zeros], {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": 0.0}),
        ("Imputer", [np.arange(6).reshape(2, 3)], {"imputed_value_int64s": [7], "replaced_value_int64": 4}),
        ("Binarizer", [f(4, 3)], {"threshold": 0.25}),
        ("ArrayFeatureExtractor", [f(4, 5), np.array([3, 0, 3])], {}),
        ("ArrayFeatureExtractor", [f(5), np.array([1, 4])], {}),
        ("ArrayFeatureExtractor", [f(2, 3, 5), np.array([[2, 4]])], {}),
        ("FeatureVectorizer", [f(4, 2), f(4, 3)], {"inputdimensions": [2, 3]}),
    ],
)
def test_as_onnxruntime(operator, arrays, attributes):
    feeds = {f"x{number}": array for number, array in enumerate(arrays)}
    node = helper.make_node(operator, list(feeds), ["y"], domain="ai.onnx.ml", **attributes)
    kinds = {name: (FLOAT if array.dtype == np.float32 else INT64, array.shape) for name, array in feeds.items()}
    output = INT64 if operator == "Imputer" and arrays[0].dtype == np.int64 else FLOAT
    proto = model([node], kinds, {"y": output})
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert_parity(proto, feeds, tolerance=1e-6)
