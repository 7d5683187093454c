"""Learned rounding of a whole network, block after block, on calibration inputs without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.sample_axis import per_sample
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.freed_batch import freed
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import fingerprint
from amq_onnx.model.heads import Head
from amq_onnx.tuning.block_data import BlockData, Chunk
from amq_onnx.tuning.block_rounding import RoundedBlock, round_block
from amq_onnx.tuning.blocks import Block, find_blocks
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.epoch_report import EpochReport
from amq_onnx.tuning.mixing import mixed_samples
from amq_onnx.tuning.quantizers import Quantizer, along, find_biases, find_quantizers
from amq_onnx.tuning.sums import SumAligner

# Elements of a block's largest tensor in one step, and positions of its largest image, where more than a few samples
# are needed for as many: layers of large images see thousands of positions in each sample.
_STEP_ELEMENTS = 1 << 20
_STEP_POSITIONS = 1 << 14
_FEWEST_SAMPLES = 2
# Elements that all samples' values of one tensor between blocks may have: 256 million floats are 1 GB.
_BOUNDARY_ELEMENTS = 256_000_000
_PROBES = 2
# Share of a sample's weight in a block's loss that is the same for all; the rest follows its curvature.
_EVEN_SHARE = 0.5
# Samples on which one scale for a sum and its terms is compared with their own.
_SUM_SAMPLES = 256


@dataclass(frozen=True)
class RoundingOptions:
    """How rounding is learned.

    steps: for each block. samples: of the calibration data, at most. mixes: how many mixes of two samples are learned
    from besides, for each sample. chunk: samples a step; fewer for blocks whose tensors are large.
    """

    steps: int = 1000
    samples: int = 512
    mixes: int = 3
    chunk: int = 32
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class BlockReport:
    """What became of one block: its outputs' loss with rounding to nearest and with learned rounding, the shares of
    codes that had settled before they were made whole and that differ from the nearest."""

    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    nearest: float
    learned: float
    settled: float
    changed: float


@dataclass(frozen=True)
class Tuned:
    """Numbers of a quantized graph that were learned: initializers by name, and how it went, block by block and, where
    the whole graph was trained after that, epoch by epoch. weights: those that rounding was learned of, as it left
    them. aligned: how many tensors got the scale of a sum."""

    values: dict[str, NDArray[np.float32]] = field(repr=False)
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    blocks: list[BlockReport]
    samples: int
    aligned: int = 0
    epochs: list[EpochReport] = field(default_factory=list)


def learn_rounding(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    heads: Sequence[Head],
    losses: Sequence[Loss],
    data: Dataset,
    options: RoundingOptions,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Learn the codes of all weights, scales of activations and biases of the `quantized` form of `model`.

    Sums of narrow activations may get one scale with their terms first (see SumAligner). Blocks are trained in the
    graph's order, each on what the quantized blocks before it make of the calibration inputs. Memory is that of the
    tensors before and behind one block, for all samples (fewer are used where these are large).
    The result follows from the inputs and the seed alone, whether or not it was interrupted.
    """
    checkpoint = checkpoint or Checkpoint(None)
    network = _Network(model, quantized, heads, losses, options)
    chunks = network.chunks(data)
    checkpoint.open(
        {
            "quantized": fingerprint(quantized),
            "options": [options.steps, options.samples, options.mixes, options.chunk, options.seed],
            "data": [len(chunks), *_digests(chunks)],
        }
    )
    aligned = checkpoint.load("sums")
    if aligned is None:
        aligned = network.aligned_sums(chunks, progress)
        checkpoint.save("sums", aligned)
    importance = network.importance(chunks, progress)
    values: dict[str, NDArray[np.float32]] = dict(aligned)
    reports = []
    quantized_in: list[Tensor] = []
    floating_in: list[Tensor] = []
    for number, block in enumerate(network.blocks):
        targets = network.run_float(block, chunks, floating_in)
        training = network.training(block, chunks, quantized_in, floating_in, targets, importance, values)
        step = f"rounding-{number:04d}"
        held = checkpoint.load(step)
        if held is None:
            held = network.round(number, block, training, values)
            checkpoint.save(step, held)
        report = np.asarray(held.pop("report"), np.float64)
        values |= held
        reports.append(BlockReport(block.outputs, block.weights, *map(float, report)))
        if progress is not None:
            progress("learned rounding, blocks", number + 1, len(network.blocks))
        if number + 1 < len(network.blocks):
            learned = {name: torch.from_numpy(array).to(network.quantized.device) for name, array in held.items()}
            quantized_in = network.run_quantized(training, learned)
            floating_in = [found[block.outputs[0]] for found in targets]
    weights = {name: values[name] for name in network.weights if name in values}
    return Tuned(values, weights, reports, network.samples, len(aligned))


