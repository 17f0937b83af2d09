"""Models in a repository's folder: which ones are installed, and installing others whole or not at all.

A build is prepared in a folder beside the repository. Renaming that folder commits it; then its parts are moved into
the repository. Where the process is killed between the two, the next one that takes the lock moves the rest.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from twinspire._atomic import sync
from twinspire.bundle import MANIFEST_NAME, Manifest, Precision, Tower
from twinspire.bundle.folder import file_record
from twinspire.errors import BundleError, InputError
from twinspire_server.repository.config import CONFIG, WARM_UP_FOLDER, config_pbtxt, read_config
from twinspire_server.repository.description import DESCRIBES
from twinspire_server.repository.engines import ENGINE, PLAN
from twinspire_server.repository.spec import BUNDLE, RERANKER_PARAMETER, BuiltModel

_STAGED, _COMMITTED = "tmp", "install"
"""The suffixes of a build's folder, before and after it is committed."""
_POLL_S = 0.05
_PLAN = "build.json"
"""The file of a committed build that lists its models."""


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
    engines = {version: _engine_sha256(holder / str(version), parameters) for version in versions(folder)}
    newest = max(engines, default=0)
    has_engine = any(engine is not None for engine in engines.values())
    return InstalledModel(
        space=parameters.get("space") if has_engine else None, newest=newest, engine_sha256=engines.get(newest)
    )


def versions(folder: Path) -> list[int]:
    """List the versions of a model folder, as Triton sees them: folders named by a number from 1 up."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")


def _engine_sha256(version: Path, parameters: dict[str, str]) -> str | None:
    for name in (ENGINE, PLAN):
        if (version / name).is_file():
            return file_record(version / name).sha256
    try:
        manifest = Manifest.from_json((version / BUNDLE / MANIFEST_NAME).read_text(encoding="utf-8"))
        precision = Precision(parameters["precision"])
        if RERANKER_PARAMETER in parameters:
            reranker = (manifest.rerankers or {})[parameters[RERANKER_PARAMETER]]
            return manifest.files[reranker.engines[precision]].sha256
        return manifest.engines[Tower(parameters["tower"])][precision].sha256
    except (OSError, UnicodeDecodeError, BundleError, ValueError, KeyError):  # cannot be served: nothing to keep
        return None


@contextmanager
def locked(repository: Path, *, aborted: threading.Event | None = None) -> Iterator[None]:
    """Hold the lock of a repository's folder, which one process at a time has, and finish an interrupted build first.

    Raises BlockingIOError where another process holds it and `aborted` is set, OSError where the folder cannot be read,
    or where there is a build to finish and it cannot be written.
    """
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if aborted is not None and aborted.is_set():
                    raise
                time.sleep(_POLL_S)
        _recover(repository)
        yield
    finally:
        os.close(descriptor)


def install_models(repository: Path, models: Sequence[BuiltModel]) -> None:
    """Write models and install them, all or none, even where this process is killed. The lock must be held."""
    staging = _build_folder(repository, _STAGED)
    staging.mkdir()
    try:
        for model in models:
            _write_model(staging, model)
        plan = [
            {"name": model.name, "version": model.version, "replaces": list(model.spec.replaces)} for model in models
        ]
        (staging / _PLAN).write_text(json.dumps(plan), encoding="utf-8")
        _sync_all(staging)
        committed = staging.with_suffix(f".{_COMMITTED}")
        staging.rename(committed)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync(committed.parent)
    _install(repository, committed)


def _recover(repository: Path) -> None:
    """Remove what killed builds have left that were not committed, and install the others."""
    parent = _build_folder(repository, _STAGED).parent
    pattern = re.compile(rf"\.{re.escape(repository.name)}\.[0-9a-f]{{12}}\.({_STAGED}|{_COMMITTED})")
    for entry in list(parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is not None and match[1] == _STAGED:
            shutil.rmtree(entry, ignore_errors=True)
        elif match is not None:
            _install(repository, entry)


def _build_folder(repository: Path, suffix: str) -> Path:
    """Return a new name for a build's folder, beside the repository: within it Triton would take it for a model."""
    # A mounted volume's neighbours are on another file system, to which nothing can be renamed.
    parent = repository if repository.is_mount() else repository.resolve().parent
    return parent / f".{repository.name}.{secrets.token_hex(6)}.{suffix}"


def _sync_all(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for name in files:
            sync(Path(path, name))
        sync(Path(path))


def _write_model(staging: Path, model: BuiltModel) -> None:
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


def _install(repository: Path, committed: Path) -> None:
    """Move a committed build into the repository. May be repeated: what was moved before is no longer there to move."""
    if (committed / _PLAN).exists():  # else only its removal was interrupted
        for model in json.loads((committed / _PLAN).read_text(encoding="utf-8")):
            for name in model["replaces"]:
                shutil.rmtree(repository / name, ignore_errors=True)
            if (committed / model["name"]).exists():
                _install_model(committed / model["name"], repository / model["name"], str(model["version"]))
        sync(repository)
        (committed / _PLAN).unlink()
    shutil.rmtree(committed, ignore_errors=True)


def _install_model(staged: Path, folder: Path, version: str) -> None:
    """Move a model to its place, whole where it is new, else part by part, the config last."""
    if not folder.exists():
        staged.rename(folder)
        return
    for part in (version, WARM_UP_FOLDER):
        new, old = staged / part, folder / part
        if new.exists() and not _same(new, old):
            if old.exists():
                old.rename(staged / f"{part}.{secrets.token_hex(4)}")
            new.rename(old)
    with suppress(FileNotFoundError):
        (staged / CONFIG).replace(folder / CONFIG)
    sync(folder)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    ours, theirs = ({path.relative_to(folder): path for path in folder.rglob("*")} for folder in (one, other))
    return ours.keys() == theirs.keys() and all(
        path.is_dir() == theirs[name].is_dir() and (path.is_dir() or filecmp.cmp(path, theirs[name], shallow=False))
        for name, path in ours.items()
    )
