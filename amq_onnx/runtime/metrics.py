"""How good a model's outputs are, by themselves or beside another model's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amq_onnx.errors import DataError, UsageError
from amq_onnx.model.data import load_function
from amq_onnx.runtime.confidence import DisagreementDrop, DropEstimate, MeanDrop, PairedDrop

Outputs = Mapping[str, NDArray[Any]]
_NO_FLOAT = "the model has no float output to compare: use --metric script.py:function"
METRICS = ("top1", "top5", "agreement", "cosine", "sqnr")


class Metric(ABC):
    """A score of a model, from batches of its outputs; higher is better."""

    name: str
    needs_labels = False
    by_parts = False
    """Whether outputs that join several things are to be handed over in parts (see joined_outputs.py)."""

    @abstractmethod
    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """Take in a batch: the full-precision model's outputs, this model's, and the labels if there are some."""

    @abstractmethod
    def score(self) -> float:
        """The score of all batches so far."""

    def drop_from(self, first: Metric) -> DropEstimate | None:
        """How sure the drop from `first` is, which took in the same samples with the full-precision outputs.

        None where the score isn't a mean over samples.
        """
        return None


class _Mean(Metric):
    """A metric that is the mean over samples of what each one scores."""

    def __init__(self) -> None:
        self._outcomes: list[NDArray[Any]] = []

    @property
    def outcomes(self) -> NDArray[Any]:
        """What each sample scored, [samples]."""
        return np.concatenate(self._outcomes) if self._outcomes else np.zeros(0)

    def score(self) -> float:
        """See Metric."""
        outcomes = self.outcomes
        return float(outcomes.sum(dtype=np.float64) / max(1, len(outcomes)))


class Top(_Mean):
    """Share of samples whose label is among the `k` highest scores of the first float output."""

    needs_labels = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.name = f"top{k}"

    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """See Metric. Raises DataError for labels that don't fit the scores."""
        scores = _scores(outputs, self.name)
        if labels is None:
            raise DataError(f"metric {self.name} needs `labels` in the data: add them, or use --metric agreement")
        labels = np.asarray(labels).reshape(-1)
        if len(labels) != len(scores):
            raise DataError(f"the data have {len(labels)} labels for {len(scores)} samples")
        if labels.dtype.kind not in "iu":
            raise DataError(f"labels are {labels.dtype}; metric {self.name} needs class numbers")
        if labels.size and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
            raise DataError(
                f"labels run from {labels.min()} to {labels.max()}, but the model has {scores.shape[1]} classes"
            )
        # Ties count against the label, so that a constant output scores nothing; so does what isn't a number.
        own = scores[np.arange(len(scores)), labels][:, None]
        self._outcomes.append((~(scores < own)).sum(1) <= self.k)

    def drop_from(self, first: Metric) -> DropEstimate | None:
        """See Metric."""
        assert isinstance(first, Top)
        before, after = first.outcomes, self.outcomes
        return PairedDrop(len(after), int((before & ~after).sum()), int((after & ~before).sum()))


class Agreement(_Mean):
    """Share of samples whose highest score is in the same place as the full-precision model's."""

    name = "agreement"

    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """See Metric."""
        first, second = _scores(reference, self.name), _scores(outputs, self.name)
        self._outcomes.append(first.argmax(1) == second.argmax(1))

    def drop_from(self, first: Metric) -> DropEstimate | None:
        """See Metric."""
        same = self.outcomes
        return DisagreementDrop(len(same), int((~same).sum()))


class Cosine(_Mean):
    """Mean over samples of the cosine between this model's outputs and the full-precision model's: of several outputs
    the mean of their cosines, so that large numbers in one don't hide another."""

    name = "cosine"
    by_parts = True

    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """See Metric."""
        pairs = zip(_rows(reference), _rows(outputs), strict=True)
        self._outcomes.append(np.mean([_cosines(first, second) for first, second in pairs], axis=0))

    def drop_from(self, first: Metric) -> DropEstimate | None:
        """See Metric. Where outputs aren't a row a sample, what counts is a row a batch."""
        assert isinstance(first, Cosine)
        drops = first.outcomes - self.outcomes
        return MeanDrop(len(drops), float(drops.mean()), float(drops.std(ddof=1))) if len(drops) > 1 else None


