"""Environments of their own for other tools, so that what they pin can't change what we are tested with."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


class PeerEnvironment:
    """The virtual environment .venv-NAME beside .venv, made on first use."""

    def __init__(self, name: str) -> None:
        self.folder = _ROOT / f".venv-{name}"
        scripts = {"base": str(self.folder), "platbase": str(self.folder)}
        self.python = Path(sysconfig.get_path("scripts", "venv", scripts)) / Path(sys.executable).name
        self._packages = sysconfig.get_path("purelib", "venv", scripts)
        if not self.python.exists():
            venv.EnvBuilder(with_pip=True).create(self.folder)

    def install(self, requirements: Sequence[str], *, dependencies: bool = True) -> str | None:
        """Install at the versions of constraints.txt where they are pinned; the reason where pip can't.

        dependencies: without them a package that asks for torch brings no second one.
        """
        command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--constraint", str(_ROOT / "constraints.txt"), *([] if dependencies else ["--no-deps"])]
        found = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return None
        lines = [line for line in found.stderr.splitlines() if line.startswith("ERROR")]
        return f"not installed: {(lines or found.stderr.splitlines() or ['pip failed'])[-1]}"

    def share(self) -> None:
        """Let this process import what is installed there, where it has no such package itself."""
        if self._packages not in sys.path:
            sys.path.append(self._packages)
