"""Releases: whole copies of a repository, one of which is served.

`twinspire build` changes a repository model by model, and Triton reads its repository again at every start. So
`twinspire serve` gives Triton a release, which never changes, and a build changes what is served at the next `twinspire
reload` and no earlier. Releases lie in a folder beside the repository: within it Triton would take them for models.

    .models.serving/serving.json    the release that was taken last, and those before it
                    3/  2/          the releases; large files are hard links to the repository's
                    lock            held by the process that serves
                    control         the socket at which it takes commands

Whatever serving.json does not name is what an interrupted change has left.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_file, atomic_folder
from twinspire.errors import InputError, ServerError
from twinspire_server.repository.config import CONFIG, read_config
from twinspire_server.repository.installation import locked, versions

CONTROL = "control"
"""The socket at which the serving process takes commands, in the folder of the releases."""

_RECORD = "serving.json"
_LOCK = "lock"
_COPIED_BYTES = 1 << 20
"""Smaller files are copied: an editor may write into one in place, which would change a hard link."""


@dataclass(frozen=True)
class _Record:
    """The number of the release that was taken last, and of those taken before it, the latest first."""

    taken: int
    previous: tuple[int, ...]


class Releases:
    """The releases of one repository, for the one process that serves it, until `close`.

    `folder` is where they are kept, by default beside the repository. Raises ServerError where another process serves
    the repository, InputError where the folder cannot be written or holds a record that cannot be read.
    """

    def __init__(self, repository: Path, folder: Path | None = None) -> None:
        self.repository = repository.absolute()
        self.folder = releases_folder(repository) if folder is None else folder.absolute()
        with file_errors(f"{self.folder} cannot be written", self.folder, ". Name another folder with --state"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take_lock()
            self._record = self._read()
            self._prune()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def taken(self) -> Path | None:
        """The release that was taken last, None where there was none."""
        return None if self._record is None else self._path(self._record.taken)

    @property
    def previous(self) -> Path | None:
        """The release before it, None where none is kept."""
        return None if self._record is None or not self._record.previous else self._path(self._record.previous[0])

    def copy(self, *, aborted: threading.Event | None = None) -> Path:
        """Copy the repository to a new release; return the taken one where nothing has changed.

        Waits while a build writes, until `aborted` is set. Raises InputError where the repository cannot be read or the
        copy not be written.
        """
        message = f"{self.repository} cannot be copied to {self.folder}"
        with file_errors(message, self.folder), locked(self.repository, aborted=aborted):
            files = _served_files(self.repository)
            if self.taken is not None and _equal(files, self.taken):
                return self.taken
            used = [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit()]
            release = self._path(max(used, default=0) + 1)
            with atomic_folder(release) as draft:
                _write(files, draft)
            return release

    def is_outdated(self) -> bool:
        """Whether the repository holds something else than the taken release, or is being built into."""
        at_once = threading.Event()
        at_once.set()
        message = f"{self.repository} cannot be read"
        with (
            file_errors(message, self.repository),
            suppress(BlockingIOError),
            locked(self.repository, aborted=at_once),
        ):
            return self.taken is None or not _equal(_served_files(self.repository), self.taken)
        return True

    def take(self, release: Path, *, keep: int = 1) -> None:
        """Record that a release is served from now on, and which `keep` ones before it may be returned to.

        Returning to the previous one drops the present one. Raises InputError where it cannot be recorded.
        """
        number, record = int(release.name), self._record
        if record is None:
            before: tuple[int, ...] = ()
        elif number in record.previous:
            before = record.previous[record.previous.index(number) + 1 :]
        else:
            before = record.previous if number == record.taken else (record.taken, *record.previous)
        taken = _Record(number, before[:keep])
        with (
            file_errors(f"{self.folder / _RECORD} cannot be written", self.folder),
            atomic_file(self.folder / _RECORD) as draft,
        ):
            draft.write_text(json.dumps(asdict(taken)), encoding="utf-8")
        self._record = taken

    def discard(self, release: Path) -> None:
        """Remove a release that was not taken."""
        if release != self.taken and release != self.previous:
            shutil.rmtree(release, ignore_errors=True)

    def prune(self) -> list[str]:
        """Remove releases that are not kept, and from the repository the versions older than those; list the latter."""
        self._prune()
        if self._record is None:
            return []
        removed = []
        kept = [model_versions(self._path(number)) for number in (self._record.taken, *self._record.previous)]
        with locked(self.repository):
            for model in model_versions(self.repository):
                oldest = min((release[model] for release in kept if model in release), default=0)
                for version in versions(self.repository / model):
                    if version < oldest and _serves_newest(self.repository / model):
                        shutil.rmtree(self.repository / model / str(version), ignore_errors=True)
                        removed.append(f"{model}/{version}")
        return removed

    def close(self) -> None:
        """Let another process serve the repository."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, number: int) -> Path:
        return self.folder / str(number)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace") or "unknown"
            raise ServerError(
                f"{self.repository} is served already, by process {holder}: `twinspire reload` lets that one take a "
                "new build. To serve it twice, keep the releases of the second server elsewhere with --state"
            ) from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _read(self) -> _Record | None:
        file = self.folder / _RECORD
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            record = _Record(int(document["taken"]), tuple(map(int, document["previous"])))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _unreadable(file, repr(error)) from error
        if not self._path(record.taken).is_dir():
            raise _unreadable(file, f"there is no release {record.taken}")
        return _Record(record.taken, tuple(number for number in record.previous if self._path(number).is_dir()))

    def _prune(self) -> None:
        kept = {_RECORD, _LOCK, CONTROL}
        if self._record is not None:
            kept |= {str(number) for number in (self._record.taken, *self._record.previous)}
        for entry in self.folder.iterdir():
            if entry.name not in kept:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def releases_folder(repository: Path) -> Path:
    """Return the folder of a repository's releases: `.models.serving` beside `models`."""
    absolute = repository.absolute()
    return absolute.with_name(f".{absolute.name}.serving")


