"""What a tuning has reached, in a folder, so that it can be stopped and taken up again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amq_onnx.errors import UsageError
from amq_onnx.model.file import whole_file, write_text

_STATE = "tuning.json"
_FORMAT = "amq-tuning"


class Checkpoint:
    """Arrays by the name of a step, each step in a file of its own that is written whole or not at all.

    folder: where (made if it isn't there), None for nowhere. resume: take up what is there; else it is overwritten.
    """

    def __init__(self, folder: str | Path | None = None, resume: bool = False) -> None:
        if resume and folder is None:
            raise UsageError("--resume needs --checkpoint with the folder to resume from")
        self.folder = None if folder is None else Path(folder)
        self.resume = resume

    def inside(self, name: str) -> Checkpoint:
        """One of several checkpoints of a run, begun where the run didn't reach it before.

        Raises UsageError where a run was to be resumed and none is there.
        """
        if self.folder is None:
            return self
        begun = (self.folder / name / _STATE).is_file()
        if self.resume and not begun and not any(self.folder.rglob(_STATE)):
            raise self._missing()
        return Checkpoint(self.folder / name, self.resume and begun)

    def open(self, run: Mapping[str, Any]) -> None:
        """Begin the run that `run` describes, or take it up.

        Raises UsageError where the folder can't be used, or holds another run that was to be resumed.
        """
        if self.folder is None:
            return
        key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        state = self.folder / _STATE
        if self.resume:
            if not state.is_file():
                raise self._missing()
            try:
                found = json.loads(state.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UsageError(f"--resume: '{state}' can't be read: {error}") from error
            if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("run") != key:
                raise UsageError(
                    f"--resume: '{self.folder}' holds another run (model, plan, data or options differ): use the same "
                    "command, or leave the option out to start anew"
                )
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob("tuning-*.npz"):
                old.unlink()
            write_text(state, json.dumps({"format": _FORMAT, "run": key}) + "\n")
        except OSError as error:
            raise UsageError(f"--checkpoint '{self.folder}' can't be used: {error.strerror}") from error

    def load(self, step: str) -> dict[str, NDArray[Any]] | None:
        """What `save` wrote for `step`; None where it wasn't reached. Raises UsageError for a damaged file."""
        path = self._file(step)
        if path is None or not self.resume or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"--resume: '{path}' can't be read ({error}): delete it to do its step again") from error

    def save(self, step: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep what `step` reached."""
        path = self._file(step)
        if path is not None:
            with whole_file(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

    def _missing(self) -> UsageError:
        return UsageError(f"--resume: '{self.folder}' holds no checkpoint; leave the option out to start one")

    def _file(self, step: str) -> Path | None:
        return None if self.folder is None else self.folder / f"tuning-{step}.npz"
