"""Data and scripts that a user can't use: one sentence on standard error, the right exit code, and nothing written."""

import struct
import zipfile

import numpy as np
import pytest
from onnx import TensorProto

from cli import networks
from cli.commands import quantize
from cli.networks import build, node, save


@pytest.fixture
def data(tmp_path):
    """Writes an .npz file of arrays."""

    def write(name="d.npz", **arrays):
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write


def test_one_of_two_inputs_missing(refused, tmp_path, out, data):
    model = save(networks.two_inputs(), tmp_path / "m.onnx")
    refused(*quantize(model, out, data(image=networks.images())), names=["'side'", "'image'"])


def test_input_name_missing(refused, case, out, data):
    refused(*quantize(case.model, out, data(images=networks.images())), names=["d.npz", "'image'", "'images'"])


@pytest.mark.parametrize("shape", [(4, 3, 8, 9), (4, 8, 8, 3), (4, 3, 8), (4, 1, 3, 8, 8), (3,), ()])
def test_wrong_shape(refused, case, out, data, shape):
    refused(*quantize(case.model, out, data(image=np.zeros(shape, np.float32))), names=["'image'", "?x3x8x8"])


@pytest.mark.parametrize("dtype", [np.complex64, "U3", bool])
def test_wrong_type(refused, case, out, data, dtype):
    refused(*quantize(case.model, out, data(image=np.zeros((4, 3, 8, 8), dtype))), names=["'image'", "float32"])


