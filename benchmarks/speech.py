"""Silero VAD, which tells speech from noise 32 ms at a time, its state fed back: `--data speech.py:calibration`.

No recorded speech is at hand, so it is synthesised: a pulse train with a moving pitch through the resonances of
vowels, bursts of noise between, in phrases of a few syllables, over pink noise. The float model tells it from the
pauses with an area under the curve of .97.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from packages import package_file
from scipy.signal import lfilter

Batch = dict[str, NDArray[Any]]
Signal = NDArray[np.float64]
# Samples of a frame and of what is repeated from the frame before, by sampling rate.
_FRAME = {16000: (512, 64), 8000: (256, 32)}
# Resonances of vowels in Hz, and their bandwidths.
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (440, 1020, 2240))
_BANDWIDTHS = (80, 100, 140)


def model() -> str:
    """The detector's file."""
    return str(package_file("silero-vad", "silero_vad/data/silero_vad.onnx"))


def _vowel(source: Signal, formants: tuple[int, ...], rate: int) -> Signal:
    for frequency, width in zip(formants, _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width / rate)
        poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / rate), radius**2]
        source = lfilter([sum(poles)], poles, source)
    return source / (np.abs(source).max() + 1e-9)


def _syllable(random: np.random.Generator, rate: int, count: int, pitch: float) -> Signal:
    time = np.arange(count) / rate
    wobble = 0.1 * np.sin(2 * np.pi * random.uniform(2, 5) * time + random.uniform(0, 6))
    phase = np.cumsum(pitch * (1 + wobble)) / rate
    pulses = np.diff((phase % 1 < 0.1).astype(float), prepend=0)
    source = lfilter([1], [1, -0.9], pulses) + random.normal(0, 0.02, count)
    first, last = (_VOWELS[index] for index in random.integers(len(_VOWELS), size=2))
    blend = np.linspace(0, 1, count)
    loudness = np.minimum(1, np.minimum(time / 0.03, (time[-1] - time) / 0.05)).clip(0)
    return ((1 - blend) * _vowel(source, first, rate) + blend * _vowel(source, last, rate)) * loudness


def recording(seed: int, rate: int, seconds: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A signal, and where in it somebody speaks."""
    random = np.random.default_rng(seed)
    count = int(seconds * rate)
    signal, speech = np.zeros(count), np.zeros(count, bool)
    position = 0
    while position < count:
        position += int(random.uniform(0.6, 2.0) * rate)
        start, pitch = position, random.uniform(90, 220)
        for _ in range(random.integers(3, 9)):
            if random.random() < 0.5:
                length = int(random.uniform(0.04, 0.1) * rate)
                if position + length < count:
                    burst = np.diff(random.normal(0, 0.15, length + 1)) * np.hanning(length)
                    signal[position : position + length] += burst
                position += length
            length = int(random.uniform(0.12, 0.28) * rate)
            if position + length >= count:
                break
            signal[position : position + length] += 0.5 * _syllable(random, rate, length, pitch)
            position += length + int(random.uniform(0, 0.04) * rate)
        speech[start : min(position, count)] = True
    noise = lfilter([1], [1, -0.95], random.normal(0, 1, count))
    return (signal + noise / noise.std() * 10 ** random.uniform(-3.2, -1.8)).astype(np.float32), speech


def stream(path: str | Path, seeds: range, rate: int, seconds: float) -> Iterator[tuple[Batch, NDArray[Any]]]:
    """Frames of recordings side by side, and what the file says of each with its own state fed back."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    length, repeated = _FRAME[rate]
    signals, speech = (np.stack(part) for part in zip(*(recording(seed, rate, seconds) for seed in seeds), strict=True))
    state = np.zeros((2, len(seeds), 128), np.float32)
    before = np.zeros((len(seeds), repeated), np.float32)
    for start in range(0, signals.shape[1] - length, length):
        frame = np.concatenate([before, signals[:, start : start + length]], 1)
        before = frame[:, -repeated:]
        feeds = {"input": frame, "state": state, "sr": np.array(rate, np.int64)}
        labels = (speech[:, start : start + length].mean(1) > 0.5).astype(np.int64)
        chance, state = session.run(None, feeds)
        yield {**feeds, "labels": labels}, chance[:, 0]


def _both_rates(seeds: range, seconds: float, every: int) -> Iterator[Batch]:
    """Every so many-th frame of both sampling rates in turn: the model has a branch for each."""
    streams = [stream(model(), seeds, rate, seconds) for rate in _FRAME]
    for number, frames in enumerate(zip(*streams, strict=True)):
        if number % every == every - 1:
            yield from (frame for frame, _ in frames)


def calibration() -> Iterator[Batch]:
    """240 frames with their states."""
    return _both_rates(range(100, 108), 8, 16)


def test() -> Iterator[Batch]:
    """1,248 frames with their states, labelled."""
    return _both_rates(range(8), 10, 4)


def area(outputs: dict[str, Any], labels: NDArray[Any] | None) -> float:
    """Area under the receiver operating curve: the chance that speech scores above noise (Mann-Whitney)."""
    assert labels is not None
    chances = np.ravel(outputs["output"])
    ranks = np.empty(len(chances))
    ranks[np.argsort(chances, kind="stable")] = np.arange(1, len(chances) + 1)
    spoken = labels == 1
    count = spoken.sum()
    return float((ranks[spoken].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def running(path: str | Path) -> dict[int, float]:
    """The same area on 32 recordings of 20 s, the file's own state fed back, by sampling rate."""
    found = {}
    for rate in _FRAME:
        frames = list(stream(path, range(200, 232), rate, 20))
        chances = np.concatenate([chance for _, chance in frames])
        found[rate] = area({"output": chances}, np.concatenate([frame["labels"] for frame, _ in frames]))
    return found
