"""Tells data that a model can't run on from a bug of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx

from amq_onnx.errors import AMQError, DataError, first_line
from amq_onnx.model.data import Dataset
from amq_onnx.runtime.session import open_session

_BATCH = 32


@contextmanager
def blamed_on_data(model: onnx.ModelProto, data: Dataset) -> Iterator[None]:
    """What fails inside raises DataError where onnxruntime can't run `model` on `data` either: sizes of free dimensions
    that its operators can't work with, for one. Elsewhere the failure stays what it was."""
    try:
        yield
    except (AMQError, MemoryError):
        raise
    except Exception as error:
        refusal = _refusal(model, data)
        if refusal is None:
            raise
        advice = "give inputs of sizes that it works with"
        raise DataError(f"the model can't run on {data.origin}: {advice}; onnxruntime says: {refusal}") from error


def _refusal(model: onnx.ModelProto, data: Dataset) -> str | None:
    """What onnxruntime says where it can't run `model` on a batch of `data`; None where it can."""
    session = open_session(model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    for batch in data.batches(_BATCH):
        try:
            session.run(None, {name: batch[name] for name in names})
        except Exception as error:  # onnxruntime's errors share no base class
            return first_line(error)
    return None
