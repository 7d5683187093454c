"""More training samples from few: mixes of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amq_onnx.model.data import Batch, Dataset


def mixed_samples(data: Dataset, batches: Sequence[Batch], seed: int) -> list[Batch]:
    """As many batches again, whose samples are each a random mix of two of `data`'s (mixup, Zhang et al. 2018, arXiv
    1710.09412); none where no input is float.

    Mixes need no label where the float network's own outputs are what is aimed at, and no knowledge of what the inputs
    are. Inputs that are not float come from the sample with the larger share; only samples of equal shapes are mixed.
    """
    if not data.mixable(batches[0]):
        return []
    generator = np.random.default_rng([seed, len(batches)])
    found = []
    for batch in batches:
        partners = [other for other in batches if data.alike(other, batch)]
        partner = partners[int(generator.integers(len(partners)))]
        chosen = data.picked(partner, generator.integers(data.count(partner), size=data.count(batch)))
        share = generator.random(data.count(batch), np.float32)
        found.append(data.mixed(batch, chosen, share))
    return found
