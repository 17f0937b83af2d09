"""bundle.json: what a bundle says about itself. Strict both ways; see `schema` for how."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from twinspire.bundle.recommendation import RecommendedRuntime
from twinspire.bundle.schema import OPTIONAL, decode, encode, parse_json
from twinspire.bundle.settings import ImageSettings, Precision, TextSettings, Tower
from twinspire.errors import BundleError, InputError

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
PROBES_NAME = "probes.npz"

# Plain names only: a manifest must not reach outside its folder, and Triton names models after bundles.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COSINE_SLACK = 1e-4  # a float32 cosine of equal vectors may come out a little above 1


def check_plain_name(name: str, what: str) -> None:
    """Raise InputError unless `name` is letters, digits, dots, dashes and underscores, without a path."""
    if not _PLAIN_NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r}: expected a plain name of letters, digits, '.', '-' and '_' "
            "that starts with a letter or digit"
        )


def _check_sha256(value: str, what: str) -> None:
    if not _SHA256.fullmatch(value):
        raise InputError(f"{what} {value!r}: expected 64 lower-case hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from: a hub id or folder name, its revision and its licence where known."""

    checkpoint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was measured when an engine was made, against what and on what.

    `reference` is what it was compared with ("torch fp32" or "fp32 engine"), `data` and `samples` on what.
    The cosines are between the engine's embeddings and the reference's, in [-1, 1]. `recall` holds both
    directions where it was evaluated, else None. `speed` holds, where it was measured, how many items a second the
    engine encoded in each runtime (`twinspire precision` writes it), else None. `versions` are of the packages that
    took part.
    """

    reference: str
    data: str
    samples: int
    min_cosine: float
    mean_cosine: float
    recall: Mapping[str, Any] | None
    versions: Mapping[str, str]
    speed: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples {self.samples}: expected at least 1")
        for cosine in (self.min_cosine, self.mean_cosine):
            if not -1 - _COSINE_SLACK <= cosine <= 1 + _COSINE_SLACK:
                raise InputError(f"cosine {cosine}: expected a number from -1 to 1")
        if self.min_cosine > self.mean_cosine + _COSINE_SLACK:
            raise InputError(f"min_cosine {self.min_cosine} is above mean_cosine {self.mean_cosine}")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """The fingerprint of one file of the bundle."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        _check_sha256(self.sha256, "sha256")
        if self.size_bytes < 0:
            raise InputError(f"size_bytes {self.size_bytes}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One tower at one precision: its file, the file's fingerprint and what was measured of it."""

    file: str
    sha256: str
    size_bytes: int
    certificate: Certificate | None

    def __post_init__(self) -> None:
        check_plain_name(self.file, "engine file")
        _check_sha256(self.sha256, "sha256")
        if self.size_bytes < 0:
            raise InputError(f"size_bytes {self.size_bytes}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class ManifestDraft:
    """What the maker of a bundle knows of the model; `BundleWriter.commit` adds the files.

    `space` is what `space_id` gave. `logit_scale` is the factor that the cosine is multiplied with (for a
    Hugging Face checkpoint the exponential of its parameter), `logit_bias` what is added after it (SigLIP),
    else None.

    Raises InputError where a value is out of range.
    """

    name: str
    family: str
    space: str
    dim: int
    image: ImageSettings
    text: TextSettings
    logit_scale: float
    logit_bias: float | None
    source: Source

    def __post_init__(self) -> None:
        check_plain_name(self.name, "bundle name")
        _check_sha256(self.space, "space")
        if not self.family:
            raise InputError("family is empty: expected a word such as 'clip'")
        if self.dim < 1:
            raise InputError(f"dim {self.dim}: expected at least 1")
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise InputError(f"logit_scale {self.logit_scale}: expected a positive number")
        if self.logit_bias is not None and not math.isfinite(self.logit_bias):
            raise InputError(f"logit_bias {self.logit_bias}: expected a finite number or null")


@dataclass(frozen=True, kw_only=True)
class Manifest(ManifestDraft):
    """The whole of bundle.json. `files` holds every file that is no engine, the manifest itself left out.

    `auto` is what was found best by measuring; None where nobody has.
    """

    engines: Mapping[Tower, Mapping[Precision, EngineRecord]]
    files: Mapping[str, FileRecord]
    auto: RecommendedRuntime | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        for tower in Tower:
            if not self.engines.get(tower):
                raise InputError(f"no engine for the {tower} tower: expected at least one for each")
            if self.auto is not None and self.auto.precision not in self.engines[tower]:
                raise InputError(f"auto is {self.auto.precision}, which the {tower} tower has no engine of")
        for name in (TOKENIZER_NAME, PROBES_NAME):
            if name not in self.files:
                raise InputError(f"files lack {name}")
        seen = {MANIFEST_NAME}
        for name in [*self.files, *(record.file for record in self._records())]:
            check_plain_name(name, "file")
            if name in seen:
                raise InputError(f"{name} is named twice")
            seen.add(name)

    def _records(self) -> list[EngineRecord]:
        return [record for precisions in self.engines.values() for record in precisions.values()]

    def draft(self) -> ManifestDraft:
        """Take what a further bundle of the same model keeps: everything but the files."""
        return ManifestDraft(**{each.name: getattr(self, each.name) for each in fields(ManifestDraft)})

    def all_files(self) -> dict[str, FileRecord]:
        """Every file by name, engines included, bundle.json left out."""
        engines = {r.file: FileRecord(sha256=r.sha256, size_bytes=r.size_bytes) for r in self._records()}
        return {**self.files, **engines}

    def to_json(self) -> str:
        """Write as bundle.json: UTF-8 text with a final newline."""
        document = {"schema_version": SCHEMA_VERSION, **encode(self)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a bundle.json. Raises BundleError for anything but a manifest of this schema version."""
        document = parse_json(text, MANIFEST_NAME)
        if not isinstance(document, dict):
            raise BundleError(f"{MANIFEST_NAME} holds no object")
        version = document.pop("schema_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has schema_version {version!r}, this twinspire reads {SCHEMA_VERSION}. "
                "Install the version that wrote it, or export the bundle again"
            )
        return decode(cls, document, MANIFEST_NAME)
