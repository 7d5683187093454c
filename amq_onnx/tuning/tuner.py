"""Tunes the quantized graphs of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import onnx
import torch

from amq_onnx.calibration import Progress, tensors
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head, LossName, find_heads
from amq_onnx.rewriting import with_initializers
from amq_onnx.traces import losses_for
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.finetune import FineTuneOptions, fine_tune
from amq_onnx.tuning.processes import Processes
from amq_onnx.tuning.rounding import RoundingOptions, Tuned, learn_rounding

TuneMethod = Literal["none", "rounding", "full"]
"""What is learned once the widths are chosen."""


@dataclass(frozen=True)
class TuningOptions:
    """What is learned, and how.

    method: `rounding` learns how weights are rounded, `full` trains the whole graph after that; None stands for
    `rounding` where there are calibration data, else `none`.
    """

    method: TuneMethod | None = None
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    full: FineTuneOptions = field(default_factory=FineTuneOptions)


class Tuner:
    """Learns the numbers of quantized graphs from calibration data.

    chosen: by head tensor, the name of its loss and why, as the sensitivity was measured with.
    """

    def __init__(
        self,
        data: Dataset,
        options: TuningOptions,
        chosen: Mapping[str, str],
        checkpoint: Checkpoint,
        progress: Progress | None = None,
    ) -> None:
        self.data = data
        self.options = options
        self.chosen = chosen
        self.checkpoint = checkpoint
        self.progress = progress

    def __call__(self, model: onnx.ModelProto, quantized: onnx.ModelProto, name: str) -> Tuned:
        """What is learned of `quantized`, the quantized form of `model`; `name` tells its checkpoint from others'."""
        heads = self._heads(model)
        losses = losses_for(heads, self._mean_squares(model, heads))
        checkpoint = self.checkpoint.inside(name)
        processes = Processes(self.options.full.device) if self.options.method == "full" else None
        learned: Tuned | None = None
        if processes is None or processes.rank == 0:
            learned = learn_rounding(
                model,
                quantized,
                heads,
                losses,
                self.data,
                self.options.rounding,
                checkpoint=checkpoint,
                progress=self.progress,
            )
        if processes is None:
            assert learned is not None
            return learned
        learned = processes.from_first(learned)
        assert learned is not None
        values, epochs = fine_tune(
            model,
            with_initializers(quantized, learned.values),
            heads,
            losses,
            self.data,
            self.options.full,
            checkpoint=checkpoint.inside("full"),
            progress=self.progress,
        )
        return replace(learned, values={**learned.values, **values}, epochs=epochs)

    def _heads(self, model: onnx.ModelProto) -> list[Head]:
        found, _ = find_heads(model)
        kinds = {name: text.partition(":")[0] for name, text in self.chosen.items()}
        for index, head in enumerate(found):
            for kind in get_args(LossName):
                if kinds.get(head.tensor) == kind:
                    found[index] = replace(head, loss=kind)
        return found

    def _mean_squares(self, model: onnx.ModelProto, heads: list[Head]) -> dict[str, float]:
        """E ||output||^2 of a sample, of the outputs whose loss is relative to it."""
        names = [head.tensor for head in heads if head.loss == "squared"]
        totals = dict.fromkeys(names, 0.0)
        if not names:
            return totals
        executor = Executor(model, device=self.options.rounding.device)
        data, samples = self.data.first(self.options.rounding.samples), 0
        with torch.inference_mode():
            for batch in data.batches(self.options.rounding.chunk):
                found = executor.run(tensors(batch, executor), names)
                samples += data.count(batch)
                for name in names:
                    totals[name] += float(found[name].double().square().sum())
        return {name: total / samples for name, total in totals.items()}
