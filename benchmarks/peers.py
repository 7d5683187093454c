"""Other tools' quantized files beside ours at the same bytes, on ResNet20 and MobileNetV2.

    AMQ_DATA=... python benchmarks/peers.py [resnet20|mobilenetv2 ...]

Each tool quantizes with the same calibration images, in an environment of its own. Below it stand our files of at
most its bytes, and of at most what it would take without the exporter's metadata, which some tools leave in
(`stripped`); rounded to nearest, and with learned rounding where the tool learns too. All are scored here, by one
thread of the same onnxruntime, on the same test images, with exact 8-bit products where the CPU would saturate.
Latency is relative to the float model, in turns, one image, with that option only where the file needs it. Seconds are
those of the whole commands; ours are of `amq sensitivity`, which serves all sizes of a model, and of `amq quantize`.
The tables are also written to out/peers_MODEL.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from command import amq
from figures import CASES, Case, Runner
from numpy.typing import NDArray
from peer_packages import PeerEnvironment

from amq_onnx.errors import ModelError
from amq_onnx.model.data import LABELS, Batch, open_data
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.passes.strip import strip_exporter_metadata
from amq_onnx.runtime.latency import alternate
from amq_onnx.runtime.metrics import metric_named
from amq_onnx.runtime.session import adds_in_16_bits, exact_options, open_session

_HERE = Path(__file__).resolve().parent
_OUT = _HERE.parent / "out"
_MODELS = ("resnet20", "mobilenetv2")
_BATCH = 50
_LONGEST = 1800
# Metadata of less than this share of the file is not worth a row.
_MUCH_METADATA = 0.05
_TORCH = ("torch",)


@dataclass(frozen=True)
class Peer:
    """A tool: its name for peer_quantizers.py, what pip installs in turn, and its settings."""

    tool: str
    installs: tuple[tuple[str, ...], ...]
    settings: tuple[str, ...]


PEERS = (
    Peer("onnxruntime", (("onnxruntime", "onnx", "sympy"),), ("W8A8", "W4A8")),
    Peer("aimet", (_TORCH, ("aimet-onnx==2.42.0", "onnxruntime")), ("W8A8", "W4A8", "W4A8-AdaRound", "W4A8-SeqMSE")),
    Peer("quantization-rs", (("quantization-rs==0.10.0", "onnx"),), ("W8A8", "W8", "W4")),
)


@dataclass(frozen=True)
class Score:
    """What onnxruntime made of a file. precision: whether exact 8-bit products were asked of the session."""

    top1: float
    agreement: float
    latency: float
    precision: bool


@dataclass(frozen=True)
class Row:
    """A line of the table; where there is no file or it doesn't run, `failure` says why."""

    model: str
    name: str
    bytes: int | None = None
    ratio: float | None = None
    stripped: int | None = None
    seconds: float | None = None
    score: Score | None = None
    failure: str | None = None

    def line(self, float_top1: float) -> str:
        """The text."""
        parts = [f"{self.model:12s} {self.name:38s}"]
        if self.bytes is not None and self.ratio is not None:
            stripped = f"stripped {self.stripped:>9,}" if self.stripped is not None else " " * 18
            parts.append(f"{self.bytes:>9,} bytes ({self.ratio:.4f}) {stripped}")
        if self.score is not None:
            drop = 100 * (float_top1 - self.score.top1)
            parts.append(f"top-1 {self.score.top1:.4f} (drop {drop:5.2f})  agreement {self.score.agreement:.4f}")
            parts.append(f"latency {self.score.latency:.2f}")
        if self.seconds is not None:
            parts.append(f"{self.seconds:.0f} s")
        if self.failure is not None:
            parts.append(self.failure)
        return "  ".join(parts)


class Scorer:
    """Scores files of one model against the float one, whose outputs are computed once."""

    def __init__(self, model: Path, test: str) -> None:
        self.data = open_data(test, read_model(model))
        self.float_session = open_session(model, threads=1)
        self.batches = list(self.data.batches(_BATCH))
        self.reference = [_scores(self.float_session, batch) for batch in self.batches]
        self.float_top1 = self._metric("top1", self.reference)

    def score(self, file: Path) -> Score:
        """Raises ModelError where onnxruntime refuses the file."""
        session, precision = _exact_session(file)
        fixed = session.get_inputs()[0].shape[0] == 1
        outputs = [_one_by_one(session, batch) if fixed else _scores(session, batch) for batch in self.batches]
        one = next(self.data.batches(1))
        usual = open_session(file, threads=1, options=exact_options(onnx.load(file), "cpu"))
        latency = alternate(lambda: _scores(self.float_session, one), lambda: _scores(usual, one))
        return Score(self._metric("top1", outputs), self._metric("agreement", outputs), latency.ratio, precision)

    def _metric(self, name: str, outputs: list[NDArray[Any]]) -> float:
        metric = metric_named(name)()
        for batch, reference, found in zip(self.batches, self.reference, outputs, strict=True):
            metric.add({"scores": reference}, {"scores": found}, batch[LABELS])
        return metric.score()


