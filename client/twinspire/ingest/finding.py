"""Which files of a folder are pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from twinspire import _arguments
from twinspire.errors import InputError

# fmt: off
PICTURE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf",
])
# fmt: on


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of the pictures at `paths`, each file once.

    A folder gives the files in it and below that have a picture's suffix, sorted by path, without following
    links to folders; a file is taken whatever its suffix. Raises `InputError` for a path where nothing is, a
    folder that cannot be read or has no picture, and where no path is given.
    """
    require_list(paths)
    found: dict[Path, None] = {}
    for given in paths:
        if not os.fspath(given):
            raise InputError("an empty path was given: expected pictures or folders of pictures")
        path = absolute(given)
        if path.is_dir():
            pictures = pictures_below(path)
            if not pictures:
                raise InputError(
                    f"the folder {path} has no picture in it: expected files ending in one of "
                    f"{' '.join(sorted(PICTURE_SUFFIXES))}. A file of another name can be given by itself"
                )
            found.update(dict.fromkeys(pictures))
        elif os.path.lexists(path):
            found[path] = None
        else:
            raise InputError(f"there is no file or folder {path}: expected pictures or folders of pictures")
    if not found:
        raise InputError("no path was given: expected pictures or folders of pictures")
    return list(found)


def pictures_below(folder: Path) -> list[Path]:
    """Return the files in a folder and below that have a picture's suffix, sorted; none is fine.

    Raises `InputError` for a folder that cannot be read.
    """
    return sorted(file for file in _walk(folder) if is_picture(file))


def is_picture(path: Path) -> bool:
    """Whether a file's name ends as a picture's does."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def require_list(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise `InputError` where one path came in place of a list."""
    _arguments.require_list(paths, "paths")


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path as an item's uri has it: absolute, without "..", links not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)
