"""What a user can do wrong: one sentence on standard error, the right exit code, and nothing written."""

import json
import struct
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cli import networks
from cli.networks import FAST, build, listing, node, save


@pytest.fixture
def refused(amq, tmp_path):
    """Runs a command that must fail; gives its one sentence. Everything is in tmp_path, which must not change."""

    def run(*arguments, code=2, names=()):
        before = listing(tmp_path)
        ran = amq(*arguments)
        lines = [line for line in ran.err.splitlines() if not line.endswith(" ...")]
        assert ran.code == code, ran.err
        assert len(lines) == 1, ran.err
        assert lines[0].startswith(f"amq {arguments[0]}: "), lines[0]
        assert "Traceback" not in ran.err
        for name in names if isinstance(names, (list, tuple)) else [names]:
            assert str(name) in lines[0], lines[0]
        assert listing(tmp_path) == before
        return lines[0]

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.onnx"


def quantize(model, out, data, *more):
    return ["quantize", model, "-o", out, "--size", "0.5", "--data", data, *FAST, *more]


# The model.


def test_missing_model(refused, case, tmp_path, out):
    gone = tmp_path / "gone.onnx"
    others = [["inspect", gone], ["sensitivity", gone, "--random"], ["frontier", gone, case.table]]
    others += [["apply", gone, case.plan, "-o", out], ["verify", gone, case.model, "--data", case.data]]
    others += [["verify", case.model, gone, "--data", case.data]]
    for command in (quantize(gone, out, case.data), *others):
        refused(*command, names=gone)


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_model(refused, case, tmp_path, out, share):
    cut = tmp_path / "cut.onnx"
    content = case.model.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    refused(*quantize(cut, out, case.data), names=cut)
    refused("inspect", cut, names=cut)


@pytest.mark.parametrize("text", ["this is not a model\n", '{"a": 1}', "\n", "\x00\x01\x02"])
def test_text_for_a_model(refused, case, tmp_path, out, text):
    path = tmp_path / "text.onnx"
    path.write_text(text)
    refused(*quantize(path, out, case.data), names=path)


def test_a_folder_for_a_model(refused, case, tmp_path, out):
    refused(*quantize(tmp_path, out, case.data), names=tmp_path)


def test_empty_graph(refused, case, tmp_path, out):
    path = save(build([], {"x": [1]}, {}), tmp_path / "empty.onnx")
    refused(*quantize(path, out, case.data), names=[path, "empty"])


def test_invalid_graph(refused, case, tmp_path, out):
    nodes = [node("Gemm", "absent w", "y")]
    path = save(build(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": networks.noise(0, 4, 4)}), tmp_path / "m.onnx")
    refused(*quantize(path, out, case.data), names=path)


def test_unknown_operator(amq, refused, tmp_path, out, read_json):
    nodes = [node("Gemm", "x w", "h"), helper.make_node("Swish9", ["h"], ["y"], name="activation_7", domain="com.acme")]
    model = build(nodes, {"x": ["n", 4]}, {"y": ["n", 64]}, {"w": networks.noise(0, 4, 64)})
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4))
    for command in (quantize(path, out, tmp_path / "d.npz"), ["sensitivity", path, "--data", tmp_path / "d.npz"]):
        refused(*command, names=["Swish9", "com.acme", "activation_7"])
    summary = tmp_path / "i.json"
    ran = amq("inspect", path, "--json", summary)
    assert ran.code == 0, ran.err
    entry = {"operator": "Swish9", "domain": "com.acme", "opset": 1, "node": "activation_7"}
    assert read_json(summary)["unsupported_operators"] == [entry]
    assert "Swish9" in ran.out
    assert "activation_7" in ran.out


def test_no_quantizable_layer(refused, tmp_path, out):
    path = save(build([node("Relu", "x", "y")], {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4))
    refused(*quantize(path, out, tmp_path / "d.npz"), names="no layer")
    refused("inspect", path, names="no layer")


def test_float16_weights(refused, tmp_path, out):
    kind = TensorProto.FLOAT16
    weight = networks.noise(0, 4, 64).astype(np.float16)
    model = build([node("Gemm", "x w", "y")], {"x": (kind, ["n", 4])}, {"y": (kind, ["n", 64])}, {"w": weight})
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4).astype(np.float16))
    refused(*quantize(path, out, tmp_path / "d.npz"), names=["'w'", "float16", "float32"])


