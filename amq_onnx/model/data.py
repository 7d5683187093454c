"""Calibration and evaluation data: batches of named arrays, read as often as they are needed."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.errors import AMQError, DataError
from amq_onnx.model.inputs import InputSpec, input_specs
from amq_onnx.model.kept_source import KeptSource

Batch = dict[str, NDArray[Any]]
LABELS = "labels"
"""The array of a batch that holds labels, unless the model has an input of that name."""


_SPLIT_READ = 256


class CalibrationDataReader(Protocol):
    """What onnxruntime.quantization.CalibrationDataReader offers: feeds one by one, then None."""

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None at the end."""


class Dataset:
    """Batches of a model's inputs, with `labels` where there are some, in the same order on every pass.

    source: called for each pass; yields dicts of arrays with a dimension that counts samples (see input_specs; the
    first one of `labels`). The samples are checked against the model's inputs and cut into batches again, so that
    memory is that of a batch and one of the source's dicts. Samples that differ in a free dimension (images of
    several sizes) or in an input that all of a batch share never meet in one batch.
    """

    def __init__(
        self,
        source: Callable[[], Iterable[Mapping[str, Any]]],
        specs: tuple[InputSpec, ...],
        origin: str,
        limit: int | None = None,
    ) -> None:
        self.source = source
        self.specs = specs
        self.origin = origin
        self.limit = limit

    def first(self, samples: int | None) -> Dataset:
        """The same data, but no more than the first `samples` (or one batch, where the model fixes its size)."""
        if samples is None:
            return self
        wanted = max(samples, self.fixed_batch() or 0)
        return Dataset(self.source, self.specs, self.origin, min(wanted, self.limit or wanted))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of `size` samples (the last may be smaller); a fixed batch dimension of the model wins.

        Raises DataError for data that don't fit the model, naming the input.
        """
        fixed = self.fixed_batch()
        size = fixed or size
        held: list[Batch] = []
        count = taken = 0
        labelled: bool | None = None
        for raw in self._raw():
            chunk = self._checked(raw)
            if labelled not in (None, LABELS in chunk):
                raise DataError(f"{self.origin} has labels for some of its samples only")
            labelled = LABELS in chunk
            samples = self.count(chunk)
            if held and not fixed and not self.alike(held[0], chunk):
                yield self._joined(held)
                held, count = [], 0
            if self.limit is not None and taken + samples > self.limit:
                samples = self.limit - taken
                chunk = self._cut(chunk, 0, samples)
            if not samples:
                break
            taken += samples
            held.append(chunk)
            count += samples
            while count >= size:
                joined = held[0] if len(held) == 1 else self._joined(held)
                yield self._cut(joined, 0, size)
                count -= size
                held = [self._cut(joined, size, size + count)] if count else []
            if taken == self.limit:
                break
        if not taken:
            raise DataError(f"{self.origin} holds no samples")
        if count and not fixed:
            yield self._joined(held)
        elif count and taken < size:
            raise DataError(f"{self.origin} holds {taken} samples, fewer than the model's fixed batch of {size}")

    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on, if all its inputs name the same."""
        sizes = {size for spec in self.specs if (size := spec.fixed_batch()) is not None}
        return sizes.pop() if len(sizes) == 1 else None

    def picked(self, batch: Batch, samples: NDArray[np.intp]) -> Batch:
        """The batch of these samples of `batch`, in this order."""
        return {
            name: array if axis is None else np.take(array, samples, axis)
            for (name, axis), array in zip(self._axes(batch), batch.values(), strict=True)
        }

    def mixable(self, batch: Batch) -> bool:
        """Whether `mixed` makes anything new: where something is float."""
        return any(array.dtype.kind == "f" for array in batch.values())

    def mixed(self, batch: Batch, other: Batch, share: NDArray[np.float32]) -> Batch:
        """`share` of each sample of `batch` and the rest of one of `other`, added up where they are float; inputs that
        aren't come from the sample of the larger share.

        share: [samples], 0 to 1. Both have as many samples, of the same shapes.
        """
        found: Batch = {}
        for name, axis in self._axes(batch):
            first, second = batch[name], other[name]
            if axis is None:
                found[name] = first
                continue
            weights = share.reshape([-1 if place == axis else 1 for place in range(first.ndim)])
            if first.dtype.kind == "f":
                found[name] = (weights * first + (1 - weights) * second).astype(first.dtype)
            else:
                found[name] = np.where(weights >= 0.5, first, second)
        return found

    def alike(self, one: Batch, other: Batch) -> bool:
        """True where samples of both can be in one batch."""
        for name, axis in self._axes(one):
            if axis is None:
                if not np.array_equal(one[name], other[name]):
                    return False
            elif _other_sizes(one[name], axis) != _other_sizes(other[name], axis):
                return False
        return True

    def chosen(self, numbers: Sequence[int]) -> Dataset:
        """The samples of these rising numbers alone, of a model that doesn't fix the batch size."""

        def source() -> Iterator[Batch]:
            seen = 0
            for batch in self.batches(_SPLIT_READ):
                count = self.count(batch)
                wanted = np.array([number - seen for number in numbers if seen <= number < seen + count], np.intp)
                seen += count
                if len(wanted):
                    yield self.picked(batch, wanted)
                if seen > numbers[-1]:
                    break

        return Dataset(source, self.specs, self.origin)

    def followed_by(self, other: Dataset) -> Dataset:
        """These samples and then those of `other`, of a model that doesn't fix the batch size."""

        def source() -> Iterator[Batch]:
            yield from self.batches(_SPLIT_READ)
            yield from other.batches(_SPLIT_READ)

        return Dataset(source, self.specs, self.origin)

    def split(self, every: int, most: int) -> tuple[Dataset, Dataset]:
        """Two parts: all but every `every`-th sample, and those, of which there are `most` at most."""

        def part(held_out: bool) -> Iterator[Batch]:
            seen = 0
            for batch in self.batches(_SPLIT_READ):
                numbers = seen + np.arange(self.count(batch))
                seen += len(numbers)
                chosen = (numbers % every == every - 1) & (numbers < every * most)
                wanted = np.flatnonzero(chosen if held_out else ~chosen)
                if len(wanted):
                    yield self.picked(batch, wanted)

        return (
            Dataset(lambda: part(False), self.specs, self.origin),
            Dataset(lambda: part(True), self.specs, self.origin),
        )

    def samples(self) -> int:
        """How many samples a pass yields (reads the data once)."""
        return sum(self.count(batch) for batch in self.batches(256))

    def has_labels(self) -> bool:
        """True if the data carry labels."""
        return any(LABELS in batch for batch in self.first(1).batches(1))

    def _raw(self) -> Iterator[Mapping[str, Any]]:
        """What the source yields; its own failures are errors in the data."""
        try:
            for raw in self.source():
                if not isinstance(raw, Mapping):
                    raise DataError(f"{self.origin} yields {type(raw).__name__}, not dicts of arrays by input name")
                yield raw
        except AMQError:
            raise
        except Exception as error:
            raise DataError(f"{self.origin} failed: {type(error).__name__}: {error}") from error

    def _checked(self, raw: Mapping[str, Any]) -> Batch:
        batch: Batch = {}
        for spec in self.specs:
            if spec.name not in raw:
                given = ", ".join(f"'{name}'" for name in raw) or "nothing"
                raise DataError(f"{self.origin} has no array for the model's input '{spec.name}' (it has {given})")
            array = np.asarray(raw[spec.name])
            if array.dtype == object:
                raise DataError(f"array '{spec.name}' of {self.origin} holds Python objects, not numbers")
            if array.dtype != spec.dtype:
                if array.dtype.kind != spec.dtype.kind and not (spec.dtype.kind == "f" and array.dtype.kind in "iu"):
                    raise DataError(
                        f"array '{spec.name}' of {self.origin} is {array.dtype}, but the model's input is {spec.dtype}"
                    )
                array = array.astype(spec.dtype)
            if not spec.fits(array.shape):
                wanted = "x".join("?" if size is None else str(size) for size in spec.shape)
                got = "x".join(map(str, array.shape))
                raise DataError(
                    f"array '{spec.name}' of {self.origin} has shape {got}, but the model's input is {wanted}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"array '{spec.name}' of {self.origin} holds NaN or infinity")
            batch[spec.name] = array
        if LABELS in raw and LABELS not in batch:
            batch[LABELS] = np.asarray(raw[LABELS])
        lengths = {name: batch[name].shape[axis] for name, axis in self._axes(batch) if axis is not None}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise DataError(f"the arrays of {self.origin} differ in their number of samples: {listed}")
        return batch

    def _axes(self, batch: Batch) -> Iterator[tuple[str, int | None]]:
        """Each array of a batch with the dimension that counts samples."""
        axes = {spec.name: spec.sample_axis for spec in self.specs}
        for name, array in batch.items():
            yield name, axes.get(name, 0) if array.ndim else None

    def count(self, batch: Batch) -> int:
        """How many samples a batch holds (a model whose inputs are all shared has one a run)."""
        return next((batch[name].shape[axis] for name, axis in self._axes(batch) if axis is not None), 1)

    def _cut(self, batch: Batch, start: int, stop: int) -> Batch:
        return {
            name: batch[name] if axis is None else batch[name][(slice(None),) * axis + (slice(start, stop),)]
            for name, axis in self._axes(batch)
        }

    def _joined(self, batches: list[Batch]) -> Batch:
        return {
            name: batches[0][name] if axis is None else np.concatenate([batch[name] for batch in batches], axis)
            for name, axis in self._axes(batches[0])
        }


def open_data(where: str, model: onnx.ModelProto, limit: int | None = None) -> Dataset:
    """The data that `where` names: an .npz file, a folder of them, or `script.py:function`.

    The function is called without arguments for every pass and must yield the same dicts each time; what is small
    enough to keep (see KeptSource) is read once.
    Raises DataError where there is none, or it can't be read.
    """
    specs = input_specs(model)
    path = Path(where)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError(f"the folder '{where}' holds no .npz file")
        return Dataset(KeptSource(lambda: map(_load, files)), specs, f"'{where}'", limit)
    if path.suffix == ".npz":
        if not path.is_file():
            raise DataError(f"there is no data file '{where}'")
        arrays = _load(path)
        return Dataset(lambda: [arrays], specs, f"'{where}'", limit)
    script, _, name = where.rpartition(":")
    if script.endswith(".py") and name:
        return Dataset(KeptSource(load_function(script, name)), specs, f"'{where}'", limit)
    raise DataError(f"'{where}' is no data: give an .npz file, a folder of .npz files, or script.py:function")


def reader_data(reader: CalibrationDataReader, model: onnx.ModelProto) -> Dataset:
    """The feeds of an onnxruntime CalibrationDataReader, read once and kept (it can't be rewound)."""
    feeds: list[dict[str, Any]] = []
    while (feed := reader.get_next()) is not None:
        feeds.append(feed)
    return Dataset(lambda: feeds, input_specs(model), "the calibration data reader")


def load_function(script: str, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file `script`, which may import what lies beside it."""
    path = Path(script)
    if not path.is_file():
        raise DataError(f"there is no script '{script}'")
    spec = importlib.util.spec_from_file_location(f"amq_script_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"'{script}' can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # As `python script.py` has it, but last: nothing that is installed is hidden. It stays, for later imports.
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"'{script}' failed on import: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"'{script}' has no function '{name}'")
    return function  # type: ignore[no-any-return]


def _load(path: Path) -> Batch:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' can't be read as an .npz file: {error}") from error


def _other_sizes(array: NDArray[Any], axis: int) -> tuple[int, ...]:
    return array.shape[:axis] + array.shape[axis + 1 :]
