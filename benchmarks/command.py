"""Runs `amq` as a user would, and says what it took."""

from __future__ import annotations

import os
import sys
import time


def amq(*arguments: str) -> tuple[float, float]:
    """Run `amq`; wall seconds and peak memory in MB of the whole command. Exits where it fails."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "amq_onnx", *arguments]
    process = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024
