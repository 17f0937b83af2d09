"""`DuplicateReport`: groups of near-equal images, in Python and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from twinspire._codec import encode


@dataclass(frozen=True, slots=True)
class DuplicateImage:
    """An image of a group: its item, its file, and how near it is to the best image of the group.

    `similarity` is the cosine of its vector and the best image's, -1 to 1. `correlation` is that of their pixels, -1 to
    1, None where they were compared by vector alone. `width`, `height` and `size_bytes` are those of the file as it is
    stored, None where it could not be read; `problem` says why then.
    """

    id: int
    uri: str
    similarity: float
    correlation: float | None
    width: int | None
    height: int | None
    size_bytes: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Near-equal images: the best one, and those that were compared with it and are near-equal, nearest first.

    The best image is the one with the most pixels, then the most bytes, then the lowest id, by the metadata `width`,
    `height` and `bytes` where the file was not read; one whose file can be read comes before one whose file cannot.
    """

    best: DuplicateImage
    others: tuple[DuplicateImage, ...]

    def __iter__(self) -> Iterator[DuplicateImage]:
        return iter((self.best, *self.others))

    def __len__(self) -> int:
        return 1 + len(self.others)

    @property
    def is_checked(self) -> bool:
        """Whether the pixels of all images were compared, not vectors alone."""
        return all(image.correlation is not None for image in self.others)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """The groups of near-equal images of a store, the largest first.

    `images` is the number of images that were compared by vector, `read` how many files were read to compare them by
    pixels. `unreadable` are the items whose file could not be read, by id with the cause, whether in a group or not.
    """

    groups: tuple[DuplicateGroup, ...]
    images: int
    read: int
    unreadable: tuple[UnreadableImage, ...]
    threshold: float
    min_correlation: float | None

    @property
    def redundant(self) -> int:
        """The number of images that are not the best of their group."""
        return sum(len(group.others) for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "images": self.images,
            "read": self.read,
            "threshold": self.threshold,
            "min_correlation": self.min_correlation,
            "redundant": self.redundant,
            "groups": [
                {
                    "is_checked": group.is_checked,
                    "best": encode(group.best),
                    "others": [encode(image) for image in group.others],
                }
                for group in self.groups
            ],
            "unreadable": [encode(image) for image in self.unreadable],
        }


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An item whose file is missing or cannot be decoded, and why."""

    id: int
    uri: str
    problem: str
