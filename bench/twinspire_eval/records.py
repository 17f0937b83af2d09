"""Records: the results of one benchmark run, with everything needed to interpret and compare them.

A record is one JSON document. `parameters` are the settings of the measurement and must be equal for two records to be
compared; `subject` is what was measured (a bundle, its engines) and may differ. `results` are nested objects whose
names end in the unit (`latency_ms`, `images_per_s`); a missing result is null. A series,
`{"samples": [...], "p50": ..., "p99": ...}`, keeps the raw samples beside their statistics.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_file
from twinspire._codec import decode, parse_document
from twinspire._dependencies import package_version
from twinspire.errors import InputError
from twinspire_eval.machine import Hardware, command_output, this_machine
from twinspire_eval.statistics import STATISTICS, statistic_of

SCHEMA_VERSION = 1
SAMPLES = "samples"
# No string has a line break in JSON, so that this is always a list.
_NUMBERS = re.compile(r"\[\n((?:\s*-?[\d.eE+-]+,?\n)+)\s*\]")
PACKAGES = (
    "twinspire",
    "numpy",
    "pillow",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "openvino",
    "nncf",
    "torch",
    "transformers",
    "faiss-cpu",
    "hnswlib",
    "usearch",
    "tritonclient",
    "nvidia-pytriton",
)
"""Packages that speed or results depend on."""


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`, None where one is not installed. Imports none of them."""
    return {"python": platform.python_version(), **{package: package_version(package) for package in PACKAGES}}


def git_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the repository that a file is part of, with `-dirty` where tracked files were changed.

    None where there is no git or the file is not tracked: a package installed inside somebody else's repository is not
    of that repository's commit.
    """
    folder = file.absolute().parent
    git = partial(command_output, "git", "--no-optional-locks", "-C", str(folder), timeout_s=60)
    if git("ls-files", "--error-unmatch", file.name) is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return commit.strip() + ("-dirty" if changes else "")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Record of one run, by default made now, on this machine and with the installed versions.

    `parameters`, `subject` and `results` may hold arrays, NumPy's numbers, tuples, enum members and dataclasses: they
    are converted to JSON's types. Raises InputError, with the place, for a number that is not finite (write None for a
    missing one) and for types that have no JSON form.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    git_commit: str | None = field(default_factory=git_commit)
    hardware: Hardware = field(default_factory=this_machine)
    versions: Mapping[str, str | None] = field(default_factory=versions)
    parameters: Mapping[str, Any]
    subject: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.kind:
            raise InputError("the record's kind is empty: expected the name of a benchmark, such as 'latency'")
        for name in ("parameters", "results", "subject"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {entry.name: _plain(getattr(self, entry.name), entry.name) for entry in fields(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document, whole or not at all. Raises InputError where it cannot be written."""
        target = Path(path)
        with file_errors(f"the record cannot be written to {target}", target), atomic_file(target) as partial:
            partial.write_text(_document(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record. Raises InputError where the file is not a record, or has another schema version."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no UTF-8
            raise InputError(f"the record {path} cannot be read: {error}") from error
        remedy = "Expected a record, as --json writes it: measure again, or read it with the release that wrote it"
        version, document = parse_document(text, f"{path}", [SCHEMA_VERSION], remedy)
        return decode(cls, {"schema_version": version, **document}, f"{path}")


def check_record_path(path: Path | None) -> None:
    """Raise InputError, before anything is measured, where `path` is no file in a folder that exists; None is fine."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"the record cannot be written to {path}: expected a file in a folder that exists")


def series(samples: ArrayLike, *names: str) -> dict[str, Any]:
    """Return a series for a record's results: raw samples (N,) and the statistics `names`, some of `STATISTICS`.

    The statistics are None where N is 0. Raises InputError for an unknown name or a sample that is not finite.
    """
    unknown = sorted(set(names) - set(STATISTICS))
    if unknown or not names:
        raise InputError(
            f"unknown statistics {', '.join(unknown) or '(none)'}: expected some of {', '.join(STATISTICS)}"
        )
    array = np.asarray(samples, np.float64)
    found = {name: statistic_of(array, STATISTICS[name]) if array.size else None for name in names}
    return {**found, SAMPLES: array.tolist()}


def _document(tree: dict[str, Any]) -> str:
    """Format as JSON with each list of numbers on one line: a record may hold thousands of samples."""
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401 - JSON
    """Return a value in JSON's types. `where` is its place, for the error."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise InputError(f"{where} has the key {wrong!r}: expected a string")
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, str):
        return str(value)  # an enum member becomes its value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise InputError(f"{where} is {value}: expected a finite number, or None where it is missing")
    raise InputError(
        f"{where} is a {type(value).__name__}: expected a number, string, list, mapping, array or dataclass"
    )
