"""Reading and writing .onnx files, with their external data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper

from amq_onnx.errors import ModelError, UsageError, first_line
from amq_onnx.model.node_order import sort_nodes
from amq_onnx.passes.subgraphs import subgraphs
from amq_onnx.skeleton import check_whole, fits_one_message, skeleton, without_initializers

_EXTERNAL_TENSOR_BYTES = 1024
# Characters that file systems let a name have.
_LONGEST_NAME = 255
# Before this version of the format each initializer had to be an input as well, that callers could override; what
# passes make of such a file is no longer one.
_CONSTANT_INITIALIZERS = 4


def read_model(path: Path) -> onnx.ModelProto:
    """The model in `path`, with its external data loaded into it.

    Raises ModelError for a file that isn't there, isn't ONNX, is cut short, has no nodes, or whose external
    data lies outside its folder.
    """
    if not path.is_file():
        raise ModelError(f"there is no model file '{path}'")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"'{path}' is not an ONNX model, or is cut short") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it holds no graph or names no operator set")
    if not model.graph.node:
        raise ModelError(f"the graph of '{path}' is empty: there is nothing to quantize")
    for location in external_files(path, model):
        if not location.is_file():
            raise ModelError(f"'{path}' needs the external data file '{location}', which isn't there")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"the external data of '{path}' can't be read: {error}") from error
    _shorten_domains(model)
    try:
        sort_nodes(model)
        _name_output_shapes(model)
        check_whole(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, EncodeError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(f"'{path}' is not a valid ONNX model: {reason}") from error
    model.ir_version = max(model.ir_version, _CONSTANT_INITIALIZERS)
    return model


def _shorten_domains(model: onnx.ModelProto) -> None:
    """Write the standard operators' domain as '': 'ai.onnx' is the same to onnxruntime, and unknown to onnx."""
    graphs = [model.graph, *subgraphs(model.graph)]
    graphs += [inner for function in model.functions for inner in subgraphs(function)]
    nodes = [node for part in (*graphs, *model.functions) for node in part.node]
    imports = [entry for part in (model, *model.functions) for entry in part.opset_import]
    for named in (*nodes, *imports):
        if named.domain == "ai.onnx":
            named.ClearField("domain")


def _name_output_shapes(model: onnx.ModelProto) -> None:
    """Give outputs without a shape the one that follows from the graph: ONNX requires it, onnxruntime doesn't."""
    lacking = [
        value
        for value in model.graph.output
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    if lacking:
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(skeleton(model)).graph.output}
        for value in lacking:
            value.CopyFrom(inferred[value.name])


def external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The external data files that `model`, read from `path` without them, names.

    Raises ModelError where one lies outside the model's folder: absolute paths, '..' and links that lead out
    are refused, since a model is untrusted input.
    """
    folder = path.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        target = folder / location
        if Path(location).is_absolute() or not target.resolve().is_relative_to(folder):
            raise ModelError(
                f"tensor '{tensor.name}' of '{path}' keeps its data in '{location}', outside the model's folder"
            )
        found[target] = None
    return list(found)


def file_bytes(path: Path) -> int:
    """Size of the model in `path` with its external data."""
    size = path.stat().st_size
    # Only the names of the external files are read, not their contents.
    model = onnx.load_model(path, load_external_data=False)
    return size + sum(file.stat().st_size for file in external_files(path, model))


def mean_weight_bits(model: onnx.ModelProto) -> float:
    """Bits of a float weight as `model` stores it, in the mean over its initializers of two dimensions or more."""
    bits = {onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.BFLOAT16: 16, onnx.TensorProto.FLOAT: 32}
    values = [
        (prod(tensor.dims), bits[tensor.data_type])
        for tensor in model.graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type in bits
    ]
    total = sum(count for count, _ in values)
    return sum(count * each for count, each in values) / total if total else 32.0


def fingerprint(model: onnx.ModelProto) -> str:
    """A hash of the model's graph and weights (sha256, hex), the same for the same file."""
    digest = hashlib.sha256()
    for initializer in model.graph.initializer:
        digest.update(initializer.name.encode())
        digest.update(initializer.raw_data or initializer.SerializeToString(deterministic=True))
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    return digest.hexdigest()


def require_folder(path: Path, option: str) -> None:
    """Raise UsageError if the folder that `path` is to be written to doesn't exist."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {option} '{path}' doesn't exist: create '{path.parent}' first")
    if path.is_dir():
        raise UsageError(f"{option} '{path}' is a folder: name a file")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well, and vanishes otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def model_bytes(model: onnx.ModelProto) -> bytes:
    """The file that `model` is written as: the same bytes for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def written_bytes(model: onnx.ModelProto) -> int:
    """Bytes that `write_model` writes; of a model above 2 GB at most, since names of files are in it."""
    if fits_one_message(model):
        return len(model_bytes(model))
    moved = sum(len(tensor.raw_data) for tensor in _moved(model))
    return moved + len(model_bytes(_beside_data(model, "x" * _LONGEST_NAME)))


def write_model(model: onnx.ModelProto, path: Path) -> int:
    """Write `model` to `path`, whole or not at all, and return the bytes written.

    Above 2 GB, which protobuf can't serialize, the tensors go to `path`.data, which is written first.
    """
    if fits_one_message(model):
        with whole_file(path) as temporary:
            temporary.write_bytes(model_bytes(model))
        return path.stat().st_size
    data = path.with_name(path.name + ".data")
    with whole_file(data) as temporary, temporary.open("wb") as stream:
        for tensor in _moved(model):
            stream.write(tensor.raw_data)
    with whole_file(path) as temporary:
        temporary.write_bytes(model_bytes(_beside_data(model, data.name)))
    return path.stat().st_size + data.stat().st_size


def _moved(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that leave a model of more than 2 GB, in the order of its data file."""
    return [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _EXTERNAL_TENSOR_BYTES]


def _beside_data(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """`model` with its tensors in the file `location`, one behind the other."""
    beside = without_initializers(model)
    moved = {tensor.name for tensor in _moved(model)}
    offset = 0
    for tensor in model.graph.initializer:
        if tensor.name not in moved:
            beside.graph.initializer.append(tensor)
            continue
        entry = beside.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", len(tensor.raw_data))):
            entry.external_data.add(key=key, value=str(value))
        offset += len(tensor.raw_data)
    return beside


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