class Sqnr(Metric):
    """Signal to quantization noise of the outputs in decibels: 10 log10(||y||^2 / ||y' - y||^2), of several outputs
    with the mean of their ratios of noise to signal."""

    name = "sqnr"
    by_parts = True

    def __init__(self) -> None:
        self._powers: NDArray[np.float64] = np.zeros((1, 2))

    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """See Metric."""
        pairs = zip(_rows(reference), _rows(outputs), strict=True)
        powers = [[np.square(first).sum(), np.square(second - first).sum()] for first, second in pairs]
        self._powers = self._powers + np.array(powers)

    def score(self) -> float:
        """See Metric: infinite where there is no noise, minus infinity where there is nothing else."""
        signal, noise = self._powers.T
        if not noise.any():
            return float("inf")
        if (noise[signal == 0] > 0).any():
            return float("-inf")
        return float(-10 * np.log10(np.mean(noise / np.where(signal, signal, 1))))


class UserMetric(Metric):
    """`script.py:function(outputs, labels) -> float`, called once with the outputs of all samples.

    outputs: by name, one array, or a list of them where batches differ in more than their first dimension.
    """

    def __init__(self, where: str) -> None:
        script, _, function = where.rpartition(":")
        self.name = where
        self._function: Callable[[Mapping[str, Any], NDArray[Any] | None], Any] = load_function(script, function)
        self._outputs: list[Outputs] = []
        self._labels: list[NDArray[Any]] = []

    def add(self, reference: Outputs, outputs: Outputs, labels: NDArray[Any] | None) -> None:
        """See Metric."""
        self._outputs.append(outputs)
        if labels is not None:
            self._labels.append(labels)

    def score(self) -> float:
        """See Metric. Raises DataError if the function fails or returns no number."""
        try:
            joined = {name: _joined([batch[name] for batch in self._outputs]) for name in self._outputs[0]}
            labels = np.concatenate(self._labels) if self._labels else None
            return float(self._function(joined, labels))
        except Exception as error:
            raise DataError(f"metric '{self.name}' failed: {type(error).__name__}: {error}") from error


def metric_named(name: str) -> Callable[[], Metric]:
    """A maker of the metric `name`. Raises UsageError for an unknown one."""
    makers: dict[str, Callable[[], Metric]] = {
        "top1": lambda: Top(1),
        "top5": lambda: Top(5),
        "agreement": Agreement,
        "cosine": Cosine,
        "sqnr": Sqnr,
    }
    if name in makers:
        return makers[name]
    if ".py:" in name:
        return lambda: UserMetric(name)
    raise UsageError(f"--metric '{name}' is unknown: use {', '.join(METRICS)} or script.py:function")


def _joined(batches: list[NDArray[Any]]) -> NDArray[Any] | list[NDArray[Any]]:
    arrays = [np.atleast_1d(batch) for batch in batches]
    return np.concatenate(arrays) if len({array.shape[1:] for array in arrays}) == 1 else arrays


def _scores(outputs: Outputs, metric: str) -> NDArray[Any]:
    scores = first_float(outputs)
    if scores.ndim != 2:
        raise UsageError(
            f"metric {metric} needs scores [samples, classes], but the model's have {scores.ndim} dimensions: "
            "use --metric cosine or a function of your own"
        )
    return scores


def first_float(outputs: Outputs) -> NDArray[Any]:
    """The first output that is float, where labels stand in front of the scores; the first of all where none is."""
    arrays = list(outputs.values())
    if not arrays:
        raise UsageError(_NO_FLOAT)
    return next((array for array in arrays if array.dtype.kind == "f"), arrays[0])


def _rows(outputs: Outputs) -> list[NDArray[np.float64]]:
    """Each float output with a row a sample; with one row for all where outputs differ in their first dimension, or
    have none."""
    floats = [array.astype(np.float64) for array in outputs.values() if array.dtype.kind == "f"]
    if not floats:
        raise UsageError(_NO_FLOAT)
    counts = {len(array) if array.ndim else None for array in floats}
    rows = counts.pop() if len(counts) == 1 else None
    return [array.reshape(rows or 1, -1) for array in floats]


def _cosines(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    dots = np.einsum("ij,ij->i", first, second)
    # Zeros point nowhere: like zeros, and unlike anything else.
    both_zero = ~first.any(1) & ~second.any(1)
    return np.where(norms > 0, dots / np.where(norms > 0, norms, 1), both_zero)
