"""Learns how one block's weights are rounded, so that its outputs stay those of the float block.

AdaRound (Nagel et al. 2020, arXiv 2004.10568) learns for each weight whether it is rounded up or down; BRECQ (Li et al.
2021, arXiv 2102.05426) does it for the weights of a block together, weighting the error of the block's outputs by the
loss's curvature; QDrop (Wei et al. 2022, arXiv 2203.05740) mixes inputs from the quantized network with those of the
float one. No labels are needed.

The last block follows the network's scores. They are few, and its codes many: from them alone it learns what holds for
the calibration samples and no others (the squared error of ResNet20's scores at 4 bits, a tenth of that with rounding
to nearest on these, was a fifth on others). So what its layers make at every position of every sample counts as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amq_onnx.executor.interpreter import Executor
from amq_onnx.tuning.block_data import BlockData
from amq_onnx.tuning.quantizers import Quantizer, along, shifted_scale
from amq_onnx.tuning.soft_rounding import SoftCodes, annealed_beta

# Adam's rate for the variables of the codes, which travel some 3 units, for the logarithms of activation scales, and
# for biases, relative to their root mean square.
_CODES_RATE = 0.05
_SCALES_RATE = 0.001
_BIASES_RATE = 0.002
# Share of the steps before codes are drawn to whole numbers, and how strongly they are then, in units of the error of
# rounding to nearest: more and more, and at last so that what the samples of each step disagree about settles as well.
_WARM_UP = 0.2
_SETTLING = 300.0
_LAST = 0.85
_LAST_SETTLING = 3000.0


@dataclass(frozen=True)
class RoundedBlock:
    """What became of a block.

    codes: by weight. scales: by activation. biases: by name. nearest, learned: mean loss of its outputs with codes
    rounded to nearest and with learned ones. elements: how many codes it has; settled: how many were within 2 % of a
    whole number before they were made whole; changed: how many differ from the nearest.
    """

    codes: dict[str, Tensor] = field(repr=False)
    scales: dict[str, Tensor] = field(repr=False)
    biases: dict[str, Tensor] = field(repr=False)
    nearest: float
    learned: float
    elements: int
    settled: int
    changed: int


def round_block(
    executor: Executor,
    weights: Sequence[Quantizer],
    activations: Sequence[Quantizer],
    biases: Sequence[str],
    data: BlockData,
    steps: int,
    generator: torch.Generator,
) -> RoundedBlock:
    """Learn the codes of `weights`, the scales of `activations` and `biases` in `steps` steps of a chunk each.

    executor: of the quantized graph. What is learned is kept only if the block's outputs come closer to the float
    block's, over all chunks, than with rounding to nearest.
    """
    constants = executor.initializers
    soft = {}
    for weight in weights:
        values = constants[weight.tensor]
        bounds = (torch.from_numpy(bound).to(values.device) for bound in (weight.low, weight.high))
        soft[weight] = SoftCodes(values, along(weight.axis, constants[weight.scale], values), *bounds)
    shifts = {site: torch.zeros((), device=executor.device, requires_grad=True) for site in activations}

    added = {name: constants[name].detach().clone().requires_grad_() for name in biases}

    def scales() -> dict[str, Tensor]:
        return {site.scale: shifted_scale(site, constants[site.scale], shift) for site, shift in shifts.items()}

    nearest = {weight.codes: codes.nearest for weight, codes in soft.items()}
    before, errors_before = _mean_loss(executor, data, nearest)
    count = sum(codes.variable.numel() for codes in soft.values())
    groups = [{"params": [codes.variable for codes in soft.values()], "lr": _CODES_RATE}]
    if shifts:
        groups.append({"params": list(shifts.values()), "lr": _SCALES_RATE})
    for value in added.values():
        groups.append({"params": [value], "lr": _BIASES_RATE * float(value.detach().square().mean().sqrt())})
    optimizer = torch.optim.Adam(groups)
    for step in range(steps):
        chunk = data.chunks[int(torch.randint(len(data.chunks), (), generator=generator))]
        codes = {weight.codes: learned.soft() for weight, learned in soft.items()}
        names = (*data.outputs, *data.layers)
        found = executor.run({**data.values(chunk, generator), **codes, **scales(), **added}, names)
        loss = data.loss(chunk, found) / max(before, 1e-30)
        if data.layers:
            loss = loss + (data.layer_errors(chunk, found) / errors_before.clamp_min(1e-30)).mean()
        annealed = (step / steps - _WARM_UP) / (1 - _WARM_UP)
        if annealed > 0:
            beta = annealed_beta(annealed)
            loose = torch.stack([learned.unsettled(beta) for learned in soft.values()]).sum() / count
            loss = loss + _settling(annealed) * loose
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    settled = sum(learned.settled() for learned in soft.values())
    hard = {weight.codes: learned.hard() for weight, learned in soft.items()}
    with torch.no_grad():
        fitted = {**scales(), **{name: value.detach() for name, value in added.items()}}
    after, _ = _mean_loss(executor, data, {**hard, **fitted})
    better = after < before
    kept = hard if better else nearest
    return RoundedBlock(
        codes={weight.tensor: kept[weight.codes] for weight in weights},
        scales={site.tensor: (fitted if better else constants)[site.scale].detach() for site in activations},
        biases={name: (fitted if better else constants)[name] for name in added},
        nearest=before,
        learned=after if better else before,
        elements=count,
        settled=settled,
        changed=sum(int((kept[name] != nearest[name]).sum()) for name in nearest),
    )


def _settling(annealed: float) -> float:
    last = max(0.0, (annealed - _LAST) / (1 - _LAST))
    return _SETTLING * annealed + (_LAST_SETTLING - _SETTLING) * last


def _mean_loss(executor: Executor, data: BlockData, values: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    """Over all chunks, the loss of the block's outputs and the errors of its layers."""
    total, errors, samples = 0.0, torch.zeros(len(data.layers), device=executor.device), 0
    with torch.no_grad():
        for chunk in data.chunks:
            found = executor.run({**data.values(chunk), **values}, (*data.outputs, *data.layers))
            total += float(data.loss(chunk, found)) * chunk.samples
            if data.layers:
                errors += data.layer_errors(chunk, found) * chunk.samples
            samples += chunk.samples
    return total / samples, errors / samples
