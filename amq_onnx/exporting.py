"""PyTorch models as ONNX files: the exported graph is what sensitivity is computed from."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from amq_onnx.errors import UsageError
from amq_onnx.model.file import read_model, write_model
from amq_onnx.passes.strip import drop_source_lines


def export(
    model: Any,
    path: Path,
    *,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    opset: int = 18,
    dynamic_batch: bool = True,
) -> bool:
    """Write a torch.nn.Module in evaluation mode to `path`, by torch.onnx.export; whether its batch is free.

    model: a module, or a pair of it and a tuple of example inputs. inputs: names and shapes of float inputs; where
    the model brings examples they only name them. outputs: names of all or of the first ones. dynamic_batch: leave the
    first dimension of every input free; where the model computes with its size as a number, as len(x) does, torch fixes
    it, and the file has the batch of the examples.

    Raises UsageError where the model isn't one, has no inputs, or torch can't export it, to this opset for one.
    """
    module, examples = model if isinstance(model, tuple) else (model, None)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"the callable returned a {type(module).__name__}, not a torch.nn.Module")
    shapes = dict(inputs or {})
    if examples is None:
        if not shapes:
            raise UsageError("the callable returned no example inputs: give --input NAME=1x3x224x224")
        examples = tuple(torch.zeros(shape) for shape in shapes.values())
    names = list(shapes) if len(shapes) == len(examples) else None

    def written(examples: Sequence[torch.Tensor], dynamic: tuple[Any, ...] | None) -> Any:
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(examples),
                str(temporary),
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=list(outputs) or None,
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise UsageError(f"torch can't export the model: {_reason(error)}") from error
        assert program is not None
        return program.model.graph

    # torch reports a failure in dozens of lines on standard error; the sentence below says what matters of it.
    silence = io.StringIO()
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stderr(silence),
        contextlib.redirect_stdout(silence),
    ):
        # Above 2 GB torch writes a second file, with a name that follows from the first.
        temporary = Path(folder) / path.name
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            free = False
            if dynamic_batch:
                # A batch of one is taken for a constant by torch.export, so the example has two samples.
                batch = torch.export.Dim("batch")
                dynamic = tuple({0: batch} if example.ndim else {} for example in examples)
                graph = written([_two_samples(example) for example in examples], dynamic)
                free = not any(value.shape and isinstance(value.shape[0], int) for value in graph.inputs)
            if not free:
                graph = written(examples, None)
        finally:
            logging.disable(logging.NOTSET)
        if len(set(outputs)) < len(outputs) or len(outputs) > len(graph.outputs):
            count = len(graph.outputs)
            raise UsageError(f"--output-name: {len(outputs)} names for {count} outputs: give each its own")
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise UsageError(
                f"torch made no valid model of --opset {opset}, give a newer one: {_reason(error)}"
            ) from error
        exported = read_model(temporary)
    drop_source_lines(exported)
    write_model(exported, path)
    return free


def _reason(error: BaseException) -> str:
    """The first line of the error that started it, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _two_samples(example: torch.Tensor) -> torch.Tensor:
    return torch.cat([example[:1], example[:1]]) if example.ndim and len(example) < 2 else example
