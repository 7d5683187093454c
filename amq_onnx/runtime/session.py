"""Sessions of onnxruntime that run where they were asked to, or not at all."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from amq_onnx.errors import ModelError, ProviderError, UsageError, first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_FATAL = 4
_EXACT_PRODUCTS = "session.x64quantprecision"


def require_one_runtime() -> None:
    """Raise UsageError if both packages of onnxruntime are installed: they overwrite each other's files."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
            installed.append(name)
        except metadata.PackageNotFoundError:
            continue
    if len(installed) > 1:
        raise UsageError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install the one you need"
        )


def silence_runtime() -> None:
    """Keep onnxruntime's own log off standard error, for a process that reports failures in its own words."""
    onnxruntime.set_default_logger_severity(_FATAL)


def open_session(
    model: Path | bytes,
    provider: str = "cpu",
    *,
    threads: int = 0,
    options: Mapping[str, str] | None = None,
    level: str = "all",
) -> Any:
    """An InferenceSession on the named execution provider and no other (but the CPU behind it).

    threads: of one operator, 0 for the runtime's choice. options: session configuration entries. level: `none`,
    `basic`, `extended` or `all` graph optimizations.

    Raises ProviderError if the provider isn't installed or the session fell back to another one without
    saying so (onnxruntime only logs it); ModelError if the runtime refuses the model.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"--provider '{provider}' is unknown: use one of {', '.join(PROVIDERS)}")
    require_one_runtime()
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"execution provider '{provider}' isn't in the installed onnxruntime {onnxruntime.__version__}: "
            "install the package that has it, or use --provider cpu"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = threads
    levels = {
        "none": "DISABLE_ALL",
        "basic": "ENABLE_BASIC",
        "extended": "ENABLE_EXTENDED",
        "all": "ENABLE_ALL",
    }
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{levels[level]}")
    for key, value in (options or {}).items():
        try:
            settings.add_session_config_entry(key, value)
        except RuntimeError as error:
            raise UsageError(f"onnxruntime refuses the session option '{key}={value}': {error}") from error
    source = str(model) if isinstance(model, Path) else model
    name = f"'{model}'" if isinstance(model, Path) else "the model"
    chain = [wanted] if provider == "cpu" else [wanted, PROVIDERS["cpu"]]
    try:
        # Its own fallback to the CPU, here and in a run, would print to standard output and go on.
        session = onnxruntime.InferenceSession(source, settings, providers=chain, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no base class
        line = first_line(error)
        if provider != "cpu" and isinstance(error, (RuntimeError, ValueError)):
            raise ProviderError(f"execution provider '{provider}' didn't start: {line}") from error
        raise ModelError(f"onnxruntime refuses {name}: {line}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"execution provider '{provider}' didn't start (no such device?) and onnxruntime fell back to "
            f"{session.get_providers()[0]}: use --provider cpu, or a machine that has it"
        )
    return session


@cache
def adds_in_16_bits() -> bool:
    """True on x86 CPUs without VNNI, whose 8-bit kernels add pairs of products in saturating 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return not any(flag in flags for flag in ("avx512_vnni", "avx_vnni"))


def exact_options(model: onnx.ModelProto, provider: str) -> dict[str, str]:
    """The session options without which this machine would compute `model` wrongly; empty nearly always.

    255 * 127 * 2 doesn't fit 16 bits: without VNNI, 8-bit weights need session.x64quantprecision. Weights of 7
    bits and less fit. A model in which several nodes read one 8-bit weight is left to overflow: onnxruntime 1.31
    refuses to load it with that option.
    """
    if provider != "cpu" or not adds_in_16_bits():
        return {}
    readers = _8_bit_readers(model)
    return {_EXACT_PRODUCTS: "1"} if readers and max(readers.values()) == 1 else {}


def _8_bit_readers(model: onnx.ModelProto) -> Counter[str]:
    """Weights stored in the full range of int8, for which 16-bit sums are too small: how many layers multiply each."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    producers = {name: node for node in model.graph.node for name in node.output}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        for name in node.input[:2]:
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            source = dequantize.input[0]
            while source in producers and producers[source].op_type == "Transpose":
                source = producers[source].input[0]
            if _holds(source, stored, producers):
                found[source] += 1
    return found


def _holds(name: str, stored: Collection[str], producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether codes are those of a stored tensor, or have some of them among others (channels of several widths)."""
    if name in stored:
        return True
    node = producers.get(name)
    if node is None or node.op_type not in ("Concat", "Gather", "Reshape", "Transpose"):
        return False
    return any(_holds(read, stored, producers) for read in (node.input if node.op_type == "Concat" else node.input[:1]))
