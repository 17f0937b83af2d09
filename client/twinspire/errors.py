"""Every error that twinspire raises on purpose.

    TwinspireError
    ├── InputError               an argument, option or file cannot be used
    │   ├── ItemError            one image or sound: its position, name and cause
    │   │   ├── ImageError
    │   │   └── AudioError
    │   ├── TextLengthError      a text is longer than the model's context
    │   └── EmbeddingError       a vector of the wrong shape, dtype or norm, or not finite
    ├── BundleError              the folder is not an intact bundle
    ├── CheckpointError          the checkpoint cannot be exported
    ├── SpaceMismatchError       embeddings of two spaces would be compared
    ├── IndexStoreError          the index cannot be read or written
    │   ├── IndexLockedError     another process is writing to it
    │   ├── IndexReplacedError   it was migrated or replaced since it was opened: open it again
    │   └── IndexUncertainError  a change failed and may have been committed all the same
    ├── MissingDependencyError   an optional package is not installed
    ├── BrokenDependencyError    an optional package is installed and cannot be imported
    ├── ProviderError            a requested execution provider or device is missing or cannot compute
    ├── EngineError              an engine cannot be loaded or run
    └── ServerError              a server cannot be started, or fails
        ├── ServerUnavailableError   it cannot be reached, or did not answer before the deadline
        │   └── ServerOverloadedError    it refused the request until the deadline: its queue is full
        └── ServerRefusedError   it answered with an error

A message says what failed, on what, what was expected and what to do. What a program may want to act on is an
attribute as well; one that does not apply is None. `twinspire.error_status` maps each class to an exit code, an HTTP
status and a gRPC status.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


def install_command(*extras: str) -> str:
    """Return the command that installs extras. twinspire is on no package index: it is run in a checkout."""
    return f'pip install -e ".[{",".join(extras)}]"'


class TwinspireError(Exception):
    """Base of every error raised on purpose."""


class InputError(TwinspireError):
    """An argument, option or file cannot be used.

    `option` is the argument, key or command-line option; `path` and `line`, from 1, are the place in a file;
    `position` is the place in a text or list, from 0.
    """

    def __init__(
        self,
        message: str,
        *,
        option: str | None = None,
        path: str | os.PathLike[str] | None = None,
        line: int | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.option = option
        self.path = _path(path)
        self.line = line
        self.position = position


class ItemError(InputError):
    """One image or sound cannot be used.

    `position` is its place in the list that was given, from 0; `name` is its path where it has one, else its type;
    `cause` says what is wrong with it.
    """

    noun: ClassVar[str] = "item"

    def __init__(self, position: int, name: str, cause: str) -> None:
        super().__init__(f"{self.noun} {position} ({name}): {cause}", position=position)
        self.position: int = position
        self.name = name
        self.cause = cause


class ImageError(ItemError):
    """One image cannot be used."""

    noun = "image"


class AudioError(ItemError):
    """One sound cannot be used."""

    noun = "sound"


class TextLengthError(InputError):
    """A text is longer than the model's context.

    `position` is its place in the list that was given, from 0; `tokens` its length and `limit` the context's, both in
    tokens with start and end.
    """

    def __init__(self, position: int, *, tokens: int, limit: int) -> None:
        super().__init__(
            f"text {position} has {tokens} tokens: expected at most {limit}, the model's context. Shorten it, or have "
            "it cut: truncation='end'",
            position=position,
        )
        self.position: int = position
        self.tokens = tokens
        self.limit = limit


class EmbeddingError(InputError):
    """A vector has the wrong shape, dtype or norm, or is not finite."""


class BundleError(TwinspireError):
    """The folder is not an intact bundle."""


class CheckpointError(TwinspireError):
    """The checkpoint cannot be exported."""


class SpaceMismatchError(TwinspireError):
    """Embeddings of two spaces would be compared: `expected` is one space, `found` the other."""

    def __init__(self, message: str, *, expected: str | None = None, found: str | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class IndexStoreError(TwinspireError):
    """The index cannot be read or written."""


class IndexLockedError(IndexStoreError):
    """Another process is writing to the index."""


class IndexReplacedError(IndexStoreError):
    """The index was migrated to another space, or replaced by another, since it was opened: open it again."""


class IndexUncertainError(IndexStoreError):
    """A change failed while it was being made durable, and could not be undone: it may have been committed."""


class MissingDependencyError(TwinspireError):
    """An optional package is not installed. `package` is its name, `extra` the extra of twinspire that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: {install_command(extra)}, in a checkout of twinspire"
        )
        self.package = package
        self.extra = extra


class BrokenDependencyError(TwinspireError):
    """An optional package is installed and cannot be imported.

    `package` is its name and version, `extra` the extra of twinspire that installs it, `cause` what its import raised.
    """

    def __init__(self, package: str, extra: str, purpose: str, cause: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is installed and cannot be imported: {cause}. Make a new environment, "
            "since the extras cpu and gpu overwrite each other's modules, and install with a current pip: "
            f"pip install --upgrade pip, then {install_command(extra)}, in a checkout of twinspire"
        )
        self.package = package
        self.extra = extra
        self.cause = cause


class ProviderError(TwinspireError):
    """A requested execution provider or device is missing or cannot compute.

    `provider` is its name, `available` are the providers that could be used instead.
    """

    def __init__(self, message: str, *, provider: str | None = None, available: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.provider = provider
        self.available = tuple(available)


class EngineError(TwinspireError):
    """An engine cannot be loaded or run.

    `path` is its file, `tower` its tower, `row` the first bad row of the batch.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        tower: str | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path = _path(path)
        self.tower = tower
        self.row = row


class ServerError(TwinspireError):
    """A server cannot be started, or fails.

    `address` is its host:port, `model` the model that was asked for, `code` the name of the gRPC status that came back
    (UNAVAILABLE, ...), `attempts` how often the request was sent, `deadline_s` the time that it had. `request_id`
    is what the ids of the call's requests begin with, as in the server's access log and traces.
    """

    def __init__(
        self,
        message: str,
        *,
        address: str | None = None,
        model: str | None = None,
        code: str | None = None,
        attempts: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.address = address
        self.model = model
        self.code = code
        self.attempts = attempts
        self.deadline_s = deadline_s
        self.request_id: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.request_id is None else f"{message} (request id {self.request_id})"


class ServerUnavailableError(ServerError):
    """A server cannot be reached, or did not answer before the deadline."""


class ServerOverloadedError(ServerUnavailableError):
    """A server refused the request until the deadline: its queue is full."""


class ServerRefusedError(ServerError):
    """A server answered with an error."""


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
