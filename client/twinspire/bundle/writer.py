"""Writing a bundle: whole or not at all, with hard links or shared blocks for what it has in common with another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Self

from twinspire._arguments import as_member
from twinspire._atomic import atomic_folder
from twinspire.bundle.folder import Bundle, check_probes, file_record
from twinspire.bundle.manifest import MANIFEST_NAME, PROBES_NAME, Manifest, ManifestDraft, required_files
from twinspire.bundle.probes import Probes
from twinspire.bundle.records import Certificate, EngineRecord, FileRecord, RecommendedRuntime, check_plain_name
from twinspire.bundle.settings import Precision, Tower
from twinspire.errors import BundleError, InputError

_COPIED_AT_ONCE_BYTES = 1 << 30


class BundleWriter:
    """Collects a bundle's files in a temporary folder beside the destination and renames it into place.

    Used with `with`: leaving without `commit`, by an error or not, removes the folder. A killed process
    leaves a folder with a leading dot, never one with the destination's name. With `base`, the new bundle
    starts with that one's files and engines, as hard links where the file system has them, so that equal files take
    no space; with `links` False they are copied, for folders that others may write to.

    Entering raises BundleError, before any work, where the destination exists or its parent does not.
    """

    def __init__(self, destination: str | os.PathLike[str], *, base: Bundle | None = None, links: bool = True) -> None:
        self.destination = Path(os.path.abspath(destination))  # noqa: PTH100 - resolve() would follow a link
        self.folder = self.destination  # until it is entered
        self._draft = atomic_folder(self.destination)
        self._base = base
        self._links = links
        self._linked: dict[str, FileRecord] = {}
        self._committed = False

    def __enter__(self) -> Self:
        self._check_destination()
        try:
            self.folder = self._draft.__enter__()
        except OSError as error:
            raise BundleError(f"{self.destination} cannot be written: {error}") from error
        try:
            if self._base is not None:
                self._linked = self._base.manifest.all_files()
                for name in self._linked:
                    _take(self._base.path / name, self.folder / name, links=self._links)
        except BaseException as error:
            self._discard(error)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not self._committed:
            self._discard(error or BundleError(f"{self.destination} was not committed"))

    def path(self, name: str) -> Path:
        """Return where to write the file `name`, after removing a file that the base has of that name."""
        try:
            check_plain_name(name, "file")
        except InputError as error:
            raise BundleError(str(error)) from error
        if name == MANIFEST_NAME:
            raise BundleError(f"{MANIFEST_NAME} is written by commit")
        path = self.folder / name
        if self._linked.pop(name, None) is not None:
            path.unlink()  # writing into a hard link would change the base
        return path

    def put_file(self, name: str, source: str | os.PathLike[str]) -> Path:
        """Copy a file into the bundle under `name`."""
        target = self.path(name)
        try:
            copy_file(Path(source), target)
        except OSError as error:
            raise BundleError(f"{os.fspath(source)} cannot be copied to {target}: {error}") from error
        return target

    def commit(
        self,
        draft: ManifestDraft,
        engines: Mapping[tuple[Tower, Precision], tuple[str, Certificate | None]],
        *,
        auto: RecommendedRuntime | None = None,
    ) -> Bundle:
        """Hash the files, write bundle.json, sync everything to the disk and rename the folder to the destination.

        `engines` names the file and certificate of each tower and precision; those of the base that it does
        not name are kept. Every other file in the folder becomes one of the bundle's. probes.npz is required, as is
        tokenizer.json where the model has a text tower. `auto` is the runtime that was measured to be best; None
        keeps the base's where the engines that it was measured with are unchanged. Raises BundleError and leaves
        nothing where something is missing or inconsistent.
        """
        try:
            manifest = self._manifest(draft, engines, auto)
            check_probes(Probes.load(self.folder / PROBES_NAME), manifest, Path(PROBES_NAME))
            (self.folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
            self._check_destination()
            self._draft.__exit__(None, None, None)  # fails where a folder with content came in between
            self._committed = True
        except (InputError, OSError) as error:
            raise BundleError(f"{self.destination} was not written: {error}") from error
        return Bundle(self.destination, manifest)

    def _manifest(
        self,
        draft: ManifestDraft,
        engines: Mapping[tuple[Tower, Precision], tuple[str, Certificate | None]],
        auto: RecommendedRuntime | None,
    ) -> Manifest:
        chosen = {**self._base_engines(), **engines}
        names = {file for file, _ in chosen.values()}
        replaced = {file for file, _ in self._base_engines().values()} - names
        for name in replaced & self._linked.keys():
            self.path(name)  # removes it
        for name in {*required_files(draft.towers), *names}:
            if not (self.folder / name).is_file():
                raise BundleError(f"{self.destination} was not written: the file {name} is missing")
        records = {path.name: file_record(path) for path in sorted(self.folder.iterdir())}
        for name, expected in self._linked.items():
            if records.get(name, expected) != expected:
                raise BundleError(f"{self.destination} was not written: {name} of the base changed since it was opened")
        towers: dict[Tower, dict[Precision, EngineRecord]] = {tower: {} for tower in draft.towers.present}
        for (tower, precision), (file, certificate) in sorted(chosen.items()):
            record = records[file]
            draft.tower(as_member(tower, Tower, "tower"))
            towers[tower][as_member(precision, Precision, "precision")] = EngineRecord(
                file=file, sha256=record.sha256, size_bytes=record.size_bytes, certificate=certificate
            )
        known = {field.name: getattr(draft, field.name) for field in fields(ManifestDraft)}
        files = {name: record for name, record in records.items() if name not in names}
        return Manifest(**known, engines=towers, files=files, auto=auto or self._base_choice(towers))

    def _base_engines(self) -> dict[tuple[Tower, Precision], tuple[str, Certificate | None]]:
        if self._base is None:
            return {}
        return {
            (tower, precision): (record.file, record.certificate)
            for tower, precisions in self._base.manifest.engines.items()
            for precision, record in precisions.items()
        }

    def _base_choice(self, engines: Mapping[Tower, Mapping[Precision, EngineRecord]]) -> RecommendedRuntime | None:
        """Return the base's recommendation where the engines that were compared, its own and fp32's, are unchanged."""
        choice = None if self._base is None else self._base.manifest.auto
        if choice is None or self._base is None:
            return None
        for tower, before in self._base.manifest.engines.items():
            for precision in (choice.precision, Precision.FP32):
                old, new = before.get(precision), engines[tower].get(precision)
                if old is None or new is None or old.sha256 != new.sha256:
                    return None
        return choice

    def _check_destination(self) -> None:
        if os.path.lexists(self.destination):
            raise BundleError(f"{self.destination} exists: a bundle is never changed. Give another name or remove it")
        if not self.destination.parent.is_dir():
            raise BundleError(f"{self.destination.parent} is not a folder: create it first")

    def _discard(self, error: BaseException) -> None:
        self._draft.__exit__(type(error), error, error.__traceback__)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of `source` to the new file `target`; writing into one leaves the other as it is.

    btrfs and XFS share the blocks of both until one is written to. Raises OSError.
    """
    if not _copy_in_kernel(source, target):
        shutil.copyfile(source, target)


def _copy_in_kernel(source: Path, target: Path) -> bool:
    """Let the kernel copy, which then may share blocks; False where it cannot between these files."""
    if not hasattr(os, "copy_file_range"):
        return False
    with source.open("rb") as file, target.open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            try:
                copied = os.copy_file_range(file.fileno(), copy.fileno(), min(left, _COPIED_AT_ONCE_BYTES))
            except OSError:
                return False
            if copied == 0:  # some file systems take the call and do nothing
                return False
            left -= copied
    return True


def _take(source: Path, target: Path, *, links: bool) -> None:
    try:
        if not (links and _linked(source, target)):
            copy_file(source, target)
    except OSError as error:
        raise BundleError(f"{source} cannot be linked or copied: {error.strerror or error}") from error


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        return False
    return True
