"""Images in a TSV file: an id, a tab and the image's file in base64 on each line."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from twinspire.errors import InputError


class Base64Images:
    """Index of such a file, which is read once; the images are decoded when they are read.

    Raises InputError, with the line, for a file that cannot be read, a line of another form and a repeated id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # offset and length of the base64, by id
        offset = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._add(line, offset, f"{path}, line {number}")
                    offset += len(line)
        except OSError as error:
            raise InputError(f"the images {path} cannot be read: {error.strerror or error}") from error

    @property
    def ids(self) -> list[str]:
        """The images' ids, in the file's order."""
        return list(self._places)

    def read(self, name: str) -> bytes:
        """Return the content of an image's file."""
        offset, length = self._places[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            encoded = file.read(length)
        try:
            return base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error as error:
            raise InputError(f"{self.path}: the image {name} is not base64: {error}") from error

    def _add(self, line: bytes, offset: int, where: str) -> None:
        name, tab, encoded = line.partition(b"\t")
        try:
            image = name.decode("ascii").strip()
        except UnicodeDecodeError:
            image = ""
        if not tab or not image or not encoded.strip():
            raise InputError(f"{where} is {line[:30]!r}: expected an id, a tab and an image in base64")
        if image in self._places:
            raise InputError(f"{where} has the id {image} of an earlier line: expected every id once")
        self._places[image] = offset + len(name) + 1, len(encoded)
