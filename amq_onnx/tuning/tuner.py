"""Tunes the quantized graphs of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx

from amq_onnx.calibration import Progress
from amq_onnx.curvature.losses import Loss
from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import losses_on
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head, heads_with, weighed
from amq_onnx.rewriting import with_initializers
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
    `rounding` where there are calibration data, else `none`. held_out: what epochs of `full` are judged by; without it,
    a part of the calibration data, which is kept back.
    """

    method: TuneMethod | None = None
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    full: FineTuneOptions = field(default_factory=FineTuneOptions)
    held_out: Dataset | None = None


def learnable(
    model: onnx.ModelProto, quantized: onnx.ModelProto, chosen: Mapping[str, str], data: Dataset, device: str
) -> tuple[onnx.ModelProto, onnx.ModelProto, list[Head], list[Loss]]:
    """`model` and its quantized form with the tensors that losses are put on, their heads, and their losses on `data`.

    chosen: by head tensor, the name of its loss and why, as the sensitivity was measured with.
    """
    heads = heads_with(model, chosen)
    model, quantized = weighed(model, heads), weighed(quantized, heads)
    return model, quantized, heads, losses_on(Executor(model, device=device), data, heads)


class Tuner:
    """Learns the numbers of quantized graphs from calibration data.

    Raises DataError where labels are to join in and the data have none.
    """

    def __init__(
        self,
        data: Dataset,
        options: TuningOptions,
        checkpoint: Checkpoint,
        progress: Progress | None = None,
    ) -> None:
        self.data = data
        self.options = options
        self.checkpoint = checkpoint
        self.progress = progress
        if options.method == "full" and options.full.label_share:
            for option, given in (("--data", data), ("--tune-eval", options.held_out)):
                if given is not None and not given.has_labels():
                    raise DataError(f"--label-share needs `labels` in the data of {option}: add them, or leave it out")

    def __call__(
        self, model: onnx.ModelProto, quantized: onnx.ModelProto, name: str, chosen: Mapping[str, str]
    ) -> Tuned:
        """What is learned of `quantized`, the quantized form of `model`.

        name: tells its checkpoint from others'. chosen: by head tensor, the name of its loss and why, as the
        sensitivity was measured with.
        """
        rounding = self.options.rounding
        data = self.data.first(rounding.samples)
        model, quantized, heads, losses = learnable(model, quantized, chosen, data, rounding.device)
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
            held_out=self.options.held_out,
            checkpoint=checkpoint.inside("full"),
            progress=self.progress,
        )
        return replace(learned, values={**learned.values, **values}, epochs=epochs)
