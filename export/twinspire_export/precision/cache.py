"""What was measured, kept in a folder under what it was measured of: an interrupted run goes on behind it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_eval.machine import Hardware

SCHEMA_VERSION = 1
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino")


@dataclass(frozen=True)
class MeasurementCache:
    """A folder of measurements. What is in it holds for this hardware and these versions of the runtimes.

    Raises InputError where the folder cannot be made.
    """

    folder: Path
    hardware: Hardware

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def numbers(self, of: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Read what `keep_numbers` wrote for the same `of`; None where there is nothing, or nothing whole."""
        try:
            return json.loads(self._file(of, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def keep_numbers(self, of: Mapping[str, Any], document: Any) -> None:  # noqa: ANN401 - JSON
        """Keep JSON data, whole or not at all. Raises InputError where it cannot be written."""
        self._write(self._file(of, "json"), lambda path: path.write_text(json.dumps(document), encoding="utf-8"))

    def arrays(self, of: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
        """Read what `keep_arrays` wrote for the same `of`; None where there is nothing, or nothing whole."""
        try:
            # Opened here: np.load leaves a file that is no archive open.
            with self._file(of, "npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def keep_arrays(self, of: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays by name, whole or not at all. Raises InputError where they cannot be written."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        self._write(self._file(of, "npz"), write)

    def _file(self, of: Mapping[str, Any], suffix: str) -> Path:
        machine = {name: value for name, value in asdict(self.hardware).items() if name != "memory_bytes"}
        key = json.dumps([SCHEMA_VERSION, of, machine, _versions()], sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{suffix}"

    def _write(self, file: Path, write: Any) -> None:  # noqa: ANN401
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            write(draft)
            draft.replace(file)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise _unwritable(self.folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder} cannot be written: {error}. Name another folder with --work")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