def _exact_session(file: Path) -> tuple[Any, bool]:
    """A session with exact 8-bit products where this CPU needs them; without, if the runtime then refuses the file."""
    if adds_in_16_bits():
        try:
            return open_session(file, threads=1, options={"session.x64quantprecision": "1"}), True
        except ModelError:
            pass
    return open_session(file, threads=1), False


def _scores(session: Any, batch: Batch) -> NDArray[Any]:
    (value,) = session.get_inputs()
    try:
        return session.run(None, {value.name: batch[value.name]})[0]
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelError((str(error).strip().splitlines() or ["unknown reason"])[0]) from error


def _one_by_one(session: Any, batch: Batch) -> NDArray[Any]:
    count = len(batch[LABELS])
    return np.concatenate([_scores(session, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(count)])


class Comparison:
    """The rows of one model."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.runner = Runner(case, folder)
        self.float_bytes = file_bytes(self.runner.model)
        self.scorer = Scorer(self.runner.model, self.runner.test)
        self.calibration = folder / "calibration.npy"
        data = open_data(self.runner.calibration, read_model(self.runner.model))
        np.save(self.calibration, np.concatenate([next(iter(batch.values())) for batch in data.batches(_BATCH)]))
        self.table = folder / "sensitivity.json"
        self.scores: dict[bytes, Score] = {}
        model, images = str(self.runner.model), self.runner.calibration
        self.measuring, _ = amq("sensitivity", model, "--data", images, "-o", str(self.table))

    def rows(self, environment: PeerEnvironment) -> Iterator[Row]:
        """Each tool's files, and ours below each."""
        for peer in PEERS:
            reasons = (environment.install(requirements) for requirements in peer.installs)
            reason = next((found for found in reasons if found is not None), None)
            for setting in peer.settings:
                name = f"{peer.tool} {setting}"
                if reason is not None:
                    yield Row(self.case.name, name, failure=reason)
                    continue
                row = self.peer(environment.python, peer.tool, setting)
                yield row
                if row.bytes is not None and row.stripped is not None:
                    ours = self.ours("  ours, same bytes", row.bytes)
                    yield ours
                    if "-" in setting:
                        yield self.ours("  ours, learned rounding", row.bytes, "--data", self.runner.calibration)
                    if (ours.bytes or 0) > row.stripped and row.bytes - row.stripped > _MUCH_METADATA * row.bytes:
                        yield self.ours("  ours, its bytes stripped", row.stripped)

    def peer(self, python: Path, tool: str, setting: str) -> Row:
        """The file of another tool."""
        out = self.folder / f"{tool}-{setting}.onnx"
        script = str(_HERE / "peer_quantizers.py")
        command = [str(python), script, tool, setting, str(self.runner.model), str(self.calibration), str(out)]
        start = time.perf_counter()
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
        except subprocess.TimeoutExpired:
            return Row(self.case.name, f"{tool} {setting}", failure=f"not done after {_LONGEST} s")
        seconds = time.perf_counter() - start
        if found.returncode != 0 or not out.is_file():
            lines = found.stderr.strip().splitlines() or ["no file and no reason"]
            return Row(self.case.name, f"{tool} {setting}", seconds=seconds, failure=lines[-1])
        return self.scored(f"{tool} {setting}", out, seconds)

    def ours(self, name: str, size: int, *more: str) -> Row:
        """Our file of at most `size` bytes, with more options."""
        out = self.folder / "ours.onnx"
        model, table = str(self.runner.model), str(self.table)
        seconds, _ = amq("quantize", model, "-o", str(out), "--size", f"{size}B", "--from-sensitivity", table, *more)
        return self.scored(name, out, self.measuring + seconds)

    def scored(self, name: str, file: Path, seconds: float) -> Row:
        """The row of a file. One that was scored before, such as ours at 8 bits for any large size, is not again."""
        size = file_bytes(file)
        stripped = strip_exporter_metadata(onnx.load(file)).ByteSize()
        content = hashlib.sha256(file.read_bytes()).digest()
        failure = None
        try:
            if content not in self.scores:
                self.scores[content] = self.scorer.score(file)
        except ModelError as error:
            failure = str(error)
        score = self.scores.get(content)
        return Row(self.case.name, name, size, size / self.float_bytes, stripped, seconds, score, failure)


def main() -> None:
    print(__doc__)
    environment = PeerEnvironment("peers")
    _OUT.mkdir(exist_ok=True)
    for case in CASES:
        if case.name not in (sys.argv[1:] or _MODELS):
            continue
        rows = []
        with tempfile.TemporaryDirectory() as name:
            comparison = Comparison(case, Path(name))
            top1 = comparison.scorer.float_top1
            print(f"{case.name:12s} float: {comparison.float_bytes:,} bytes, top-1 {top1:.4f}")
            for row in comparison.rows(environment):
                rows.append(asdict(row))
                print(row.line(top1), flush=True)
        (_OUT / f"peers_{case.name}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
