"""Every pair of widths on real models: loading at every level, integer kernels, and agreement layer by layer.

    AMQ_DATA=... python benchmarks/agreement.py [digits|resnet20|mobilenetv2 ...]

Weights of 1 to 8 bits by activations of 2 to 8 bits, the same widths at every site. onnxruntime runs each file at
each optimization level with the codes of all activations as further outputs. The executor is given those codes and
computes, from each layer's own inputs as onnxruntime had them, the codes behind that layer, once in the simulated
graph (weights rounded, biases float) and once in the file's own graph (weights packed, biases int32). The difference
of two codes is a number of quantization steps. Exits with 1 where one exceeds a step.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from amq_onnx.calibration import calibrate
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import LABELS, Batch, open_data
from amq_onnx.model.file import fingerprint, read_model
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_range
from amq_onnx.rewriting import Prepared, lower, prepare, simulate
from amq_onnx.runtime.session import exact_options

WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = range(2, 9)
PAIRS = tuple(itertools.product(WEIGHT_BITS, ACTIVATION_BITS))
LEVELS = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
FUSING_LEVELS = ("extended", "all")
REFERENCES = ("simulated graph", "file's own graph")
_ROOT = Path(__file__).resolve().parent.parent
_CALIBRATION_IMAGES = 32
_SILENT = 4


@dataclass(frozen=True)
class Case:
    """A model, the scripts' functions with its data, and how many test images are compared."""

    name: str
    file: str
    data: str
    calibration: str
    test: str
    images: int

    def path(self) -> Path:
        """The model's file: in the repository, or in the folder that AMQ_DATA names."""
        if self.name == "digits":
            return _ROOT / self.file
        from real_data import data_folder

        return data_folder() / self.file


CASES = (
    Case("digits", "models/digits_resnet.onnx", "models/digits.py", "calibration", "test", 64),
    Case(
        "resnet20",
        "resnet20_cifar10_op20.onnx",
        "benchmarks/real_data.py",
        "resnet20_calibration",
        "resnet20_test",
        8,
    ),
    Case(
        "mobilenetv2",
        "mobilenetv2_imagenet_op20.onnx",
        "benchmarks/real_data.py",
        "mobilenetv2_calibration",
        "mobilenetv2_test",
        2,
    ),
)


