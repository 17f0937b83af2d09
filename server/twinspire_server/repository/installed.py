"""What a repository already holds under a model's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import MANIFEST_NAME, Manifest, Precision, Tower
from twinspire.bundle.folder import file_record
from twinspire.errors import BundleError, InputError
from twinspire_server.repository.model_config import CONFIG, read_config

BUNDLE = "bundle"
ENGINE = "model.onnx"
PLAN = "model.plan"


@dataclass(frozen=True, kw_only=True)
class ExistingModel:
    """A model folder: the newest version (0 where there is none) and its engine; the space of all versions.

    `engine_sha256` is None where the newest version holds no engine, `space` where none does, as in a fresh
    checkout.
    """

    space: str | None
    newest: int
    engine_sha256: str | None


def read_existing(folder: Path, tower: Tower) -> ExistingModel | None:
    """Read a model folder; None where there is none. Raises InputError for a folder that is no model's."""
    if not folder.exists():
        return None
    parameters = _parameters(folder)
    precision = Precision(parameters["precision"])
    # The container's text model calls another one, whose versions have the same numbers.
    holder = folder.with_name(parameters.get("engine", folder.name))
    engines = {version: _engine_sha256(holder / str(version), tower, precision) for version in versions(folder)}
    newest = max(engines, default=0)
    serves = any(engine is not None for engine in engines.values())
    return ExistingModel(
        space=parameters["space"] if serves else None, newest=newest, engine_sha256=engines.get(newest)
    )


def versions(folder: Path) -> list[int]:
    """List the versions of a model folder, as Triton sees them: folders named by a number from 1 up."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")


def _parameters(folder: Path) -> dict[str, str]:
    parameters = {name: value.string_value for name, value in read_config(folder).parameters.items()}
    if not parameters.get("space") or parameters.get("precision") not in tuple(Precision):
        raise InputError(
            f"{folder / CONFIG} names no space and precision: `twinspire build` did not write it. Remove the folder or "
            "build into another with -o"
        )
    return parameters


def _engine_sha256(version: Path, tower: Tower, precision: Precision) -> str | None:
    for name in (ENGINE, PLAN):
        if (version / name).is_file():
            return file_record(version / name).sha256
    manifest = version / BUNDLE / MANIFEST_NAME
    try:
        record = Manifest.from_json(manifest.read_text(encoding="utf-8")).engines[tower].get(precision)
    except (OSError, UnicodeDecodeError, BundleError):  # nothing that could be served, so nothing to keep
        return None
    return None if record is None else record.sha256
