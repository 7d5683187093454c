"""Calibration data: what is accepted, in what order it comes, and what each refusal says."""

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import model, node

from amq_onnx.errors import DataError
from amq_onnx.model.data import Dataset, open_data, reader_data
from amq_onnx.model.inputs import input_specs


def network(batch="n", **more):
    nodes = [node("Relu", "x", "y"), *(node("Identity", name, f"{name}_out") for name in more)]
    outputs = {"y": [batch, 3], **{f"{name}_out": value for name, value in more.items()}}
    return model(nodes, {"x": [batch, 3], **more}, outputs)


def rows(count, start=0):
    """Sample i holds the number i."""
    return (np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(3, np.float32)).astype(np.float32)


def dataset(*batches, proto=None):
    return Dataset(lambda: iter(batches), input_specs(proto or network()), "the data")


def first_column(batches):
    return [batch["x"][:, 0].tolist() for batch in batches]


def numbers(batches):
    return [number for column in first_column(batches) for number in column]


@pytest.fixture
def save(tmp_path):
    def write(name="data.npz", **arrays):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **arrays)
        return str(path)

    return write


class TestOrder:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
    @pytest.mark.parametrize("parts", [[10], [1, 9], [3, 3, 4], [1] * 10])
    def test_batches_keep_the_order_of_the_source(self, size, parts):
        starts = np.cumsum([0, *parts])[:-1]
        data = dataset(*({"x": rows(n, s), "labels": np.arange(s, s + n)} for n, s in zip(parts, starts, strict=True)))
        batches = list(data.batches(size))
        assert [len(batch["x"]) for batch in batches[:-1]] == [size] * (10 // size - (10 % size == 0))
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), rows(10))
        np.testing.assert_array_equal(np.concatenate([batch["labels"] for batch in batches]), np.arange(10))

    @pytest.mark.parametrize("most", [1, 4, 6, 9, 50])
    def test_first_takes_the_first(self, most):
        data = Dataset(lambda: iter([{"x": rows(5)}, {"x": rows(5, 5)}]), input_specs(network()), "the data")
        found = numbers(data.first(most).batches(3))
        assert found == list(range(min(most, 10)))
        assert data.first(most).samples() == min(most, 10)
        assert data.first(most).first(2).samples() == min(most, 2)
        assert data.first(None).samples() == 10

    def test_no_more_of_the_source_is_read_than_needed(self):
        def source():
            yield {"x": rows(4)}
            raise AssertionError("read too far")

        data = Dataset(source, input_specs(network()), "the data")
        assert numbers(data.first(4).batches(2)) == [0, 1, 2, 3]

    def test_every_pass_starts_again(self):
        data = Dataset(lambda: iter([{"x": rows(3)}]), input_specs(network()), "the data")
        assert first_column(data.batches(2)) == first_column(data.batches(2)) == [[0, 1], [2]]

    def test_a_fixed_batch_of_the_model_wins_and_a_rest_is_left_out(self):
        data = dataset({"x": rows(7)}, {"x": rows(3, 7)}, proto=network(4))
        assert first_column(data.batches(64)) == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_fewer_samples_than_a_fixed_batch_are_refused(self):
        with pytest.raises(DataError, match="3 samples, fewer than the model's fixed batch of 4"):
            list(dataset({"x": rows(3)}, proto=network(4)).batches(64))

    def test_a_scalar_input_goes_with_every_batch(self):
        data = dataset({"x": rows(3), "t": np.float32(0.5)}, proto=network(t=[]))
        assert [float(batch["t"]) for batch in data.batches(2)] == [0.5, 0.5]

    def test_labels_are_found(self):
        data = Dataset(lambda: iter([{"x": rows(2), "labels": np.arange(2)}]), input_specs(network()), "the data")
        assert data.has_labels()
        assert not dataset({"x": rows(2)}).has_labels()

    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("labelled", [0, 1])
    def test_labels_in_some_batches_only_are_refused(self, labelled, size):
        batches = [{"x": rows(2)}, {"x": rows(2)}]
        batches[labelled]["labels"] = np.arange(2)
        with pytest.raises(DataError, match="labels"):
            list(dataset(*batches).batches(size))