@dataclass(eq=False)
class Agreement:
    """Differences of codes in quantization steps, and of the float outputs behind the last layer.

    steps: how many codes differ by 0, 1, 2 and more steps. beyond: by site, the largest difference above one step.
    output_error: largest difference of a float output over its largest value.
    """

    steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    beyond: dict[str, int] = field(default_factory=dict)
    output_error: float = 0.0

    def add_codes(self, site: str, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
        """Count the differences at one site."""
        counts = np.bincount(np.abs(ours - theirs).ravel(), minlength=4)
        self.steps += np.array([*counts[:3], counts[3:].sum()], np.int64)
        largest = int(np.flatnonzero(counts)[-1])
        if largest > 1:
            self.beyond[site] = largest

    def add_output(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        """Note the difference of a float output."""
        largest = float(np.abs(theirs).max()) or 1.0
        self.output_error = max(self.output_error, float(np.abs(ours - theirs).max()) / largest)

    def add(self, other: Agreement) -> None:
        """Add what another comparison found."""
        self.steps += other.steps
        self.output_error = max(self.output_error, other.output_error)
        for site, steps in other.beyond.items():
            self.beyond[site] = max(self.beyond.get(site, 0), steps)

    def one_step_ppm(self) -> float:
        """Codes one step off, in millionths of all."""
        return 1e6 * float(self.steps[1] / max(1, self.steps.sum()))

    def __str__(self) -> str:
        total = max(1, int(self.steps.sum()))
        shares = ", ".join(
            f"{label}: {count:,} ({count / total:.4%})"
            for label, count in zip(("0", "1", "2", ">2"), self.steps.tolist(), strict=True)
        )
        return f"steps {shares}; float outputs within {self.output_error:.1e}"


class Network:
    """A float model with the ranges of its activations, from which files of uniform widths are made."""

    def __init__(self, case: Case) -> None:
        model = read_model(case.path())
        script = _ROOT / case.data
        self.prepared: Prepared = prepare(model)
        self.activations = [site.name for site in self.prepared.sites.activations]
        calibration = open_data(f"{script}:{case.calibration}", model, _CALIBRATION_IMAGES)
        seen = calibrate(Executor(self.prepared.model), calibration, self.activations, [])
        self.ranges = {
            bits: {name: activation_range(seen.histograms[name], bits, "mse") for name in self.activations}
            for bits in ACTIVATION_BITS
        }
        self.batch: Batch = {
            name: array
            for name, array in next(open_data(f"{script}:{case.test}", model).batches(case.images)).items()
            if name != LABELS
        }
        self.convolutions = Counter(node.op_type for node in self.prepared.model.graph.node)["Conv"]

    def quantized(self, weight_bits: int, activation_bits: int) -> Quantized:
        """The simulated graph and the file with these widths at every site."""
        activations = {
            name: ActivationPlan(activation_bits, ends) for name, ends in self.ranges[activation_bits].items()
        }
        weights = {site.name: weight_bits for site in self.prepared.sites.weights}
        plan = Plan(fingerprint(self.prepared.model), "mse", weights, activations)
        encodings = plan.encodings(self.prepared)
        simulated = simulate(self.prepared, encodings)
        return Quantized(simulated, lower(self.prepared, simulated, encodings), self.activations)


class Quantized:
    """One pair of widths: the simulated graph, the file, and the file with all activations' codes as outputs.

    codes: by activation site, the tensor of its codes, of one name in both graphs.
    """

    def __init__(self, simulated: onnx.ModelProto, file: onnx.ModelProto, activations: Sequence[str]) -> None:
        self.simulated = simulated
        self.file = file
        self.codes = code_tensors(simulated, activations)
        self.telling = with_codes(file, self.codes.values())
        self.outputs = [output.name for output in file.graph.output]

    @cached_property
    def _executors(self) -> dict[str, Executor]:
        return dict(zip(REFERENCES, (Executor(self.simulated), Executor(self.file)), strict=True))

    @cached_property
    def _channels(self) -> dict[str, int]:
        """By tensor of the simulated graph, its second dimension, where that is known."""
        shaped = onnx.shape_inference.infer_shapes(self.simulated).graph.value_info
        sizes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in shaped}
        return {name: size[1] for name, size in sizes.items() if len(size) > 1 and size[1]}

    def _shared(self, name: str, codes: NDArray[Any]) -> NDArray[Any]:
        """The channels that both graphs have: AlignOutputs adds some to the file's."""
        return codes[:, : self._channels.get(name)] if codes.ndim > 1 else codes

    def compare(self, reference: str, batch: Batch, found: Mapping[str, NDArray[Any]]) -> Agreement:
        """Each layer of onnxruntime's run `found` against the executor's, fed the same inputs."""
        executor = self._executors[reference]
        given = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        simulated = reference == REFERENCES[0]
        codes = {name: self._shared(name, found[name]) if simulated else found[name] for name in self.codes.values()}
        given |= {name: torch.from_numpy(array) for name, array in codes.items()}
        # The tensor that each site's quantizer reads: the site itself, or what is before a Relu that was dropped.
        read = quantized_tensors(self.simulated if simulated else self.file, self.codes)
        with torch.inference_mode():
            # All codes are given, so nothing but one layer lies between them and each site's float tensor.
            floats = executor.run(given, [*read.values(), *self.outputs])
            expected = executor.run({name: floats[name] for name in read.values()}, list(self.codes.values()))
        agreement = Agreement()
        for site, name in self.codes.items():
            theirs, ours = (self._shared(name, array) for array in (found[name], expected[name].numpy()))
            agreement.add_codes(site, theirs.astype(np.int64), ours.astype(np.int64))
        for name in self.outputs:
            agreement.add_output(found[name], floats[name].numpy())
        return agreement


def code_tensors(model: onnx.ModelProto, activations: Sequence[str]) -> dict[str, str]:
    """By activation site, the last tensor of its QuantizeLinear and the Clip behind it."""
    quantizers = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    clips = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    return {name: clips.get(quantizers[name], quantizers[name]) for name in activations}


def quantized_tensors(model: onnx.ModelProto, codes: Mapping[str, str]) -> dict[str, str]:
    """By activation site, the float tensor that its QuantizeLinear reads in this graph."""
    readers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    clips = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Clip"}
    return {site: readers[clips.get(name, name)] for site, name in codes.items()}


def with_codes(model: onnx.ModelProto, codes: Iterable[str]) -> onnx.ModelProto:
    """`model` with these uint8 tensors as further outputs."""
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    telling.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in codes)
    return telling


