"""What each site of a plan really adds to the loss, by itself: the referee of what the plan was chosen by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from amq_onnx.calibration import Progress, calibrate
from amq_onnx.executor.interpreter import Executor
from amq_onnx.freed_batch import freed
from amq_onnx.head_losses import losses_for
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import heads_with, weighed
from amq_onnx.plan import Plan, rounded_to_nearest
from amq_onnx.rewriting import Prepared
from amq_onnx.sample_choice import importance_of, weighed_samples
from amq_onnx.site_losses import SiteLosses, measure_losses
from amq_onnx.site_perturbations import perturbations

SAMPLES = 64


def measure_plan(
    prepared: Prepared,
    plan: Plan,
    data: Dataset,
    chosen: Mapping[str, str],
    *,
    learned: Mapping[str, NDArray[np.float32]] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> SiteLosses:
    """The divergence from the float outputs that each site alone causes at the plan's encoding, rounded to nearest; a
    weight that is among `learned`, as it is there.

    On `samples` of the data, chosen and weighed as the sensitivity's are (see `choose_samples`), by one run of what
    depends on a site for each site. chosen: by head tensor, its loss, as the sensitivity table names it. By site the
    result has one entry, at its widest channel's bits.
    """
    heads = heads_with(prepared.model, chosen)
    executor = Executor(weighed(prepared.model, heads), device=device)
    data = freed(data, [executor])
    names = [head.tensor for head in heads]
    seen = calibrate(executor, data, [], names, progress=progress, importance=importance_of(heads))
    looked_at, weights = weighed_samples(data, seen.importance, samples, seed)
    # One sample tells how large the activations are.
    sizes = calibrate(executor, data.first(1), [site.name for site in prepared.sites.activations], [])
    encodings = plan.encodings(prepared)
    rounded = rounded_to_nearest(prepared, encodings, plan.weights) | dict(learned or {})
    return measure_losses(
        executor,
        looked_at,
        weights,
        perturbations(
            executor,
            prepared,
            {name: {encodings[name].bits: values} for name, values in rounded.items()},
            {name: {encodings[name].bits: encodings[name]} for name in plan.activations},
            plan.expected_inputs,
        ),
        heads,
        losses_for(heads, seen.mean_square),
        method="measured",
        batch_size=sizes.loss_batch_size(),
        seed=seed,
        progress=progress,
    )
