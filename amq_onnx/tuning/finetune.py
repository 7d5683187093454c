"""Fine-tuning of a whole quantized graph: AMQ's last step (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852, section 4).

The graph's own initializers are trained through its QuantizeLinear nodes, whose rounding passes gradients straight
through: weights, their scales (LSQ, Esser et al. 2020, arXiv 1902.08153), the scales of activations, which times the
number of codes are the clipping values of PACT (Choi et al. 2018, arXiv 1805.06085), and biases. The float graph is the
teacher; labels may join in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.losses import Loss
from amq_onnx.errors import UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.freed_batch import freed
from amq_onnx.model.data import LABELS, Batch, Dataset
from amq_onnx.model.file import fingerprint
from amq_onnx.model.heads import Head
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.epoch_report import EpochReport, is_best
from amq_onnx.tuning.loader import Augmentation, Loader
from amq_onnx.tuning.processes import Processes
from amq_onnx.tuning.quantizers import Quantizer, find_biases, find_quantizers, shifted_scale
from amq_onnx.tuning.sums import aligned_scales

# Every tenth sample is held out, to judge by, up to a thousand of them.
_HELD_OUT = 10
_MOST_HELD_OUT = 1000
_EVALUATION_BATCH = 64
_STEP = "full"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class FineTuneOptions:
    """How the graph is trained.

    epochs: passes over the data. batch_size: samples a step, of all processes together. weight_rate: Adam's rate for
    weights, in steps of their quantizer; scale_rate: for logarithms of scales; bias_rate: for biases, relative to their
    root mean square. All fall to zero along a cosine. rate: times those of weights and biases, and its root times that
    of scales, which move all codes of a tensor at once. label_share: of the loss that comes from labels; the rest is
    the divergence from the float graph, which is of the same kind, and without labels the distance from it, which
    tells more. augment: applied to every batch. mix: learn from mixes of two samples each, where labels don't join
    in: on samples that the float graph was trained on it is too sure of itself to teach much else. bfloat16: layers
    multiply numbers of 16 bits while they are trained, as torch.autocast has it, which takes .6 to .7 of the time where
    the processor has instructions for them; quantizers compute in float32 as ever, and so do judgements.
    """

    epochs: int = 20
    batch_size: int = 128
    weight_rate: float = 0.01
    scale_rate: float = 0.001
    bias_rate: float = 0.002
    rate: float = 1.0
    label_share: float = 0.0
    augment: Augmentation | None = None
    mix: bool = True
    bfloat16: bool = False
    seed: int = 0
    device: str = "cpu"


def _or_nan(share: float | None) -> float:
    return math.nan if share is None else share


def _or_none(share: float) -> float | None:
    return None if math.isnan(share) else float(share)


def fine_tune(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    heads: Sequence[Head],
    losses: Sequence[Loss],
    data: Dataset,
    options: FineTuneOptions,
    *,
    held_out: Dataset | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Array], list[EpochReport]]:
    """Initializers of `quantized`, the quantized form of `model`, after the best epoch; and what each epoch gave.

    The best epoch is that of the best agreement with the float graph on `held_out` (see EpochReport), the start
    included; none that agrees less than the start. Where labels join in, it is the last whose accuracy isn't below that
    of another by more than two standard errors. Without `held_out`, a part of `data` is kept back: of samples that the
    float graph was trained on it knows many by heart, which is lost as the quantized one learns from others.
    Raises UsageError for a checkpoint of another run.
    """
    checkpoint = checkpoint or Checkpoint()
    training = _Training(model, quantized, heads, losses, data, options, held_out)
    held = None
    if training.processes.rank == 0:
        checkpoint.open(
            {
                "quantized": fingerprint(quantized),
                "rates": [options.weight_rate, options.scale_rate, options.bias_rate, options.label_share],
                "options": [options.epochs, options.batch_size, options.seed, options.augment is not None, options.mix],
                "rate": options.rate,
                "held out": held_out is not None,
                "bfloat16": options.bfloat16,
                "processes": training.processes.size,
            }
        )
        held = checkpoint.load(_STEP)
    held = training.processes.from_first(held)
    if held is not None:
        training.restore(held)
    else:
        training.judge(0.0)
    while training.epoch < options.epochs:
        loss = training.run_epoch(progress)
        training.judge(loss)
        if training.processes.rank == 0:
            checkpoint.save(_STEP, training.state())
    return training.best, training.reports


class _Training:
    """Parameters, their optimizer, the data, and the best so far."""

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        data: Dataset,
        options: FineTuneOptions,
        held_out: Dataset | None,
    ) -> None:
        self.options = options
        self.heads, self.losses = heads, losses
        self.processes = Processes(options.device)
        self.teacher = Executor(model, device=options.device)
        self.student = Executor(quantized, device=options.device)
        self.names = [head.tensor for head in heads]
        executors = [self.teacher, self.student]
        data = freed(data, executors)
        fixed = data.fixed_batch()
        if fixed is not None and self.processes.size > 1:
            raise UsageError(f"the model's batch is fixed at {fixed}: train it on one process")
        if held_out is not None:
            training, self.held_out = data, freed(held_out, executors)
        elif data.first(2 * _HELD_OUT).samples() < 2 * _HELD_OUT:
            training = self.held_out = data
        else:
            training, self.held_out = data.split(_HELD_OUT, _MOST_HELD_OUT)
        self.loader = Loader(
            training,
            options.batch_size,
            options.seed,
            options.augment,
            self.processes.rank,
            self.processes.size,
            mix=options.mix and not options.label_share,
        )
        self.steps = options.epochs * self.loader.batches()
        if not self.steps:
            raise UsageError("the data have fewer samples than there are processes: start fewer")
        self.parameters = _Parameters(quantized, self.student, options)
        self.optimizer = torch.optim.Adam(self.parameters.groups())
        self.epoch = 0
        self.best: dict[str, Array] = {}
        self.reports: list[EpochReport] = []

    def run_epoch(self, progress: Progress | None) -> float:
        """One pass over the data; the mean loss of its steps."""
        total = 0.0
        count = 0
        whole = self.steps // self.options.epochs
        for batch in self.loader.epoch(self.epoch):
            loss = self._loss(batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.processes.average(self.parameters.gradients())
            share = (self.epoch * whole + count) / self.steps
            for group, rate in zip(self.optimizer.param_groups, self.parameters.rates(), strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            self.optimizer.step()
            total += loss.item()
            count += 1
            if progress is not None:
                progress(f"fine-tuning, epoch {self.epoch + 1}", count, whole)
        self.epoch += 1
        mean = torch.tensor(total / count, device=self.student.device)
        self.processes.average([mean])
        return mean.item()

    def judge(self, loss: float) -> None:
        """Measure where training stands, and keep it if it is the best so far."""
        same, right, divergence, samples = 0.0, 0.0, 0.0, 0
        values = self.parameters.detached()
        with torch.no_grad():
            for batch in self.held_out.batches(_EVALUATION_BATCH):
                feeds = tensors(batch, self.student)
                expected = self.teacher.run(feeds, self.names)
                found = self.student.run({**feeds, **values}, self.names)
                count = self.held_out.count(batch)
                samples += count
                for head, each in zip(self.heads, self.losses, strict=True):
                    scores, truth = found[head.tensor], expected[head.tensor]
                    divergence += float(each.divergence(truth, scores).double().mean()) * count
                    if head.loss == "softmax":
                        classes = scores.argmax(head.axis)
                        same += float((classes == truth.argmax(head.axis)).double().mean()) * count
                        if self.options.label_share:
                            right += float((classes == self._labels(batch)).double().mean()) * count
        heads = sum(head.loss == "softmax" for head in self.heads)
        agreement = same / samples / heads if heads else None
        accuracy = right / samples / heads if heads and self.options.label_share else None
        report = EpochReport(loss, agreement, divergence / samples, accuracy=accuracy)
        if is_best(report, self.reports, samples):
            self.best = {name: value.cpu().numpy().copy() for name, value in values.items()}
            report = replace(report, kept=True)
        self.reports.append(report)

    def _labels(self, batch: Batch) -> Tensor:
        return torch.from_numpy(np.asarray(batch[LABELS])).to(self.student.device)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that is needed to go on, as arrays."""
        found: dict[str, NDArray[np.generic]] = {
            "epoch": np.array(self.epoch),
            "reports": np.array(
                [[report.loss, _or_nan(report.agreement), report.divergence, report.kept, _or_nan(report.accuracy)]
                 for report in self.reports]
            ),
        }  # fmt: skip
        found |= {f"best/{name}": value for name, value in self.best.items()}
        moments = self.optimizer.state_dict()["state"]
        for index, variable in enumerate(self.parameters.variables()):
            found[f"variable/{index}"] = variable.detach().cpu().numpy()
            for key in ("exp_avg", "exp_avg_sq", "step"):
                found[f"{key}/{index}"] = moments[index][key].cpu().numpy()
        return found

    def restore(self, held: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`."""
        self.epoch = int(held["epoch"])
        self.reports = [
            EpochReport(float(loss), _or_none(agreement), float(divergence), bool(kept), _or_none(accuracy))
            for loss, agreement, divergence, kept, accuracy in np.asarray(held["reports"], np.float64)
        ]
        self.best = {
            name.removeprefix("best/"): np.asarray(value, np.float32)
            for name, value in held.items()
            if name.startswith("best/")
        }
        state = self.optimizer.state_dict()
        with torch.no_grad():
            for index, variable in enumerate(self.parameters.variables()):
                variable.copy_(torch.from_numpy(np.array(held[f"variable/{index}"])))
                state["state"][index] = {
                    key: torch.from_numpy(np.array(held[f"{key}/{index}"])) for key in ("exp_avg", "exp_avg_sq", "step")
                }
        self.optimizer.load_state_dict(state)

    def _loss(self, batch: Batch) -> Tensor:
        feeds = tensors(batch, self.student)
        kind = torch.device(self.student.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.options.bfloat16):
            with torch.no_grad():
                teaching = self.teacher.run(feeds, self.names)
            learning = self.student.run({**feeds, **self.parameters.values()}, self.names)
        expected, found = ({name: scores.float() for name, scores in run.items()} for run in (teaching, learning))
        share = self.options.label_share
        labels = self._labels(batch) if share else None
        parts: list[Tensor] = []
        for head, loss in zip(self.heads, self.losses, strict=True):
            scores, truth = found[head.tensor], expected[head.tensor]
            if labels is None:
                parts.append(loss.distance(truth, scores).mean())
            else:
                parts.append((1 - share) * loss.divergence(truth, scores).mean())
                parts.append(share * loss.value(scores, labels).mean())
        return torch.stack(parts).sum()


@dataclass(eq=False)
class _Parameters:
    """What is trained of a quantized graph: variables, and the initializers that they stand for."""

    quantized: onnx.ModelProto
    executor: Executor
    options: FineTuneOptions
    _values: dict[str, Tensor] = field(default_factory=dict)
    _shifts: dict[str, Tensor] = field(default_factory=dict)
    _quantizers: dict[str, Quantizer] = field(default_factory=dict)
    _leaders: dict[str, str] = field(default_factory=dict)
    _rates: list[tuple[Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        constants, options = self.executor.initializers, self.options
        weights, activations = find_quantizers(self.quantized)
        learned = (site for site in (*weights.values(), *activations.values()) if not site.fixed)
        self._quantizers = {site.scale: site for site in learned}
        aligned = aligned_scales(self.quantized, constants)
        self._leaders = {name: by for name, by in aligned.items() if {name, by} <= self._quantizers.keys()}
        for name, leader in self._leaders.items():  # scales that are to stay equal have one limit
            limits = [self._quantizers[other].limit for other, by in self._leaders.items() if by == leader]
            self._quantizers[name] = replace(self._quantizers[name], limit=min(limits))
        for name, site in weights.items():
            rate = options.rate * options.weight_rate * float(constants[site.scale].mean())
            self._add(self._values, name, constants[name], rate)
        for name in find_biases(self.quantized):
            size = float(constants[name].square().mean().sqrt())
            if name not in self._values and size > 0:
                self._add(self._values, name, constants[name], options.rate * options.bias_rate * size)
        for name in self._quantizers:
            if self._leaders.get(name, name) == name:
                rate = math.sqrt(options.rate) * options.scale_rate
                self._add(self._shifts, name, torch.zeros_like(constants[name]), rate)

    def _add(self, kind: dict[str, Tensor], name: str, start: Tensor, rate: float) -> None:
        kind[name] = start.detach().clone().requires_grad_()
        self._rates.append((kind[name], rate))

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups for the optimizer, one a variable."""
        return [{"params": [variable], "lr": rate} for variable, rate in self._rates]

    def rates(self) -> list[float]:
        """The rate that each group starts with."""
        return [rate for _, rate in self._rates]

    def variables(self) -> list[Tensor]:
        """All variables, in the optimizer's order."""
        return [variable for variable, _ in self._rates]

    def gradients(self) -> Iterator[Tensor]:
        """The gradients of all variables; zeros where nothing depends on one."""
        for variable in self.variables():
            if variable.grad is None:
                variable.grad = torch.zeros_like(variable)
            yield variable.grad

    def values(self) -> dict[str, Tensor]:
        """Initializers by name, as functions of the variables."""
        scales = {
            name: shifted_scale(site, self.executor.initializers[name], self._shifts[self._leaders.get(name, name)])
            for name, site in self._quantizers.items()
        }
        return {**self._values, **scales}

    def detached(self) -> dict[str, Tensor]:
        """`values`, as they are now."""
        with torch.no_grad():
            return {name: value.detach() for name, value in self.values().items()}
