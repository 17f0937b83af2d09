"""Finding the image and sound files of folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

from twinspire._arguments import require_list
from twinspire.errors import InputError, install_command
from twinspire.images.formats import HEIF_SUFFIXES
from twinspire.ingest.files import cause_of, is_folder, is_missing
from twinspire.ingest.kinds import is_of_kind, nouns_of, suffixes_of
from twinspire.ingest.reports import FailedImage
from twinspire.stores.items import ItemKind

_SHOWN = 6  # suffixes in a message


class FoundImages(list[Path]):
    """A list of the images, or of the images and sounds, that were found.

    `failed` names the files and folders that could not be read, and why. `skipped` counts the files without a suffix of
    the kinds that were asked for by their suffix in lower case ("" for none). `named` are those that were given by
    their own path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[FailedImage] = []
        self.skipped: Counter[str] = Counter()
        self.named: set[Path] = set()

    def only(self, kinds: Collection[ItemKind]) -> FoundImages:
        """Return the files of these kinds, and any that the caller named one by one; count the others as skipped."""
        kept = FoundImages()
        kept.failed, kept.skipped, kept.named = self.failed, Counter(self.skipped), self.named
        for path in self:
            if path in self.named or is_of_kind(path, *kinds):
                kept.append(path)
            else:
                kept.skipped[path.suffix.lower()] += 1
        return kept


def find_images(
    paths: Iterable[str | os.PathLike[str]], *, on_error: Literal["raise", "skip"] = "raise"
) -> FoundImages:
    """Return the absolute paths of the images at `paths`, each file once: `find_files` of images alone."""
    return find_files(paths, kinds=[ItemKind.IMAGE], on_error=on_error)


def find_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    kinds: Collection[ItemKind],
    on_error: Literal["raise", "skip"] = "raise",
) -> FoundImages:
    """Return the absolute paths of the files of some kinds at `paths`, each file once.

    A folder gives the files in it and below with a suffix of these kinds, sorted by path; links to folders are not
    followed. A file is taken whatever its suffix. HEIC and HEIF count where the extra `heif` is installed. Raises
    `InputError` for a path that does not exist, a folder without such files and no path at all, and for a folder that
    cannot be read unless `on_error` is "skip", which lists it in `failed`.
    """
    found, seen, nouns = FoundImages(), dict[Path, None](), nouns_of(kinds)
    for given in require_list(paths, "paths"):
        if not os.fspath(given):
            raise InputError(f"an empty path was given: expected {nouns} or folders of them")
        path = absolute(given)
        if is_folder(path):
            below = files_below(path, kinds)
            if below.failed and on_error == "raise":
                raise InputError(f"the folder {below.failed[0].path} {below.failed[0].cause}")
            if not below and not below.failed:
                raise no_files(path, kinds, below.skipped)
            seen.update(dict.fromkeys(below))
            found.failed += below.failed
            found.skipped += below.skipped
        elif os.path.lexists(path) or not is_missing(path):
            seen[path] = None
            found.named.add(path)
        else:
            raise InputError(f"there is no file or folder {path}: expected {nouns} or folders of them")
    if not seen and not found.failed:
        raise InputError(f"no path was given: expected {nouns} or folders of them")
    found.extend(seen)
    return found


def no_files(folder: Path | None, kinds: Collection[ItemKind], skipped: Mapping[str, int]) -> InputError:
    """Return the error for a folder, or several, without files of some kinds."""
    left_out = f" ({describe_skipped(skipped)})" if skipped else ""
    expected = " ".join(sorted(suffix for kind in kinds for suffix in suffixes_of(kind)))
    where = "the paths have" if folder is None else f"the folder {folder} has"
    return InputError(
        f"{where} no {nouns_of(kinds)}{left_out}: expected files ending in one of {expected}. Give the path of a file "
        "to take it whatever its suffix"
    )


def files_below(folder: Path, kinds: Collection[ItemKind]) -> FoundImages:
    """Return the files in a folder and below with a suffix of some kinds, sorted; may be empty. Never raises."""
    found = FoundImages()

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed since its name was read
            found.failed.append(FailedImage(Path(error.filename), cause_of(error)))

    suffixes = frozenset[str]().union(*map(suffixes_of, kinds))
    for parent, _, names in os.walk(folder, onerror=note):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in suffixes:
                found.append(path)
            else:
                found.skipped[path.suffix.lower()] += 1
    found.sort()
    return found


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return how many files of which suffixes were skipped, and how to install the reader of HEIF."""
    total = sum(skipped.values())
    order = sorted(skipped.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in order[:_SHOWN]]
    if len(order) > _SHOWN:
        shown.append(f"{sum(count for _, count in order[_SHOWN:]):,} others")
    text = f"skipped {total:,} file{'' if total == 1 else 's'}: {', '.join(shown)}"
    if not HEIF_SUFFIXES.isdisjoint(skipped):
        text += f"; HEIC and HEIF are read with: {install_command('heif')}, in a checkout of twinspire"
    return text


def absolute_paths(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths, each once. Raises `InputError` for one path in place of a list."""
    return list(dict.fromkeys(map(absolute, require_list(paths, "paths"))))


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path as items have it as their uri: absolute, without "..", links not resolved."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
