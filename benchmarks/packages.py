"""Real .onnx files that are published inside Python packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Versions whose files the benchmarks' figures belong to.
VERSIONS = {"magika": "1.0.3", "nudenet": "3.4.2", "rapidocr-onnxruntime": "1.4.4", "silero-vad": "6.2.3"}


def package_file(package: str, path: str) -> Path:
    """The file at `path` in an unpacked package, which is downloaded first if need be, without what it depends on.

    Packages are kept in out/packages, or in the folder that AMQ_PACKAGES names.
    """
    folder = Path(os.environ.get("AMQ_PACKAGES", "out/packages")) / package
    file = folder / path
    if not file.is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"{package}=={VERSIONS[package]}"], check=True)
    return file.resolve()
