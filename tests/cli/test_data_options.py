"""The data of amq quantize: files, folders, scripts, random numbers, labels, several inputs."""

import json

import numpy as np
import onnx

from cli import networks
from cli.networks import FAST, build, listing, node, save


def test_limit_uses_the_first_samples_only(amq, case, tmp_path, read_json):
    with np.load(case.data) as arrays:
        images, labels = arrays["image"], arrays["labels"]
    few = tmp_path / "few.npz"
    np.savez(few, image=images[:5], labels=labels[:5])
    listings = []
    for name, data in (("limited", [case.data, "--limit", "5"]), ("few", [few])):
        folder = tmp_path / name
        folder.mkdir()
        asked = ["--save-sensitivity", folder / "s.json", *FAST]
        ran = amq("quantize", case.model, "-o", folder / "o.onnx", "--size", "0.3", "--data", *data, *asked)
        assert ran.code == 0, ran.err
        listings.append(listing(folder))
        assert json.loads((folder / "s.json").read_text())["samples"] == 5
    assert listings[0] == listings[1]


def test_random_data_say_so(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    asked = ["--random", "6", "--json", summary, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.3", *asked)
    assert ran.code == 0, ran.err
    assert "random" in ran.err
    assert read_json(summary)["verification"]["samples"] == 6
    ran = amq("quantize", case.model, "--dry-run", "--size", "0.3", *asked, "--limit", "4")
    assert read_json(summary)["verification"]["samples"] == 4


def test_sizes_of_random_inputs(amq, tmp_path, read_json):
    nodes = [node("MatMul", "x w", "y")]
    path = save(
        build(nodes, {"x": ["n", "length", 8]}, {"y": None}, {"w": networks.noise(0, 8, 64)}), tmp_path / "m.onnx"
    )
    summary = tmp_path / "s.json"
    asked = ["--size", "0.9", "--random", "6", "--shape", "x=1,5,8", "--json", summary, *FAST]
    ran = amq("quantize", path, "-o", tmp_path / "o.onnx", *asked)
    assert ran.code == 0, ran.err
    assert read_json(summary)["verification"]["samples"] == 6


def test_data_may_be_a_folder_or_a_script(amq, case, tmp_path):
    with np.load(case.data) as arrays:
        images = arrays["image"]
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "1.npz", image=images[:20])
    np.savez(folder / "2.npz", image=images[20:])
    script = tmp_path / "data.py"
    script.write_text(
        "import numpy as np\n"
        "def batches():\n"
        f"    with np.load({str(case.data)!r}) as arrays:\n"
        "        for image in arrays['image']:\n"
        "            yield {'image': image[None]}\n"
    )
    files = []
    for number, data in enumerate((case.unlabelled, folder, f"{script}:batches")):
        out = tmp_path / f"{number}.onnx"
        ran = amq("quantize", case.model, "-o", out, "--size", "0.3", "--data", data, *FAST)
        assert ran.code == 0, ran.err
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


def test_evaluation_data_of_their_own(amq, case, tmp_path, read_json):
    images = networks.images(7, seed=3)
    labels = networks.run_float(networks.conv_net(), {"image": images})["scores"].argmax(1)
    np.savez(tmp_path / "eval.npz", image=images, labels=(labels + 1) % networks.CLASSES)
    summary = tmp_path / "s.json"
    asked = ["--from-sensitivity", case.table, "--eval", tmp_path / "eval.npz", "--json", summary]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.5", *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)["verification"]
    assert (found["samples"], found["float_score"]) == (7, 0)


def test_two_inputs_and_an_integer_output(amq, tmp_path, read_json):
    model = save(networks.two_inputs(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=networks.images(), side=networks.noise(8, 32, 6))
    out, summary = tmp_path / "o.onnx", tmp_path / "s.json"
    asked = ["--data", tmp_path / "d.npz", "--json", summary, *FAST]
    ran = amq("quantize", model, "-o", out, "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert "class" in found["loss"]
    assert found["loss"]["class"].startswith("left out")
    assert set(found["verification"]["outputs"]) == {"scores"}
    assert [output.name for output in onnx.load(out).graph.output] == ["scores", "class"]
    assert [value.name for value in onnx.load(out).graph.input] == ["image", "side"]


def test_the_hessian_of_labelled_data(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    asked = ["--data", case.data, "--sensitivity", "hessian", "--json", summary, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    assert read_json(summary)["curvature"]["method"] == "hessian"
