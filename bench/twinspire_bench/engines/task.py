"""What a contestant is given to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinspire.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant computes. `name` is one of `peers.CONTESTANTS`; it reads of the rest what it needs.

    `images` is a .npy file, (N, S, S, 3) uint8; `captions` a JSON list of str; `folder` holds JPEG files; `engine`
    is the file that a foreign runtime opens.
    """

    name: str
    threads: int
    streams: int = 1
    bundle: Path | None = None
    checkpoint: Path | None = None
    engine: Path | None = None
    pictures: Path | None = None
    captions: Path | None = None
    folder: Path | None = None
    batch: int = 32
    part: int = 0  # how many captions a measurement takes; all of them with 0

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data; the inverse of `from_json`."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Task:
        """Make a task of what `to_json` gave."""
        paths = ("bundle", "checkpoint", "engine", "pictures", "captions", "folder")
        given: dict[str, Any] = {**document, **{key: Path(document[key]) for key in paths if document[key] is not None}}
        return cls(**given)

    def path(self, name: str) -> Path:
        """Return a path that this contestant cannot do without."""
        found = getattr(self, name)
        if not isinstance(found, Path):
            raise EngineError(f"{self.name} needs the path of its {name}: none came")
        return found