def model_versions(repository: Path) -> dict[str, int]:
    """Return the newest version of each model, 0 for one without."""
    return {file.parent.name: max(versions(file.parent), default=0) for file in sorted(repository.glob(f"*/{CONFIG}"))}


def _unreadable(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} cannot be used: {reason}. It says which release of the models was served last; remove the folder "
        f"{file.parent} to serve what was built last",
        path=file,
    )


def _serves_newest(model: Path) -> bool:
    """Whether Triton serves a model's newest version alone, its default."""
    with suppress(InputError):
        return not read_config(model).HasField("version_policy")
    return False


def _served_files(repository: Path) -> dict[Path, Path | None]:
    """Return the files of a repository that Triton reads, by their path in it; None for an empty folder.

    Of a model's versions these are the files of the newest, unless its config has a policy of its own.
    """
    found: dict[Path, Path | None] = {}
    for config in sorted(repository.glob(f"*/{CONFIG}")):
        model = config.parent
        skipped = set(map(str, versions(model)[:-1])) if _serves_newest(model) else set()
        for path, folders, names in os.walk(model, followlinks=True):
            here = Path(path)
            if here == model:
                folders[:] = [name for name in folders if name not in skipped]
            found.update({(here / name).relative_to(repository): here / name for name in names})
            if not names and not folders:
                found[here.relative_to(repository)] = None
    return found


def _write(files: Mapping[Path, Path | None], folder: Path) -> None:
    for name, source in files.items():
        target = folder / name
        if source is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > _COPIED_BYTES:
            with suppress(OSError):  # another file system, one without hard links, a file of another user
                os.link(source.resolve(), target)
                continue
        shutil.copyfile(source, target)


def _equal(files: Mapping[Path, Path | None], release: Path) -> bool:
    """Whether a release holds these files with the same content."""
    held = _served_files(release)
    if held.keys() != files.keys():
        return False
    pairs: Sequence[tuple[Path | None, Path | None]] = [(source, held[name]) for name, source in files.items()]
    return all(
        one is other if one is None or other is None else one.samefile(other) or filecmp.cmp(one, other, shallow=False)
        for one, other in pairs
    )
