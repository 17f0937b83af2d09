"""Finding the image files of folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from twinspire._arguments import require_list
from twinspire.errors import InputError, install_command
from twinspire.images import formats
from twinspire.images.formats import HEIF_SUFFIXES
from twinspire.ingest.files import cause_of, is_folder, is_missing
from twinspire.ingest.reports import FailedImage

# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf",
])
# fmt: on
_SHOWN = 6  # suffixes in a message


class FoundImages(list[Path]):
    """A list of the images that were found.

    `failed` names the files and folders that could not be read, and why. `skipped` counts the files without a suffix of
    images by their suffix in lower case ("" for none).
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[FailedImage] = []
        self.skipped: Counter[str] = Counter()


def find_images(
    paths: Iterable[str | os.PathLike[str]], *, on_error: Literal["raise", "skip"] = "raise"
) -> FoundImages:
    """Return the absolute paths of the images at `paths`, each file once.

    A folder gives the files in it and below with a suffix of images, sorted by path; links to folders are not followed.
    A file is taken whatever its suffix. HEIC and HEIF count where the extra `heif` is installed. Raises `InputError`
    for a path that does not exist, a folder without images and no path at all, and for a folder that cannot be read
    unless `on_error` is "skip", which lists it in `failed`.
    """
    found, seen = FoundImages(), dict[Path, None]()
    for given in require_list(paths, "paths"):
        if not os.fspath(given):
            raise InputError("an empty path was given: expected images or folders of images")
        path = absolute(given)
        if is_folder(path):
            images = images_below(path)
            if images.failed and on_error == "raise":
                raise InputError(f"the folder {images.failed[0].path} {images.failed[0].cause}")
            if not images and not images.failed:
                left_out = f" ({describe_skipped(images.skipped)})" if images.skipped else ""
                raise InputError(
                    f"the folder {path} has no images{left_out}: expected files ending in one of "
                    f"{' '.join(sorted(image_suffixes()))}. Give the path of a file to take it whatever its suffix"
                )
            seen.update(dict.fromkeys(images))
            found.failed += images.failed
            found.skipped += images.skipped
        elif os.path.lexists(path) or not is_missing(path):
            seen[path] = None
        else:
            raise InputError(f"there is no file or folder {path}: expected images or folders of images")
    if not seen and not found.failed:
        raise InputError("no path was given: expected images or folders of images")
    found.extend(seen)
    return found


def images_below(folder: Path) -> FoundImages:
    """Return the files in a folder and below with a suffix of images, sorted; may be empty. Never raises."""
    found = FoundImages()

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed since its name was read
            found.failed.append(FailedImage(Path(error.filename), cause_of(error)))

    suffixes = image_suffixes()
    for parent, _, names in os.walk(folder, onerror=note):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in suffixes:
                found.append(path)
            else:
                found.skipped[path.suffix.lower()] += 1
    found.sort()
    return found


def is_image(path: Path) -> bool:
    """Whether a file has a suffix of images."""
    return path.suffix.lower() in image_suffixes()


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of images, including those of HEIF where its reader is installed."""
    return IMAGE_SUFFIXES | HEIF_SUFFIXES if formats.has_heif() else IMAGE_SUFFIXES


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
