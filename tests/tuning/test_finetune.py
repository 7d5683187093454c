import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amq_onnx.errors import DataError, UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.epoch_report import EpochReport
from amq_onnx.tuning.finetune import FineTuneOptions, _Parameters, fine_tune
from amq_onnx.tuning.quantizers import find_biases, find_quantizers
from tuning.graphs import quantize, residual

OPTIONS = FineTuneOptions(epochs=4, batch_size=16)
ONE_STEP = FineTuneOptions(epochs=1, batch_size=144)
# So slow that no code changes, which would amplify what is nothing but rounding.
SLOW = FineTuneOptions(epochs=2, batch_size=16, weight_rate=1e-5, scale_rate=1e-6, bias_rate=1e-6)
_PROCESS = """
import sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
from tuning.test_finetune import ONE_STEP, SLOW, case, tuned
from amq_onnx.tuning.processes import Processes, is_first
processes = Processes()
ranks = [torch.full((2, 3), float(processes.rank)), torch.tensor(4.0 * processes.rank)]
processes.average(ranks)
assert (ranks[0] == 0.5).all() and ranks[1] == 2 and processes.from_first(processes.rank) == 0
values, _ = tuned(case(), ONE_STEP)
_, reports = tuned(case(), SLOW)
if is_first():
    np.savez(sys.argv[2], losses=[report.loss for report in reports], **values)
"""


def case(**more):
    return quantize(residual(), "scores", 2, 4, samples=160, loss="softmax", **more)


def tuned(case, options, **more):
    return fine_tune(case.prepared.model, case.quantized, case.heads, case.losses, case.data, options, **more)


def test_comes_closer_to_the_float_graph_and_keeps_the_best_epoch():
    quantized = case()
    values, reports = tuned(quantized, OPTIONS)
    assert len(reports) == OPTIONS.epochs + 1
    best = [report for report in reports if report.kept][-1]
    assert best.divergence < 0.7 * reports[0].divergence and best.agreement >= reports[0].agreement
    weights, activations = find_quantizers(quantized.quantized)
    scales = [site.scale for site in (*weights.values(), *activations.values())]
    nonzero = [name for name in find_biases(quantized.quantized) if name in values]
    assert set(values) == {*weights, *scales, *nonzero}


def test_layers_may_multiply_in_bfloat16():
    quantized = case()
    exact, reports = tuned(quantized, OPTIONS)
    values, coarse = tuned(quantized, replace(OPTIONS, bfloat16=True))
    again, _ = tuned(quantized, replace(OPTIONS, bfloat16=True))
    assert all(array.dtype == np.float32 and np.array_equal(array, again[name]) for name, array in values.items())
    assert any(not np.array_equal(array, exact[name]) for name, array in values.items())
    assert coarse[0] == reports[0]  # judged in float32
    best = [report for report in coarse if report.kept][-1]
    assert best.divergence < 0.7 * coarse[0].divergence


def test_the_better_epoch_agrees_more_or_as_much_and_diverges_less():
    report = EpochReport(0.0, 0.96, 0.05)
    assert EpochReport(0.0, 0.955, 0.04).better_than(report, 1000)  # within what 1,000 samples can tell
    assert not EpochReport(0.0, 0.94, 0.04).better_than(report, 1000)
    assert EpochReport(0.0, 0.98, 0.06).better_than(report, 1000)
    assert not EpochReport(0.0, 0.965, 0.06).better_than(report, 1000)
    assert EpochReport(0.0, None, 0.04).better_than(EpochReport(0.0, None, 0.05), 1000)


def test_of_labels_the_later_epoch_is_better_unless_it_knows_fewer():
    report = EpochReport(0.0, 0.96, 0.05, accuracy=0.9)
    assert EpochReport(0.0, 0.93, 0.09, accuracy=0.885).better_than(report, 1000)  # within what 1,000 samples can tell
    assert not EpochReport(0.0, 0.97, 0.04, accuracy=0.88).better_than(report, 1000)


def test_never_worse_than_the_start():
    quantized = case()
    wild = replace(OPTIONS, epochs=1, weight_rate=50.0, scale_rate=3.0)
    values, reports = tuned(quantized, wild)
    assert reports[1].divergence > reports[0].divergence and [report.kept for report in reports] == [True, False]
    held = {tensor.name: tensor for tensor in quantized.quantized.graph.initializer}
    for name, value in values.items():
        np.testing.assert_allclose(
            value, np.frombuffer(held[name].raw_data, np.float32).reshape(value.shape), rtol=1e-6
        )


def test_the_same_numbers_from_a_run_that_was_interrupted(tmp_path):
    quantized = case()
    whole, reports = tuned(quantized, OPTIONS)

    class Stopped(Exception):
        pass

    def stop(what, done, of):
        if "epoch 3" in what:
            raise Stopped

    with pytest.raises(Stopped):
        tuned(quantized, OPTIONS, checkpoint=Checkpoint(tmp_path), progress=stop)
    resumed, again = tuned(quantized, OPTIONS, checkpoint=Checkpoint(tmp_path, resume=True))
    assert again == reports
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)
    with pytest.raises(UsageError, match="another run"):
        tuned(quantized, replace(OPTIONS, epochs=5), checkpoint=Checkpoint(tmp_path, resume=True))


