"""Pages of figures: what their data become, and what a browser makes of them."""

import json
import re

import numpy as np
import pytest
from cli import networks

from amq_onnx.cli.main import main
from amq_onnx.report.figures_page import Section, figures_page
from amq_onnx.report.rival_figures import Setting, settings_figure
from amq_onnx.report.spectrum_figures import density_figure, eigenvalues_figure
from report.test_browser import CHROMIUM, browser  # noqa: F401

NAME = "</script><b>w</b>"


def embedded_figures(text):
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.group(1))


def page():
    rivals = [Setting(100, 1.0, "trace", "top1 .9"), Setting(120, 0.0, NAME, NAME)]
    figures = [
        settings_figure([Setting(90, 3.0), Setting(200, 2.0)], [Setting(100, 1.0), Setting(150, 0.5)], rivals),
        eigenvalues_figure({NAME: [3.0, 1.0, 0.0], "v": [2.0]}),
        density_figure({NAME: (np.array([-1e-9, 1e-3, 1.0]), np.array([0.5, 0.3, 0.2]))}),
    ]
    return figures_page(NAME, NAME, [Section(f"heading {NAME}", NAME, figure) for figure in figures])


def test_the_page_holds_all_points_and_no_names_as_tags():
    text = page()
    assert text == page()
    assert NAME not in text
    settings, eigenvalues, density = embedded_figures(text).values()
    assert [trace["x"] for trace in settings["data"]] == [[90, 200], [100, 150], [100], [120]]
    # 0 has no place on a logarithmic axis: it stands below all others.
    assert 0 < settings["data"][3]["y"][0] < 0.5
    assert eigenvalues["data"][0]["y"][:2] == [3.0, 1.0] and 0 < eigenvalues["data"][0]["y"][2] < 1
    assert len(eigenvalues["data"]) == 2 and len(density["data"]) == 1


def test_a_density_integrates_to_one():
    rng = np.random.default_rng(0)
    points, weights = 10 ** rng.uniform(-4, 1, 30), rng.dirichlet(np.ones(30))
    (trace,) = density_figure({"w": (points, weights)}).data
    decades = np.log10(np.asarray(trace.x, np.float64))
    assert np.trapezoid(np.asarray(trace.y, np.float64), decades) == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The pages that the commands write."""
    folder = tmp_path_factory.mktemp("pages")
    model = networks.save(networks.conv_net(), folder / "m.onnx")
    np.savez(folder / "d.npz", image=networks.images())
    common = [str(model), "--data", str(folder / "d.npz")]
    fast = ["--uniform-bits", "4", *networks.FAST, "--strategies", "trace,uniform,random"]
    assert main(["compare", *common, *fast, "--plot", str(folder / "compare.html")]) == 0
    assert main(["spectrum", *common, "--top", "3", "--plot", str(folder / "spectrum.html")]) == 0
    return folder


def test_the_commands_write_what_they_print(written):
    settings = embedded_figures((written / "compare.html").read_text(encoding="utf-8"))["figure0"]["data"]
    names = [trace.get("name") for trace in settings]
    assert names == ["drawn at random", "Pareto frontier", "trace", "uniform", "random"]
    assert len(settings[0]["x"]) == 1000
    frontier = dict(zip(settings[1]["x"], settings[1]["y"], strict=True))
    for trace in settings[2:]:
        (size,), (omega,) = trace["x"], trace["y"]
        # No file lies below the frontier.
        assert omega >= min(value for bytes_, value in frontier.items() if bytes_ <= size) * (1 - 1e-9)
    spectrum = embedded_figures((written / "spectrum.html").read_text(encoding="utf-8"))
    assert [len(trace["x"]) for trace in spectrum["figure0"]["data"]] == [3, 3, 3]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("name", ["compare.html", "spectrum.html"])
@pytest.mark.parametrize("width", [1280, 380])
def test_a_browser_draws_them_and_fetches_nothing(browser, written, name, width):  # noqa: F811
    wrong = []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark")
    opened = context.new_page()
    file = written / name
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: request.url == file.as_uri() or wrong.append(request.url))
    opened.goto(file.as_uri())
    opened.wait_for_selector("#figure0 .main-svg")
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 23)"
    context.close()
    assert wrong == []


@pytest.mark.parametrize("command", ["compare", "spectrum"])
def test_a_folder_that_is_not_there_is_told_before_any_work(written, command, capsys):
    given = [command, str(written / "m.onnx"), "--data", "nothing.npz", "--plot", str(written / "no" / "p.html")]
    assert main(given) == 2
    assert "--plot" in capsys.readouterr().err