MISFITS = {
    "missing": ({"image": rows(2)}, "no array for the model's input 'x' \\(it has 'image'\\)"),
    "nothing": ({}, "it has nothing"),
    "wrong shape": ({"x": rows(2)[:, :2]}, "shape 2x2, but the model's input is \\?x3"),
    "wrong rank": ({"x": rows(2)[None]}, "shape 1x2x3"),
    "complex": ({"x": rows(2).astype(np.complex64)}, "complex64"),
    "text": ({"x": np.array([["a", "b", "c"]])}, "but the model's input is float32"),
    "objects": ({"x": np.array([[None, 1, 2]], object)}, "Python objects"),
    "NaN": ({"x": np.array([[0, np.nan, 1]], np.float32)}, "NaN or infinity"),
    "infinity": ({"x": np.array([[0, np.inf, 1]], np.float32)}, "NaN or infinity"),
    "too large for float32": ({"x": np.array([[0, 1e300, 1]])}, "NaN or infinity"),
    "lengths": ({"x": rows(2), "labels": np.arange(3)}, "differ in their number of samples"),
    "empty": ({"x": rows(0)}, "holds no samples"),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.filterwarnings("ignore:overflow")
    @pytest.mark.parametrize(("batch", "message"), MISFITS.values(), ids=MISFITS)
    def test_arrays_that_do_not_fit(self, batch, message):
        with pytest.raises(DataError, match=message):
            list(dataset(batch).batches(2))

    def test_no_batches(self):
        with pytest.raises(DataError, match="the data holds no samples"):
            list(dataset().batches(2))

    def test_floats_for_an_integer_input(self):
        proto = network(ids=(TensorProto.INT64, ["n", 2]))
        with pytest.raises(DataError, match="'ids' of the data is float32, but the model's input is int64"):
            list(dataset({"x": rows(2), "ids": np.ones((2, 2), np.float32)}, proto=proto).batches(2))

    def test_inputs_of_different_lengths(self):
        proto = network(z=["n", 2])
        with pytest.raises(DataError, match="'x' 2, 'z' 3"):
            list(dataset({"x": rows(2), "z": np.ones((3, 2), np.float32)}, proto=proto).batches(2))

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
    def test_other_numbers_are_converted(self, dtype):
        (batch,) = dataset({"x": rows(2).astype(dtype)}).batches(2)
        assert batch["x"].dtype == np.float32
        np.testing.assert_array_equal(batch["x"], rows(2))

    def test_arrays_that_the_model_does_not_know_are_left_out(self):
        (batch,) = dataset({"x": rows(2), "names": np.array(["a", "b"])}).batches(2)
        assert set(batch) == {"x"}


class TestFiles:
    def test_an_npz_file(self, save):
        assert first_column(open_data(save(x=rows(3)), network()).batches(2)) == [[0, 1], [2]]

    def test_a_folder_is_read_in_the_order_of_names(self, save, tmp_path):
        for name, start in (("b", 3), ("a", 0), ("c", 6)):
            save(f"parts/{name}.npz", x=rows(3, start))
        data = open_data(str(tmp_path / "parts"), network())
        assert numbers(data.batches(4)) == list(range(9))

    def test_pickled_objects_are_refused(self, save):
        with pytest.raises(DataError, match=r"can't be read as an \.npz file"):
            open_data(save(x=np.array([{"a": 1}], object)), network())

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"], ids=["empty", "text", "cut short"])
    def test_files_that_are_no_archive(self, content, tmp_path):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"can't be read as an \.npz file"):
            open_data(str(path), network())

    def test_a_plain_array_named_npz(self, tmp_path):
        np.save(tmp_path / "x.npy", rows(2))
        (tmp_path / "x.npy").rename(tmp_path / "x.npz")
        with pytest.raises(DataError, match=r"can't be read as an \.npz file"):
            open_data(str(tmp_path / "x.npz"), network())

    def test_places_without_data(self, tmp_path):
        for where, message in (
            (tmp_path / "none.npz", "no data file"),
            (tmp_path, r"no \.npz file"),
            (tmp_path / "x.csv", "is no data"),
            ("script.py", "is no data"),
        ):
            with pytest.raises(DataError, match=message):
                open_data(str(where), network())

    def test_the_limit_counts_samples(self, save):
        assert open_data(save(x=rows(9)), network(), 4).samples() == 4