def test_labels_join_in_where_they_are_asked_for():
    labelled = case(labels=np.arange(160) % 5)
    values, reports = tuned(labelled, replace(OPTIONS, label_share=1.0))
    without, others = tuned(labelled, OPTIONS)
    assert any(not np.array_equal(values[name], without[name]) for name in values)
    assert reports[-1].loss < reports[1].loss and all(report.accuracy is None for report in others)
    accuracies = [report.accuracy for report in reports if report.kept]
    most = np.maximum.accumulate(accuracies)
    assert (accuracies >= most - 2 * np.sqrt(most * (1 - most) / 16)).all() and len(accuracies) > 1


def test_the_loss_is_the_divergence_and_that_of_the_labels():
    labelled = case(labels=np.arange(160) % 5)
    whole = replace(OPTIONS, epochs=1, batch_size=160, label_share=0.25)
    _, reports = tuned(labelled, whole, held_out=labelled.data)
    ((batch,),) = [list(labelled.data.batches(160))]
    feeds = {"image": torch.from_numpy(batch["image"])}
    exact, ours = (
        Executor(proto).run(feeds, ["scores"])["scores"].log_softmax(1)
        for proto in (labelled.prepared.model, labelled.quantized)
    )
    divergence = (exact.exp() * (exact - ours)).sum(1).mean()
    of_labels = -ours[torch.arange(160), torch.from_numpy(batch["labels"])].mean()
    assert reports[1].loss == pytest.approx(0.75 * float(divergence) + 0.25 * float(of_labels), rel=1e-5)
    assert reports[0].divergence == pytest.approx(float(divergence), rel=1e-5)


def test_what_is_judged_by_may_be_other_data():
    """Then nothing is kept back of the data."""
    quantized, steps = case(), []
    held_out = quantized.data.first(20)
    _, reports = tuned(quantized, OPTIONS, held_out=held_out, progress=lambda what, done, of: steps.append(of))
    assert set(steps) == {160 // 16}
    _, others = tuned(quantized, replace(OPTIONS, epochs=1))
    assert reports[0].divergence != others[0].divergence


def test_rates_are_multiplied():
    quantized = case().quantized
    plain, more = (_Parameters(quantized, Executor(quantized), replace(OPTIONS, rate=rate)) for rate in (1.0, 4.0))
    ratios = [other / one for one, other in zip(plain.rates(), more.rates(), strict=True)]
    weights, _ = find_quantizers(quantized)
    assert ratios[: len(weights)] == pytest.approx([4.0] * len(weights))
    assert ratios[-1] == pytest.approx(2.0)  # a scale's
    assert set(np.round(ratios, 6)) == {2.0, 4.0}


def test_augmentation_is_applied_and_checked():
    seen = []

    def mirrored(batch, generator):
        seen.append(generator.integers(1 << 30))
        return {"image": batch["image"][..., ::-1]}

    tuned(case(), replace(OPTIONS, epochs=2, augment=mirrored))
    assert len(seen) == len(set(seen)) == 2 * (144 // 16)
    with pytest.raises(DataError, match="'image'"):
        tuned(case(), replace(OPTIONS, augment=lambda batch, generator: {}))
    with pytest.raises(DataError, match="ZeroDivisionError"):
        tuned(case(), replace(OPTIONS, augment=lambda batch, generator: 1 // 0))


def test_labels_may_become_shares_of_classes():
    labelled = case(labels=np.arange(160) % 5)
    options = replace(OPTIONS, epochs=1, label_share=1.0)

    def shared(classes, extra=0.0):
        def augment(batch, generator):
            return {**batch, "labels": np.eye(classes, dtype=np.float32)[batch["labels"]] + np.float32(extra)}

        return replace(options, augment=augment)

    plain, reports = tuned(labelled, options)
    same, others = tuned(labelled, shared(5))
    assert all(np.array_equal(plain[name], same[name]) for name in plain) and reports == others
    _, smooth = tuned(labelled, shared(5, 0.1))
    assert smooth[1].loss > 1.2 * reports[1].loss
    with pytest.raises(DataError, match="labels have shape"):
        tuned(labelled, shared(7))
    with pytest.raises(DataError, match="must return 'labels'"):
        tuned(labelled, replace(options, augment=lambda batch, generator: {**batch, "labels": np.zeros((3, 5))}))


def test_two_processes_learn_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).resolve().parent.parent
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROCESS, str(tests), str(tmp_path / "two.npz")]
    processes = [
        subprocess.Popen(command, env={**common, "WORLD_SIZE": "2", "RANK": str(rank)}, cwd=tests.parent)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one, _ = tuned(case(), ONE_STEP)
    _, reports = tuned(case(), SLOW)
    with np.load(tmp_path / "two.npz") as two:
        # Adam's first step is the gradient's sign: what differs are gradients that are nothing but rounding.
        same = [np.isclose(two[name], value, rtol=1e-5, atol=1e-7).mean() for name, value in one.items()]
        assert set(two.files) == {*one, "losses"} and np.mean(same) > 0.99
        np.testing.assert_allclose(two["losses"], [report.loss for report in reports], rtol=1e-3)
