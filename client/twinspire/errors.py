"""Every error that twinspire raises on purpose.

    TwinspireError
    ├── InputError               what the caller gave cannot be used
    │   ├── ImageError           one image: its position, its name, the cause
    │   └── EmbeddingError       a vector of the wrong shape, dtype or norm, or not finite
    ├── BundleError              the folder is no intact bundle
    ├── CheckpointError          the checkpoint cannot be turned into a bundle
    ├── SpaceMismatchError       embeddings of two spaces would be compared
    ├── IndexStoreError          the index folder cannot be read or written
    │   ├── IndexLockedError     another process is writing to it
    │   └── IndexUncertainError  a change failed and may be there all the same
    ├── MissingDependencyError   an optional package is not installed; names the extra that brings it
    ├── BrokenDependencyError    an optional package is installed and cannot be imported; names the cause
    ├── ProviderError            a requested execution provider or device is not there, or cannot compute
    ├── EngineError              an engine could not be loaded or run
    └── ServerError              a server cannot be started, or fails
        ├── ServerUnavailableError   it cannot be reached, or did not answer before the deadline
        │   └── ServerOverloadedError    it is there, and refused until the deadline: too many requests
        └── ServerRefusedError   it answered with an error

A message says what came, what was expected and what to do. The command line prints it and ends with status 2.
"""

from __future__ import annotations


def install_command(*extras: str) -> str:
    """Return the command that installs extras. twinspire is on no package index: it is run in a checkout."""
    return f'pip install -e ".[{",".join(extras)}]"'


class TwinspireError(Exception):
    """Base of every error raised on purpose."""


class InputError(TwinspireError):
    """What the caller gave cannot be used."""


class ImageError(InputError):
    """One image cannot be used.

    `position` is its place in the list that was given, counted from 0; `name` is its path where it has one, else its
    type; `cause` says what is wrong with it.
    """

    def __init__(self, position: int, name: str, cause: str) -> None:
        super().__init__(f"picture {position} ({name}): {cause}")
        self.position = position
        self.name = name
        self.cause = cause


class EmbeddingError(InputError):
    """A vector has the wrong shape, dtype or norm, or is not finite."""


class BundleError(TwinspireError):
    """The folder is no intact bundle."""


class CheckpointError(TwinspireError):
    """The checkpoint cannot be turned into a bundle."""


class SpaceMismatchError(TwinspireError):
    """Embeddings of two spaces would be compared."""


class IndexStoreError(TwinspireError):
    """The index folder cannot be read or written."""


class IndexLockedError(IndexStoreError):
    """Another process is writing to the index."""


class IndexUncertainError(IndexStoreError):
    """A change failed while the disk was to make it last, and could not be undone: it may be there all the same."""


class MissingDependencyError(TwinspireError):
    """An optional package is not installed.

    `package` is its name, `extra` the extra of twinspire that brings it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: {install_command(extra)}, in a checkout of twinspire"
        )
        self.package = package
        self.extra = extra


class BrokenDependencyError(TwinspireError):
    """An optional package is installed and cannot be imported.

    `package` is its name and version, `extra` the extra of twinspire that brings it, `cause` what its import raised.
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
    """A requested execution provider or device is not there, or cannot compute."""


class EngineError(TwinspireError):
    """An engine could not be loaded or run."""


class ServerError(TwinspireError):
    """A server cannot be started, or fails."""


class ServerUnavailableError(ServerError):
    """A server cannot be reached, or did not answer before the deadline."""


class ServerOverloadedError(ServerUnavailableError):
    """A server is there and refused the work until the deadline: it has more requests than it can answer."""


class ServerRefusedError(ServerError):
    """A server answered with an error."""