class TestScripts:
    @pytest.fixture
    def script(self, tmp_path):
        def write(body, name="feed"):
            path = tmp_path / "loader.py"
            path.write_text("import numpy as np\n" + body)
            return f"{path}:{name}"

        return write

    def test_every_pass_is_the_same_and_reads_small_data_once(self, script):
        body = "def feed():\n    for i in range(3):\n        yield {'x': np.full((2, 3), i, np.float32)}\n"
        body += "    with open(__file__ + '.passes', 'a') as file:\n        file.write('1')\n"
        where = script(body)
        data = open_data(where, network())
        assert first_column(data.batches(3)) == first_column(data.batches(3)) == [[0, 0, 1], [1, 2, 2]]
        assert Path(where.rpartition(":")[0] + ".passes").read_text() == "1"

    def test_what_lies_beside_a_script_can_be_imported(self, script, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path])
        (tmp_path / "beside_this_script.py").write_text("ROWS = 4\n")
        body = (
            "def feed():\n    from beside_this_script import ROWS\n    yield {'x': np.zeros((ROWS, 3), np.float32)}\n"
        )
        assert open_data(script(body), network()).samples() == 4
        found = [folder for folder in sys.path if folder == str(tmp_path.resolve())]
        assert len(found) == 1 and sys.path[-1] == found[0]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("x = 1", "has no function 'feed'"),
            ("feed = 3", "has no function 'feed'"),
            ("def feed(:", "failed on import: SyntaxError"),
            ("import nothing_like_this", "failed on import: ModuleNotFoundError"),
            ("1 / 0", "failed on import: ZeroDivisionError"),
        ],
    )
    def test_scripts_that_can_not_be_used(self, body, message, script):
        with pytest.raises(DataError, match=message):
            open_data(script(body), network())

    def test_a_script_that_is_not_there(self):
        with pytest.raises(DataError, match=r"no script 'nowhere\.py'"):
            open_data("nowhere.py:feed", network())

    @pytest.mark.parametrize(
        "body",
        [
            "def feed():\n    yield np.ones((2, 3), np.float32)\n",
            "def feed():\n    yield {'x': np.ones((2, 3), np.float32)}\n    raise KeyError('oops')\n",
            "def feed():\n    return 3\n",
            "def feed(size):\n    yield {'x': np.ones((2, 3), np.float32)}\n",
        ],
        ids=["arrays", "raises", "not iterable", "needs arguments"],
    )
    def test_functions_that_yield_something_else_or_fail(self, body, script):
        with pytest.raises(DataError, match=r"loader\.py:feed"):
            list(open_data(script(body), network()).batches(2))


class TestOtherSources:
    def test_a_calibration_data_reader_is_read_once_and_kept(self):
        class Reader:
            left = 3

            def get_next(self):
                self.left -= 1
                return {"x": rows(1, 2 - self.left)} if self.left >= 0 else None

        data = reader_data(Reader(), network())
        assert first_column(data.batches(2)) == first_column(data.batches(2)) == [[0, 1], [2]]


def recurrent(batch="n"):
    """Input [samples, 3], state [4, samples, 5] and a rate that all share."""
    nodes = [node("Relu", "x", "y"), node("Identity", "state", "after"), node("Cast", "rate", "z", to=1)]
    inputs = {"x": [batch, 3], "state": [4, batch, 5], "rate": (TensorProto.INT64, [])}
    return model(nodes, inputs, {"y": None, "after": None, "z": None})


def stream(count, rate, start=0):
    state = np.broadcast_to(np.arange(start, start + count, dtype=np.float32)[None, :, None], (4, count, 5))
    return {"x": rows(count, start), "state": state, "rate": np.array(rate)}


class TestSampleAxes:
    @pytest.mark.parametrize("batch", ["n", None, 2], ids=["by name", "free", "fixed"])
    def test_samples_run_along_another_dimension_of_a_state(self, batch):
        assert [spec.sample_axis for spec in input_specs(recurrent(batch))] == [0, 1, None]
        data = dataset(stream(3, 8), stream(3, 8, 3), proto=recurrent(batch))
        found = list(data.batches(2))
        assert [item["state"].shape for item in found] == [(4, 2, 5)] * 3
        assert [item["state"][1, :, 4].tolist() for item in found] == first_column(found) == [[0, 1], [2, 3], [4, 5]]

    def test_what_a_batch_shares_is_never_mixed(self):
        data = dataset(stream(3, 8), stream(3, 16, 3), proto=recurrent())
        found = list(data.batches(2))
        assert [(item["rate"].item(), len(item["x"])) for item in found] == [(8, 2), (8, 1), (16, 2), (16, 1)]
        assert data.samples() == 6

    def test_images_of_several_sizes_are_never_joined(self):
        proto = model([node("Relu", "x", "y")], {"x": ["n", 1, "h", "w"]}, {"y": None})
        sizes = [(4, 6), (4, 6), (5, 6), (4, 6)]
        data = dataset(*({"x": np.zeros((1, 1, *size), np.float32)} for size in sizes), proto=proto)
        assert [item["x"].shape for item in data.batches(8)] == [(2, 1, 4, 6), (1, 1, 5, 6), (1, 1, 4, 6)]

    def test_a_state_with_another_number_of_samples_is_refused(self):
        broken = stream(3, 8) | {"state": np.zeros((4, 2, 5), np.float32)}
        with pytest.raises(DataError, match="'x' 3, 'state' 2"):
            list(dataset(broken, proto=recurrent()).batches(4))