class _Network:
    """The float and the quantized graph, and their blocks."""

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        options: RoundingOptions,
    ) -> None:
        self.options = options
        self.heads, self.losses = heads, losses
        self.float = Executor(model, device=options.device)
        self.proto = quantized
        self.quantized = Executor(quantized, device=options.device)
        self.weights, self.activations = find_quantizers(quantized)
        self.biases = find_biases(quantized)
        self.blocks = find_blocks(model, list(self.weights), [head.tensor for head in heads])
        self.samples = 0
        self.fixed_batch = False
        self.layers: tuple[str, ...] = ()
        self._counts: list[int] = []

    def chunks(self, data: Dataset) -> list[dict[str, Tensor]]:
        """The graph's inputs, a few samples at a time, and mixes of them."""
        data = freed(data, [self.float, self.quantized])
        fitting = self._fitting(data)
        self.fixed_batch = data.fixed_batch() is not None
        batches = list(data.first(min(self.options.samples, fitting)).batches(self.options.chunk))
        self.samples = sum(map(data.count, batches))
        whole = list(batches)
        for copy in range(min(self.options.mixes, fitting // self.samples - 1)):
            whole += mixed_samples(data, batches, _seed(self.options.seed, copy, -2))
        self._counts = [data.count(batch) for batch in whole]
        self.layers = self._layers(data)
        return [tensors(batch, self.float) for batch in whole]

    def aligned_sums(
        self, chunks: Sequence[Mapping[str, Tensor]], progress: Progress | None
    ) -> dict[str, NDArray[np.float32]]:
        """Scales that sums share with their terms, by initializer."""
        if not any(site.narrow for site in self.activations.values()):
            return {}
        names = [head.tensor for head in self.heads]
        count = 1 + int(np.searchsorted(np.cumsum(self._counts), min(_SUM_SAMPLES, self.samples)))
        with torch.no_grad():
            samples = [(chunk, self.float.run(chunk, names)) for chunk in chunks[:count]]
        aligner = SumAligner(self.quantized, self.proto, self.activations, self.heads, self.losses, samples, progress)
        return {name: scale.cpu().numpy() for name, scale in aligner.scales().items()}

    def _fitting(self, data: Dataset) -> int:
        """How many samples' tensors between blocks fit in memory."""
        cuts = [block.input for block in self.blocks if block.input is not None]
        found, samples = self._first(data, cuts)
        largest = max((value.numel() // samples for value in found.values()), default=1)
        return max(1, _BOUNDARY_ELEMENTS // max(1, largest))

    def _layers(self, data: Dataset) -> tuple[str, ...]:
        """Layers of the last block whose outputs for all samples fit in memory together, the last ones first."""
        found, samples = self._first(data, self.blocks[-1].layers)
        kept: list[str] = []
        left = _BOUNDARY_ELEMENTS
        for name, value in reversed(found.items()):
            size = value.numel() * sum(self._counts) // samples
            if value.ndim and len(value) == samples and size <= left:
                kept.append(name)
                left -= size
        return tuple(kept)

    def _first(self, data: Dataset, names: Sequence[str]) -> tuple[dict[str, Tensor], int]:
        """Tensors of the float graph for the fewest samples that it takes, one where its batch is free, and how many
        these are."""
        batch = next(data.first(1).batches(1))
        with torch.inference_mode():
            return self.float.run(tensors(batch, self.float), names) if names else {}, data.count(batch)

    def importance(self, chunks: Sequence[Mapping[str, Tensor]], progress: Progress | None) -> dict[str, list[Tensor]]:
        """By tensor between blocks and chunk, how much an error of each sample matters: mean 1 over all samples.

        The mean of a sample's squared Gauss-Newton probes at the tensor is its curvature there per element; part of the
        weight is even, since few probes leave it uncertain and samples that are sure now may not be after rounding.
        """
        cuts = [block.outputs[0] for block in self.blocks[:-1]]
        if not cuts:
            return {}
        forward = DifferentiableForward(self.float, self.heads, cuts)
        found: dict[str, list[Tensor]] = {name: [] for name in cuts}
        done = 0
        for number, chunk in enumerate(chunks):
            values = forward({name: value.clone() for name, value in chunk.items()}, {})
            scores = [values[head.tensor] for head in self.heads]
            sums = dict.fromkeys(cuts, torch.zeros(()))
            for probe in range(_PROBES):
                generator = torch.Generator().manual_seed(_seed(self.options.seed, number, probe))
                gradients = probe_gradients(scores, self.losses, [values[name] for name in cuts], generator)
                for name, gradient in zip(cuts, gradients, strict=True):
                    sums[name] = sums[name] + per_sample(gradient.square().cpu(), self._counts[number])
            for name in cuts:
                found[name].append(sums[name])
            done += self._counts[number]
            if progress is not None:
                progress("curvature of blocks", done, None)
        return {name: _relative(each) for name, each in found.items()}

    def run_float(
        self, block: Block, chunks: Sequence[Mapping[str, Tensor]], inputs: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """The float block's outputs; of the last one, those of its layers too."""
        given = [{block.input: value} for value in inputs] if block.input is not None else [{} for _ in chunks]
        names = (*block.outputs, *(self.layers if block is self.blocks[-1] else ()))
        with torch.no_grad():
            return [self.float.run({**chunk, **extra}, names) for chunk, extra in zip(chunks, given, strict=True)]

    def run_quantized(self, training: BlockData, learned: Mapping[str, Tensor]) -> list[Tensor]:
        """What the next block gets from this one, once its numbers are learned."""
        (name,) = training.outputs
        with torch.no_grad():
            return [
                self.quantized.run({**training.values(chunk), **learned}, [name])[name] for chunk in training.chunks
            ]

    def training(
        self,
        block: Block,
        feeds: Sequence[Mapping[str, Tensor]],
        quantized: Sequence[Tensor],
        floating: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        importance: Mapping[str, Sequence[Tensor]],
        values: Mapping[str, NDArray[np.float32]],
    ) -> BlockData:
        """What a block is trained on, after others that have learned `values`."""
        names = [*block.shared, *(site.scale for name, site in self.activations.items() if name in block.tensors)]
        last = block is self.blocks[-1]
        judged = [pair for pair in zip(self.heads, self.losses, strict=True) if pair[0].tensor in block.outputs]
        chunks = [
            Chunk(
                given,
                self._counts[number],
                quantized[number] if block.input is not None else None,
                floating[number] if block.input is not None else None,
                targets[number],
                None if last else importance[block.outputs[0]][number],
            )
            for number, given in enumerate(feeds)
        ]
        return BlockData(
            block.input,
            block.outputs,
            {name: torch.from_numpy(values[name]).to(self.quantized.device) for name in names if name in values},
            chunks,
            judged if last else None,
            self.layers if last else (),
        )

    def round(
        self, number: int, block: Block, training: BlockData, values: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Train one block, after others that have learned `values`: initializers of the quantized graph by name, and
        `report`.

        Scales of narrow activations stay: the error of a block's outputs in the mean square would have them cut off
        the few large values that the network's outputs depend on.
        """
        weights = [self.weights[name] for name in block.weights]
        activations = [
            site
            for name, site in self.activations.items()
            if name in block.tensors and site.scale not in values and not site.narrow and not site.fixed
        ]
        generator = torch.Generator().manual_seed(_seed(self.options.seed, number, -1))
        if not self.fixed_batch:
            training = training.parts(samples_a_step(self.float, block, training.chunks[0]))
        made = {*block.tensors, *block.outputs} - {block.input}
        biases = [name for name, tensors in self.biases.items() if made.issuperset(tensors)]
        found = round_block(self.quantized, weights, activations, biases, training, self.options.steps, generator)
        learned = self._initializers(found, weights, activations)
        shares = [found.settled / max(1, found.elements), found.changed / max(1, found.elements)]
        learned["report"] = np.array([found.nearest, found.learned, *shares])
        return learned

    def _initializers(
        self, found: RoundedBlock, weights: Sequence[Quantizer], activations: Sequence[Quantizer]
    ) -> dict[str, NDArray[np.float32]]:
        """A weight becomes what its codes stand for, so that QuantizeLinear gives these codes."""
        values = {}
        for weight in weights:
            codes = found.codes[weight.tensor]
            scale = along(weight.axis, self.quantized.initializers[weight.scale], codes)
            values[weight.tensor] = (codes * scale).cpu().numpy()
        for site in activations:
            values[site.scale] = found.scales[site.tensor].cpu().numpy()
        return values | {name: value.cpu().numpy() for name, value in found.biases.items()}


def samples_a_step(executor: Executor, block: Block, chunk: Chunk) -> int:
    """How many samples a step may have, by the largest tensor and the largest image [C, H, W] that the nodes of `block`
    read of one sample; no fewer than 2. executor: of the float graph."""
    first = chunk.parts(1)[0]
    given = {} if block.input is None or first.floating is None else {block.input: first.floating}
    with torch.inference_mode():
        found = executor.run({**first.feeds, **given}, sorted(block.tensors))
    shapes = [value.shape for value in found.values() if isinstance(value, Tensor)]
    elements = max([1, *(prod(shape) // first.samples for shape in shapes)])
    positions = max([1, *(prod(shape[2:]) for shape in shapes if len(shape) == 4)])
    return max(_FEWEST_SAMPLES, min(_STEP_ELEMENTS // elements, _STEP_POSITIONS // positions))


def _relative(each: Sequence[Tensor]) -> list[Tensor]:
    mean = float(torch.cat(list(each)).mean())
    if mean <= 0:
        return [torch.ones_like(part) for part in each]
    return [_EVEN_SHARE + (1 - _EVEN_SHARE) * part / mean for part in each]


def _digests(chunks: Sequence[Mapping[str, Tensor]]) -> list[str]:
    digest = hashlib.sha256()
    for chunk in chunks:
        for name in sorted(chunk):
            digest.update(name.encode())
            digest.update(chunk[name].cpu().numpy().tobytes())
    return [digest.hexdigest()]


def _seed(seed: int, number: int, probe: int) -> int:
    return (seed * 1_000_003 + number * 1009 + probe + 1) & (2**63 - 1)
