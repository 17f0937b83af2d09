"""On-disk cache of measurements keyed by their inputs, so that an interrupted run can resume."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._atomic import atomic_file
from twinspire._dependencies import package_version
from twinspire.errors import InputError
from twinspire_eval.machine import Hardware

SCHEMA_VERSION = 1
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "openvino")


@dataclass(frozen=True)
class MeasurementCache:
    """A folder of measurements, each valid for its inputs, this hardware and these versions of the runtimes.

    Raises InputError where the folder cannot be made.
    """

    folder: Path
    hardware: Hardware

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def get_json(self, key: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON data of `key`; None where there is none, or it is damaged."""
        try:
            return json.loads(self._file(key, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put_json(self, key: Mapping[str, Any], document: Any) -> None:  # noqa: ANN401 - JSON
        """Store JSON data, whole or not at all. Raises InputError where it cannot be written."""
        with self._writing(key, "json") as path:
            path.write_text(json.dumps(document), encoding="utf-8")

    def get_arrays(self, key: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of `key` by name; None where there are none, or they are damaged."""
        try:
            # Opened here: np.load leaves a file that is not an archive open.
            with self._file(key, "npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def put_arrays(self, key: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store arrays by name, whole or not at all. Raises InputError where they cannot be written."""
        with self._writing(key, "npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)

    def _file(self, key: Mapping[str, Any], suffix: str) -> Path:
        machine = {name: value for name, value in asdict(self.hardware).items() if name != "memory_bytes"}
        versions = {package: package_version(package) for package in _PACKAGES}
        text = json.dumps([SCHEMA_VERSION, key, machine, versions], sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.{suffix}"

    @contextmanager
    def _writing(self, key: Mapping[str, Any], suffix: str) -> Iterator[Path]:
        try:
            with atomic_file(self._file(key, suffix)) as path:
                yield path
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"the folder of measurements {folder} cannot be written: {error}. Name another one with --work")