def test_floats_for_an_integer_input(refused, tmp_path, out, data):
    nodes = [node("Gather", "table ids", "e"), node("Gemm", "e w", "y")]
    constants = {"table": networks.noise(0, 9, 8), "w": networks.noise(1, 8, 64)}
    model = build(nodes, {"ids": (TensorProto.INT64, ["n"])}, {"y": ["n", 64]}, constants)
    path = save(model, tmp_path / "m.onnx")
    refused(*quantize(path, out, data(ids=np.zeros(4, np.float32))), names=["'ids'", "int64", "float32"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(refused, case, out, data, bad):
    images = networks.images()
    images[17, 1, 2, 3] = bad
    refused(*quantize(case.model, out, data(image=images)), names=["'image'", "NaN"])


def test_float64_too_large_for_the_model(refused, case, out, data, recwarn):
    images = networks.images().astype(np.float64)
    images[0, 0, 0, 0] = 1e300
    refused(*quantize(case.model, out, data(image=images)), names=["'image'", "infinity"])


def test_no_samples(refused, case, out, data):
    refused(*quantize(case.model, out, data(image=networks.images()[:0])), names=["d.npz", "no samples"])


def test_no_arrays(refused, case, out, data):
    refused(*quantize(case.model, out, data()), names=["d.npz", "'image'"])


def test_lengths_that_differ(refused, tmp_path, out, data):
    model = save(networks.two_inputs(), tmp_path / "m.onnx")
    arrays = data(image=networks.images(), side=networks.noise(1, 31, 6))
    refused(*quantize(model, out, arrays), names=["'image' 32", "'side' 31"])


def test_pickled_arrays(refused, case, tmp_path, out):
    marker = tmp_path / "unpickled"

    class Harmful:
        def __reduce__(self):
            return open, (str(marker), "w")

    path = tmp_path / "d.npz"
    np.savez(path, image=np.array([Harmful(), None], dtype=object), allow_pickle=True)
    refused(*quantize(case.model, out, path), names="d.npz")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04K\x01."])
def test_no_npz(refused, case, tmp_path, out, content):
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    refused(*quantize(case.model, out, path), names="d.npz")


def test_npy_named_npz(refused, case, tmp_path, out):
    path = tmp_path / "d.npz"
    with path.open("wb") as stream:
        np.save(stream, networks.images())
    refused(*quantize(case.model, out, path), names="d.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_corrupt_npz(refused, case, tmp_path, out, compressed):
    path = tmp_path / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, image=networks.images())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    middle = len(whole) // 2
    flipped[middle : middle + 64] = bytes(byte ^ 255 for byte in flipped[middle : middle + 64])
    for content in (bytes(flipped), whole[:middle], whole[: len(whole) - 30]):
        path.write_bytes(content)
        refused(*quantize(case.model, out, path), names="d.npz")


def test_npz_whose_array_claims_to_be_huge(refused, case, tmp_path, out):
    path = tmp_path / "d.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 3, 800, 800), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", array)
    refused(*quantize(case.model, out, path), names="d.npz")


def test_no_such_data(refused, case, tmp_path, out):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(*quantize(case.model, out, tmp_path / "gone.npz"), names="gone.npz")
    refused(*quantize(case.model, out, empty), names=empty)
    refused(*quantize(case.model, out, tmp_path / "data.csv"), names="data.csv")
    refused("quantize", case.model, "-o", out, "--size", "0.5", names="--data")
    refused("sensitivity", case.model, names="--data")
    refused("verify", case.model, case.model, names="--data")


@pytest.mark.parametrize("bad", [10, -1, 2**40])
@pytest.mark.parametrize("metric", [None, "top5"])
def test_labels_out_of_range(refused, case, tmp_path, out, data, bad, metric):
    labels = np.zeros(32, np.int64)
    labels[20] = bad
    path = data(image=networks.images(), labels=labels)
    more = [] if metric is None else ["--metric", metric]
    refused(*quantize(case.model, out, path, *more), names=[str(bad), "10 classes"])
    refused("verify", case.model, case.model, "--data", path, *more, names=[str(bad), "10 classes"])


def test_labels_out_of_range_for_the_hessian(refused, case, out, data):
    path = data(image=networks.images(), labels=np.full(32, 10))
    refused(*quantize(case.model, out, path, "--sensitivity", "hessian"), names="label")


@pytest.mark.parametrize("labels", [np.zeros(31, np.int64), np.zeros((32, 2), np.int64), np.int64(3)])
def test_labels_of_another_length(refused, case, out, data, labels):
    refused(*quantize(case.model, out, data(image=networks.images(), labels=labels)), names="labels")


@pytest.mark.parametrize("dtype", [np.float32, "U1"])
def test_labels_that_are_no_numbers_of_classes(refused, case, out, data, dtype):
    refused(*quantize(case.model, out, data(image=networks.images(), labels=np.zeros(32, dtype))), names="labels")


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_labels_missing(refused, case, out, metric):
    refused(*quantize(case.model, out, case.unlabelled, "--metric", metric), names=[metric, "labels"])


def test_labels_missing_for_the_hessian(refused, case, out):
    refused(*quantize(case.model, out, case.unlabelled, "--sensitivity", "hessian"), names="labels")


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


def test_script_without_the_function(refused, case, out, script):
    path = script("batches = 3\n")
    for name in ("batches", "other"):
        refused(*quantize(case.model, out, f"{path}:{name}"), names=[path, name])
        refused(*quantize(case.model, out, case.data, "--metric", f"{path}:{name}"), names=[path, name])
    refused(*quantize(case.model, out, "gone.py:batches"), names="gone.py")
    refused(*quantize(case.model, out, case.data, "--metric", "gone.py:score"), names="gone.py")


def test_script_that_fails_on_import(refused, case, out, script):
    for text in ("import nosuchmodule\n", "def (:\n", "1 / 0\n"):
        path = script(text)
        refused(*quantize(case.model, out, f"{path}:batches"), names=path)


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('disk is full')",
        "yield {'image': np.zeros((4, 3, 8, 8), np.float32)}; raise RuntimeError('disk is full')",
    ],
)
def test_script_that_raises(refused, case, out, script, body):
    path = script(f"import numpy as np\ndef batches():\n    {body}\n")
    refused(*quantize(case.model, out, f"{path}:batches"), names=[path, "disk is full"])


@pytest.mark.parametrize(
    "body", ["return None", "return 3", "return [np.zeros((4, 3, 8, 8))]", "return [None]", "pass"]
)
def test_script_that_gives_no_batches(refused, case, out, script, body):
    path = script(f"import numpy as np\ndef batches():\n    {body}\n")
    refused(*quantize(case.model, out, f"{path}:batches"), names=path)


def test_script_that_needs_arguments(refused, case, out, script):
    path = script("def batches(folder):\n    yield {}\n")
    refused(*quantize(case.model, out, f"{path}:batches"), names=path)


@pytest.mark.parametrize("body", ["raise ValueError('no such class')", "return 'good'", "return None"])
def test_metric_that_fails(refused, case, out, script, body):
    path = script(f"def score(outputs, labels):\n    {body}\n")
    refused(*quantize(case.model, out, case.data, "--metric", f"{path}:score"), names=path)
