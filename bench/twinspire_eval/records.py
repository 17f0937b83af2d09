"""Records: what one run measured, with all that is needed to know what the figures mean.

A record is one JSON document. `parameters` say how it was measured and must be equal for two records to be compared;
`subject` says what was measured (a bundle, its engines) and may differ. `results` are objects in objects, named after
what they hold with the unit in the name (`latency_ms`, `images_per_s`); what is missing is null. A series,
`{"samples": [...], "p50": ..., "p99": ...}`, keeps the raw samples beside their statistics.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twinspire.errors import InputError
from twinspire_eval.machine import Hardware, this_machine
from twinspire_eval.provenance import git_commit, versions
from twinspire_eval.statistics import STATISTICS, statistic_of

SCHEMA_VERSION = 1
SAMPLES = "samples"
# No string has a line break in JSON, so that this is always a list.
_NUMBERS = re.compile(r"\[\n((?:\s*-?[\d.eE+-]+,?\n)+)\s*\]")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. Without the last five arguments it is of now, of this machine and of the installed versions.

    `parameters`, `subject` and `results` may hold arrays, NumPy's numbers, tuples, enum members and dataclasses: they
    are kept as what JSON makes of them. Raises InputError, with the place, for a number that is not finite (missing is
    None) and for what JSON does not know.
    """

    kind: str
    parameters: Mapping[str, Any]
    results: Mapping[str, Any]
    subject: Mapping[str, Any] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=this_machine)
    versions: Mapping[str, str | None] = field(default_factory=versions)
    git_commit: str | None = field(default_factory=git_commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"a record of schema version {self.schema_version!r}: this twinspire reads {SCHEMA_VERSION}. "
                "Measure again, or read it with the version that wrote it"
            )
        if not self.kind:
            raise InputError("a record's kind is empty: expected what was measured, such as 'latency'")
        for name in ("parameters", "results", "subject"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        names = ["schema_version", "kind", "created", "git_commit", "hardware", "versions", "parameters", "subject"]
        return {
            name: _plain(getattr(self, name), name) if name != "hardware" else _plain(asdict(self.hardware), name)
            for name in [*names, "results"]
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document, whole or not at all. Raises InputError where it cannot be written."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_text(_document(self.to_json()), encoding="utf-8")
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"the record cannot be written to {target}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record. Raises InputError where the file is none, or is of a schema version that is not known."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"the record {path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # no JSON, or no UTF-8
            raise InputError(f"{path} is no record: {error}") from error
        if not isinstance(document, dict) or "schema_version" not in document:
            raise InputError(f"{path} is no record: expected a JSON object with schema_version, as --json writes it")
        # First: of another version nothing else is known.
        if document["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {document['schema_version']!r}: this twinspire reads {SCHEMA_VERSION}. "
                "Measure again, or read it with the version that wrote it"
            )
        _check_fields(document, Record, f"{path}")
        _check_fields(document["hardware"], Hardware, f"{path}, hardware")
        hardware = document["hardware"] | {"instruction_sets": tuple(document["hardware"]["instruction_sets"])}
        return cls(**document | {"hardware": Hardware(**hardware)})


def series(samples: ArrayLike, *names: str) -> dict[str, Any]:
    """Return raw samples (N,) and statistics of them, named as in `STATISTICS`: a series of a record's results.

    All are None where N is 0. Raises InputError for a name that is not known or a sample that is not finite.
    """
    unknown = sorted(set(names) - set(STATISTICS))
    if unknown or not names:
        raise InputError(f"the statistics {', '.join(unknown) or 'none'}: expected some of {', '.join(STATISTICS)}")
    array = np.asarray(samples, np.float64)
    found = {name: statistic_of(array, STATISTICS[name]) if array.size else None for name in names}
    return {**found, SAMPLES: array.tolist()}


def _document(tree: dict[str, Any]) -> str:
    """Write JSON with each list of numbers on one line: a record may hold thousands of samples."""
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401 - whatever JSON knows
    """Return what JSON makes of a value. `where` is its place, for the error."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise InputError(f"{where} has the key {wrong!r}: expected a string")
        return {str(key): _plain(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{place}]") for place, each in enumerate(value)]
    if isinstance(value, str):
        return str(value)  # an enum member is its value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise InputError(f"{where} is {value}: expected a finite number, None for what is missing")
    raise InputError(f"{where} is {type(value).__name__}: expected what JSON knows, arrays or dataclasses")


def _check_fields(document: object, kind: type[Any], where: str) -> None:
    expected = {each.name for each in fields(kind)}
    if not isinstance(document, dict) or set(document) != expected:
        came = set(document) if isinstance(document, dict) else set()
        missing, unknown = sorted(expected - came), sorted(came - expected)
        raise InputError(
            f"{where}: no record of schema version {SCHEMA_VERSION} (missing: {', '.join(missing) or 'nothing'}; "
            f"unknown: {', '.join(unknown) or 'nothing'})"
        )
