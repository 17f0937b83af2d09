"""Which bundle made the embeddings of an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import require_text
from twinspire.errors import InputError


@dataclass(frozen=True, slots=True)
class BundleReference:
    """The bundle that made an index: its name and its folder.

    `path` is absolute; None for the sample that comes with the package. An index only remembers the reference, it
    never opens the bundle. Raises `InputError` for an empty name, a relative path and text that is not UTF-8.
    """

    name: str
    path: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a bundle's name must be a non-empty str, got {self.name!r}")
        if self.path is not None and (not isinstance(self.path, str) or not Path(self.path).is_absolute()):
            raise InputError(f"a bundle's path must be an absolute path as a str, or None, got {self.path!r}")
        for what, text in (("name", self.name), ("path", self.path or "")):
            require_text(text, f"a bundle's {what}")

    def __str__(self) -> str:
        where = "the sample that comes with twinspire" if self.path is None else f"at {self.path}"
        return f"the bundle {self.name}{',' if self.path is None else ''} {where}"
