"""Models in a repository's folder: which ones are installed, and installing others whole or not at all."""

from __future__ import annotations

import filecmp
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import MANIFEST_NAME, Manifest, Precision, Tower
from twinspire.bundle.folder import file_record
from twinspire.errors import BundleError, InputError
from twinspire_server.repository.config import CONFIG, WARM_UP_FOLDER, config_pbtxt, read_config
from twinspire_server.repository.description import DESCRIBES
from twinspire_server.repository.engines import ENGINE, PLAN
from twinspire_server.repository.spec import BUNDLE, BuiltModel


@dataclass(frozen=True, kw_only=True)
class InstalledModel:
    """A model's folder: its newest version, 0 where it has none, and that version's engine.

    `engine_sha256` is None where the newest version has no engine; `space` is that of all versions, None where none
    has an engine, as in a fresh checkout.
    """

    space: str | None
    newest: int
    engine_sha256: str | None


def read_installed(folder: Path) -> InstalledModel | None:
    """Read a model's folder; None where there is none. Raises InputError where `twinspire build` did not write it."""
    if not folder.exists():
        return None
    parameters = {name: value.string_value for name, value in read_config(folder).parameters.items()}
    if not parameters.get("space") and DESCRIBES not in parameters:
        raise InputError(
            f"{folder / CONFIG} names no space: `twinspire build` did not write it. Remove the folder or build into "
            "another with -o",
            path=folder / CONFIG,
        )
    # The container's text model calls another one, whose versions have the same numbers.
    holder = folder.with_name(parameters.get("engine", folder.name))
    engines = {version: _engine_sha256(holder / str(version), parameters) for version in _versions(folder)}
    newest = max(engines, default=0)
    has_engine = any(engine is not None for engine in engines.values())
    return InstalledModel(
        space=parameters.get("space") if has_engine else None, newest=newest, engine_sha256=engines.get(newest)
    )


def _versions(folder: Path) -> list[int]:
    """List the versions of a model folder, as Triton sees them: folders named by a number from 1 up."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")


def _engine_sha256(version: Path, parameters: dict[str, str]) -> str | None:
    for name in (ENGINE, PLAN):
        if (version / name).is_file():
            return file_record(version / name).sha256
    try:
        manifest = Manifest.from_json((version / BUNDLE / MANIFEST_NAME).read_text(encoding="utf-8"))
        tower, precision = Tower(parameters["tower"]), Precision(parameters["precision"])
        return manifest.engines[tower][precision].sha256
    except (OSError, UnicodeDecodeError, BundleError, ValueError, KeyError):  # cannot be served: nothing to keep
        return None


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """Make a folder to write models in, beside the repository: within it Triton would take the folder for a model."""
    # A mounted volume's neighbours are on another file system, to which nothing can be renamed.
    parent = repository if repository.is_mount() else repository.resolve().parent
    folder = parent / f".{repository.name}.{secrets.token_hex(6)}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(staging: Path, model: BuiltModel) -> None:
    """Write a model's config, the data of its warm-ups and its version below `staging`."""
    folder = staging / model.name
    version = folder / str(model.version)
    version.mkdir(parents=True)
    (folder / CONFIG).write_text(config_pbtxt(model.spec), encoding="utf-8")
    for warm_up in model.spec.warm_ups:
        for _, name, content in warm_up.files():
            (folder / WARM_UP_FOLDER).mkdir(exist_ok=True)
            (folder / WARM_UP_FOLDER / name).write_bytes(content)
    for file in model.spec.files:
        file.write(version / file.name)


def install_model(staging: Path, model: BuiltModel) -> None:
    """Move a staged model to its place and remove those that it replaces.

    It is moved whole where it is new, else part by part, the config last.
    """
    staged, folder = staging / model.name, model.folder
    for name in model.spec.replaces:
        shutil.rmtree(folder.with_name(name), ignore_errors=True)
    if not folder.exists():
        staged.rename(folder)
        return
    for part in (str(model.version), WARM_UP_FOLDER):
        new, old = staged / part, folder / part
        if new.exists() and not _same(new, old):
            if old.exists():
                old.rename(staged / f"{part}.old")
            new.rename(old)
    (staged / CONFIG).replace(folder / CONFIG)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    ours, theirs = ({path.relative_to(folder): path for path in folder.rglob("*")} for folder in (one, other))
    return ours.keys() == theirs.keys() and all(
        path.is_dir() == theirs[name].is_dir() and (path.is_dir() or filecmp.cmp(path, theirs[name], shallow=False))
        for name, path in ours.items()
    )