def open_at(model: onnx.ModelProto, level: str, optimized: Path | None = None) -> Any:
    """A session of the file at a level, products exact; `optimized` is where the optimized graph is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = 1  # more would spin, while torch computes
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{LEVELS[level]}")
    for key, value in exact_options(model, "cpu").items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_at(model: onnx.ModelProto, level: str, batch: Batch) -> tuple[dict[str, NDArray[Any]], Counter[str]]:
    """All outputs of the file at a level, and how many nodes of each kind its fused graph has."""
    names = [output.name for output in model.graph.output]
    if level not in FUSING_LEVELS:
        return dict(zip(names, open_at(model, level).run(names, dict(batch)), strict=True)), Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session = open_at(model, level, path)
        kinds = Counter(node.op_type for node in onnx.load_model(path).graph.node)
    return dict(zip(names, session.run(names, dict(batch)), strict=True)), kinds


@dataclass(frozen=True, eq=False)
class LevelRun:
    """A run of one file at one level: outputs and codes, nodes of the fused graph, and what is wrong, in sentences."""

    found: dict[str, NDArray[Any]]
    kinds: Counter[str]
    faults: list[str]


def run_file(quantized: Quantized, level: str, batch: Batch) -> LevelRun:
    """Run the file at `level`, by itself and with its codes: they may change neither its kernels nor its outputs."""
    plain, kinds = run_at(quantized.file, level, batch)
    found, telling_kinds = run_at(quantized.telling, level, batch)
    faults = []
    # A blocked layout is left by a Transpose in front of every output.
    changed = (kinds - telling_kinds) + (telling_kinds - kinds)
    if set(changed) - {"Transpose"}:
        faults.append(f"the codes as outputs change the kernels: {dict(changed)}")
    if any(not np.array_equal(plain[name], found[name]) for name in quantized.outputs):
        faults.append("the codes as outputs change the float outputs")
    return LevelRun(found, kinds, faults)


def compare_levels(quantized: Quantized, batch: Batch) -> tuple[dict[tuple[str, str], Agreement], dict[str, LevelRun]]:
    """Agreement by level and reference, and the runs by level."""
    runs: dict[str, LevelRun] = {}
    agreements: dict[tuple[str, str], Agreement] = {}
    for level in LEVELS:
        runs[level] = run_file(quantized, level, batch)
        found = runs[level].found
        same = next((other for other in runs if other != level and _equal(runs[other].found, found)), None)
        for reference in REFERENCES:
            agreements[level, reference] = (
                agreements[same, reference] if same else quantized.compare(reference, batch, found)
            )
    return agreements, runs


def _equal(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def report(case: Case) -> bool:
    """Print the tables of one model; True if every difference is at most one step and the codes changed nothing."""
    start = time.perf_counter()
    network = Network(case)
    results: dict[tuple[str, str], dict[tuple[int, int], Agreement]] = {
        (level, reference): {} for level in LEVELS for reference in REFERENCES
    }
    kernels: dict[int, set[int]] = {bits: set() for bits in ACTIVATION_BITS}
    whole = True
    for pair in PAIRS:
        agreements, runs = compare_levels(network.quantized(*pair), network.batch)
        for key, agreement in agreements.items():
            results[key][pair] = agreement
        for level, run in runs.items():
            for fault in run.faults:
                whole = False
                print(f"{case.name} W{pair[0]}A{pair[1]} at level {level}: {fault}")
            if level in FUSING_LEVELS:
                kernels[pair[1]].add(run.kinds["QLinearConv"])
    print(
        f"{case.name}: onnxruntime {onnxruntime.__version__}, {len(PAIRS)} pairs loaded at {len(LEVELS)} levels, "
        f"{len(network.activations)} activation sites, {case.images} images, {time.perf_counter() - start:.0f} s"
    )
    counts = ", ".join(f"A{bits} {'-'.join(map(str, sorted({min(n), max(n)})))}" for bits, n in kernels.items())
    print(f"{case.name}: of {network.convolutions} Conv, QLinearConv at levels {' and '.join(FUSING_LEVELS)}: {counts}")
    for (level, reference), by_pair in results.items():
        total = Agreement()
        for agreement in by_pair.values():
            total.add(agreement)
        print(f"{case.name}, level {level}, {reference}: {total}")
        if reference == REFERENCES[0]:
            print_table(by_pair)
        for site, steps in total.beyond.items():
            pairs = " ".join(f"W{w}A{a}" for (w, a), agreement in by_pair.items() if site in agreement.beyond)
            print(f"  MORE THAN A STEP: '{site}' by {steps} at {pairs}")
        whole = whole and not total.beyond
    sys.stdout.flush()
    return whole


def print_table(by_pair: Mapping[tuple[int, int], Agreement]) -> None:
    """Millionths of the codes one step off: a row a weight width, a column an activation width."""
    print("  one step off, ppm" + "".join(f"{f'A{bits}':>9s}" for bits in ACTIVATION_BITS))
    for bits in WEIGHT_BITS:
        cells = (by_pair[bits, width] for width in ACTIVATION_BITS)
        row = "".join(f"{cell.one_step_ppm():>8.1f}{'!' if cell.beyond else ' '}" for cell in cells)
        print(f"  {f'W{bits}':17s}{row}")


def main() -> None:
    known = {case.name: case for case in CASES}
    chosen = sys.argv[1:] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"'{unknown[0]}' is none of {', '.join(known)}")
    torch.set_num_threads(1)
    whole = [report(known[name]) for name in chosen]
    if not all(whole):
        sys.exit(1)


if __name__ == "__main__":
    main()