def test_a_quantized_model(amq, refused, case, tmp_path, out):
    quantized = tmp_path / "q.onnx"
    assert amq("quantize", case.model, "-o", quantized, "--size", "0.5", "--from-sensitivity", case.table).code == 0
    refused(*quantize(quantized, out, case.data), names=["quantized already", "QuantizeLinear"])
    refused("inspect", quantized, names="quantized already")
    assert amq("verify", case.model, quantized, "--data", case.data).code == 0


def test_external_data_missing_or_outside(refused, case, tmp_path, out):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(networks.conv_net(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    (folder / "m.data").rename(tmp_path / "m.data")
    refused(*quantize(path, out, case.data), names="m.data")
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../m.data"
    path.write_bytes(model.SerializeToString())
    refused(*quantize(path, out, case.data), names=["../m.data", "outside"])


# The data.


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


# Options.


def test_folder_of_the_output_does_not_exist(refused, case, tmp_path, out):
    gone = tmp_path / "gone" / "file"
    refused(*quantize(case.model, gone, case.data), names=["-o", gone])
    for option in ("--save-plan", "--save-sensitivity", "--report", "--json"):
        refused(*quantize(case.model, out, case.data, option, gone), names=[option, gone])
    refused("sensitivity", case.model, "-o", gone, "--data", case.data, names=["-o", gone])
    refused("apply", case.model, case.plan, "-o", gone, names=["-o", gone])
    refused("inspect", case.model, "--json", gone, names=["--json", gone])
    refused("frontier", case.model, case.table, "--json", gone, names=["--json", gone])
    refused("verify", case.model, case.model, "--data", case.data, "--json", gone, names=["--json", gone])
    refused("export", "torch.nn:Identity", "-o", gone, names=["-o", gone])


def test_output_is_a_folder(refused, case, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(*quantize(case.model, folder, case.data), names=["-o", folder])
    refused("apply", case.model, case.plan, "-o", folder, names=["-o", folder])


def test_output_missing(refused, case, tmp_path):
    asked = ["--size", "0.5", "--data", case.data]
    refused("quantize", case.model, *asked, names="-o")
    refused("apply", case.model, case.plan, names="-o")
    refused("export", "torch.nn:Identity", names="-o")


@pytest.mark.parametrize("size", ["4", "1.5", "abc", "-1", "0", "0.0", "150%", "0%", "nan", "1e6", "4 TB", "", "-0.5"])
def test_size_that_is_none(refused, case, out, size):
    refused("quantize", case.model, "-o", out, f"--size={size}", "--data", case.data, names=["--size", f"'{size}'"])


def test_size_missing(refused, case, out):
    refused("quantize", case.model, "-o", out, "--data", case.data, names="--size")


@pytest.mark.parametrize("size", ["0B", "0.4B", "1B", "0.00001"])
def test_size_too_small(refused, case, out, size):
    asked = ["--size", size, "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, *asked, code=3, names="the smallest")


@pytest.mark.parametrize("option", ["--bits", "--activation-bits"])
@pytest.mark.parametrize("bits", ["0-9", "x", "0", "17", "8-2", "4,,8", "", "-4", "4.5", "2-", "²"])
def test_bits_that_are_none(refused, case, out, option, bits):
    asked = [f"{option}={bits}", "--from-sensitivity", case.table, "--activation-average", "8"]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *asked, names=[option, f"'{bits}'"])


@pytest.mark.parametrize("option", ["--bits", "--activation-bits"])
def test_bits_that_the_target_can_not_write(refused, case, out, option):
    asked = [option, "9", "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *asked, names=[option, "9 bits", "'onnxruntime'"])


def test_activations_of_one_bit(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--activation-bits", "1"), names="--activation-bits")


def test_several_activation_widths_need_an_average(refused, case, out):
    more = ["--activation-bits", "4-8"]
    refused(*quantize(case.model, out, case.data, *more), names=["--activation-bits", "--activation-average"])
    refused("frontier", case.model, case.table, *more, names="--activation-average")
    more = ["--activation-bits", "float", "--activation-average", "5"]
    refused(*quantize(case.model, out, case.data, *more), names="--activation-average")


@pytest.mark.parametrize("average", ["nan", "inf", "-inf", "x"])
def test_activation_average_that_is_none(refused, case, out, average):
    more = ["--activation-bits", "4-8", f"--activation-average={average}", "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *more, names="--activation-average")


def test_exclude_that_matches_nothing_or_everything(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--exclude", "nosuch"), names=["--exclude", "nosuch"])
    refused(*quantize(case.model, out, case.data, "--exclude", "w["), names=["--exclude", "w["])
    refused("inspect", case.model, "--exclude", "nosuch", names=["--exclude", "nosuch"])
    refused(*quantize(case.model, out, case.data, "--exclude", "."), names="--exclude")


@pytest.mark.parametrize("opset", ["12", "0", "-3", "999", "x"])
def test_opset_that_is_none(refused, case, out, opset):
    refused(*quantize(case.model, out, case.data, f"--opset={opset}"), names="opset")


@pytest.mark.parametrize(
    "option",
    [
        "--max-probes=1",
        "--relative-error=0",
        "--relative-error=nan",
        "--curvature-samples=0",
        "--limit=0",
        "--limit=-3",
        "--device=tpu9",
        "--device=cuda",
        "--metric=top3",
        "--loss=hinge",
        "--provider=abacus",
        "--seed=x",
        "--max-drop=x",
        "--max-drop=nan",
        "--seed=-1",
        "--unheard-of",
    ],
)
def test_options_out_of_range(refused, case, out, option):
    refused(*quantize(case.model, out, case.data, option), names=option.split("=")[0])


def test_limits_of_verify(refused, case):
    for limit in ("0", "-3"):
        refused("verify", case.model, case.model, "--data", case.data, f"--limit={limit}", names="--limit")


@pytest.mark.parametrize("count", ["0", "-2"])
def test_random_of_no_samples(refused, case, out, count):
    refused("quantize", case.model, "-o", out, "--size", "0.5", f"--random={count}", names="--random")


def test_random_and_data(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--random"), names=["--random", "--data"])


def test_random_needs_fixed_sizes(refused, tmp_path, out):
    nodes = [node("MatMul", "x w", "y")]
    model = build(nodes, {"x": ["n", "length", 8]}, {"y": ["n", "length", 64]}, {"w": networks.noise(0, 8, 64)})
    path = save(model, tmp_path / "m.onnx")
    refused("quantize", path, "-o", out, "--size", "0.5", "--random", names=["--random", "'x'"])


def test_a_gate_without_anything_to_verify_on(refused, case, out):
    asked = ["--size", "0.5", "--from-sensitivity", case.table, "--max-drop", "0.01"]
    refused("quantize", case.model, "-o", out, *asked, names="--max-drop")


def test_neither_a_size_nor_a_drop(refused, case, out):
    refused("quantize", case.model, "-o", out, "--data", case.data, names=["--size", "--max-drop"])


def test_a_search_without_anything_to_verify_on(refused, case, out):
    refused("quantize", case.model, "-o", out, "--from-sensitivity", case.table, "--max-drop=.1", names="--max-drop")


@pytest.mark.parametrize(
    "more", [("--sensitivity", "gauss-newton"), ("--sensitivity", "norm"), ("--granularity=channel",)]
)
def test_losses_of_learned_rounding_where_none_are_measured(refused, case, out, more):
    asked = ["--data", case.data, "--rounding", "learned", *more]
    for command in (["quantize", case.model, "-o", out, "--size", "0.5"], ["sensitivity", case.model]):
        refused(*command, *asked, names=["--rounding", "--sensitivity hybrid"])


def test_channels_that_the_table_or_the_target_lacks(refused, case, out):
    asked = ["--size", "0.5", "--from-sensitivity", case.table, "--granularity", "channel"]
    refused("quantize", case.model, "-o", out, *asked, names=["'w1'", "--granularity"])
    refused("quantize", case.model, "-o", out, *asked, "--target", "standard", names=["--granularity", "'standard'"])


@pytest.mark.parametrize(
    ("widths", "named"), [([4, 2, 3], ["'w1'", "3 widths", "16 channels"]), ([4, "x"], ["'w1'", "'x'"]), ([], ["'w1'"])]
)
def test_widths_of_channels_that_do_not_fit(refused, case, out, tmp_path, widths, named):
    body = json.loads(case.plan.read_text())
    body["weights"]["w1"] = widths
    plan = tmp_path / "p.json"
    plan.write_text(json.dumps(body))
    refused("apply", case.model, plan, "-o", out, names=named)


def test_a_gate_on_decibels(refused, case, out):
    more = ["--metric", "sqnr", "--max-drop", "1"]
    refused(*quantize(case.model, out, case.data, *more), names=["--max-drop", "sqnr"])


def test_no_command(amq):
    for arguments in ([], ["quantise"], ["quantize"]):
        ran = amq(*arguments)
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1
        assert ran.err.startswith("amq")


@pytest.mark.parametrize("entry", ["abc", "", "=1"])
def test_session_option_without_a_value(refused, case, entry):
    refused(
        "verify", case.model, case.model, "--data", case.data, f"--session-option={entry}", names="--session-option"
    )


def test_threads_below_none(refused, case):
    refused("verify", case.model, case.model, "--data", case.data, "--threads=-1", names="--threads")


def test_frontier_of_too_few_points(refused, case):
    refused("frontier", case.model, case.table, "--points", "1", names="--points")


# Scripts.


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


# Plans and tables.


@pytest.fixture
def plan(case, tmp_path, read_json):
    """Writes plan.json after a change of its contents."""

    def write(change):
        body = read_json(case.plan)
        change(body)
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(body))
        return path

    return write


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"plan"', "{}", '{"format": "amq-plan"}', "\x00"])
def test_broken_plan(refused, case, tmp_path, out, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    refused("apply", case.model, path, "-o", out, names=path)


def test_no_plan(refused, case, tmp_path, out):
    refused("apply", case.model, tmp_path / "gone.json", "-o", out, names="gone.json")
    refused("apply", case.model, tmp_path, "-o", out, names=tmp_path)
    refused("apply", case.model, case.model, "-o", out, names=case.model)
    refused("apply", case.model, case.table, "-o", out, names=["amq-plan", case.table])


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_plan_of_another_version(refused, case, out, plan, version):
    path = plan(lambda body: body.update(version=version))
    refused("apply", case.model, path, "-o", out, names=[path, "version"])


@pytest.mark.parametrize("bits", [17, 0, -1, 4.5, "4", None, True, [4, None]])
def test_plan_with_impossible_widths(refused, case, out, plan, bits):
    path = plan(lambda body: body["weights"].update(w2=bits))
    refused("apply", case.model, path, "-o", out, names=[path, "'w2'"])
    path = plan(lambda body: body["activations"]["r1"].update(bits=bits))
    refused("apply", case.model, path, "-o", out, names=[path, "'r1'"])


def test_plan_with_widths_that_the_target_can_not_write(refused, case, out, plan):
    path = plan(lambda body: body["weights"].update(w2=9))
    refused("apply", case.model, path, "-o", out, names=["'w2'", "9 bits", "'onnxruntime'"])
    path = plan(lambda body: body["activations"]["r1"].update(bits=16))
    refused("apply", case.model, path, "-o", out, names=["'r1'", "16 bits", "'onnxruntime'"])


@pytest.mark.parametrize("expected", [1.0, [], [[1.0]], "x", [1.0, [2.0]], [[[[float("inf")]]]], {"a": 1}])
def test_plan_with_expected_inputs_that_do_not_fit(refused, case, out, plan, read_json, expected):
    layers = read_json(case.plan)["expected_inputs"]
    assert layers
    path = plan(lambda body: body["expected_inputs"].update({next(iter(layers)): expected}))
    refused("apply", case.model, path, "-o", out, names="expected inputs" if is_array(expected) else [path])


@pytest.mark.parametrize("scales", [[0.1], [], [-1.0], [float("nan")], 0.1, "x", [[0.1]]])
def test_plan_with_scales_that_do_not_fit(refused, case, out, plan, read_json, scales):
    bits = str(read_json(case.plan)["weights"]["w2"])
    path = plan(lambda body: body["scales"]["w2"].update({bits: scales}))
    refused("apply", case.model, path, "-o", out, names="'w2'" if scales in ([0.1], []) else [path])


def is_array(values):
    try:
        return bool(np.isfinite(np.asarray(values, np.float32)).all())
    except (TypeError, ValueError):
        return False


def test_plan_with_one_bit_for_an_activation(refused, case, out, plan):
    path = plan(lambda body: body["activations"]["r1"].update(bits=1))
    refused("apply", case.model, path, "-o", out, names=[path, "'r1'"])


@pytest.mark.parametrize("kind", ["weights", "activations"])
@pytest.mark.parametrize("name", ["nosuch", "scores", "b1", "other kind"])
def test_plan_with_an_unknown_site(refused, case, out, plan, kind, name):
    if name == "other kind":
        name = {"weights": "r1", "activations": "w2"}[kind]
    entry = 4 if kind == "weights" else {"bits": 8, "range": [0, 1]}
    path = plan(lambda body: body[kind].update({name: entry}))
    refused("apply", case.model, path, "-o", out, names=f"'{name}'")


@pytest.mark.parametrize("ends", [[1, 0], [0, None], [0], ["a", "b"], [0, float("nan")], [0, float("inf")], 3])
def test_plan_with_impossible_ranges(refused, case, out, plan, ends):
    path = plan(lambda body: body["activations"]["r1"].update(range=ends))
    refused("apply", case.model, path, "-o", out, names=path)


@pytest.mark.parametrize("key", ["model", "ranges", "weights", "activations"])
def test_plan_without_a_field(refused, case, out, plan, key):
    path = plan(lambda body: body.pop(key))
    refused("apply", case.model, path, "-o", out, names=[path, key])


def test_plan_with_unknown_ranges(refused, case, out, plan):
    path = plan(lambda body: body.update(ranges="guess"))
    refused("apply", case.model, path, "-o", out, names=[path, "guess"])


def test_plan_and_table_of_another_model(refused, case, tmp_path, out):
    model = networks.conv_net()
    values = networks.conv_constants()["w2"].copy()
    values[0, 0, 0, 0] += 1e-3
    (place,) = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name == "w2"]
    model.graph.initializer[place].CopyFrom(numpy_helper.from_array(values, "w2"))
    other = save(model, tmp_path / "other.onnx")
    refused("apply", other, case.plan, "-o", out, names=[case.plan, "another model"])
    asked = ["--size", "0.5", "--from-sensitivity", case.table]
    refused("quantize", other, "-o", out, *asked, names="another model")
    refused("frontier", other, case.table, names="another model")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "amq-sensitivity"}'])
def test_broken_table(refused, case, tmp_path, out, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    refused("quantize", case.model, "-o", out, "--size", "0.5", "--from-sensitivity", path, names=path)
    refused("frontier", case.model, path, names=path)


IMPOSSIBLE = {
    "version": lambda body: body.update(version=2),
    "no weights": lambda body: body.pop("weights"),
    "empty row": lambda body: body["weights"].update(w2={}),
    "trace nan": lambda body: body["weights"]["w2"].update(trace=float("nan")),
    "trace text": lambda body: body["weights"]["w2"].update(trace="much"),
    "error inf": lambda body: body["weights"]["w2"]["squared_error"].update({"4": float("inf")}),
    "error negative": lambda body: body["weights"]["w2"]["squared_error"].update({"4": -1}),
    "no elements": lambda body: body["weights"]["w2"].update(shape=[0, 3]),
    "perturbation nan": lambda body: body["activations"]["r1"]["perturbation"].update({"8": float("nan")}),
    "range nan": lambda body: body["activations"]["r1"]["ranges"].update({"8": [0, float("nan")]}),
    "range turned": lambda body: body["activations"]["r1"]["ranges"].update({"8": [1, 0]}),
    "range missing": lambda body: body["activations"]["r1"]["ranges"].pop("8"),
    "activation of nothing": lambda body: body["activations"]["r1"].update(elements=0),
    "ranges": lambda body: body.update(ranges="guess"),
    "loss": lambda body: body.update(loss="softmax"),
    "scale of zero": lambda body: body["scales"]["w2"].update({"4": [0.0]}),
    "unknown field": lambda body: body.update(surprise=1),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_table_with_impossible_entries(refused, case, tmp_path, out, read_json, change):
    body = read_json(case.table)
    change(body)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(body))
    refused("quantize", case.model, "-o", out, "--size", "0.5", "--from-sensitivity", path, names=path)


def test_table_without_the_width(amq, refused, case, tmp_path, out, read_json):
    body = read_json(case.table)
    for row in body["weights"].values():
        del row["squared_error"]["5"], row["loss"]["5"]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(body))
    asked = ["--size", "0.5", "--from-sensitivity", path]
    refused("quantize", case.model, "-o", out, *asked, names=["5", "--bits"])
    refused("quantize", case.model, "-o", out, *asked, "--bits", "1,4", names=["1-bit", "--bits"])
    refused("quantize", case.model, "-o", out, *asked, "--bits", "4", "--activation-bits", "3", names="3-bit")
    assert amq("quantize", case.model, "-o", out, *asked, "--bits", "2-4,6-8").code == 0
