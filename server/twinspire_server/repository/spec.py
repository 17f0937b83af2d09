"""Models that Triton serves, as data: the entries of their config.pbtxt and the files of a version.

`build_repository` writes the models that the functions in `MODEL_SPECS` of build.py return.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from twinspire.bundle import MANIFEST_NAME, Bundle, BundleWriter, Precision, Tower
from twinspire.bundle.manifest import TOKENIZER_NAME
from twinspire.contract import TensorSpec
from twinspire.errors import InputError

BUNDLE, MANIFEST = "bundle", "manifest"
"""The folders of a version that hold a copy of the bundle, or of what describes the inputs of a model without it."""
RERANKER_PARAMETER = "reranker"
"""The parameter of a reranker's model with its name in the bundle."""


class ModelFile(Protocol):
    """A file or folder of a version: its name there, and what writes it."""

    @property
    def name(self) -> str:
        """The name within the version's folder."""

    def write(self, path: Path) -> None:
        """Write it to `path`, which ends in `name`. Raises OSError."""


@dataclass(frozen=True)
class CopiedFile:
    """A file that is copied as it is."""

    name: str
    source: Path

    def write(self, path: Path) -> None:
        """Copy the file."""
        shutil.copyfile(self.source, path)


@dataclass(frozen=True)
class WrittenFile:
    """A file with a given text."""

    name: str
    text: str

    def write(self, path: Path) -> None:
        """Write the text."""
        path.write_text(self.text, encoding="utf-8")


@dataclass
class BundleCopy:
    """A copy of a bundle. The models of one bundle share it: the first write copies, later ones make hard links."""

    bundle: Bundle
    name: str = field(default=BUNDLE, init=False)
    _copy: Bundle | None = field(default=None, init=False)

    def write(self, path: Path) -> None:
        """Copy the bundle, or link to the copy that was written before."""
        with BundleWriter(path, base=self._copy or self.bundle, links=self._copy is not None) as writer:
            self._copy = writer.commit(self.bundle.manifest.draft(), {})


@dataclass(frozen=True)
class ManifestCopy:
    """A copy of what describes the inputs of a model whose version holds no bundle: manifest and tokenizer."""

    bundle: Bundle
    name: str = field(default=MANIFEST, init=False)

    def write(self, path: Path) -> None:
        """Copy the files into a folder."""
        path.mkdir()
        for name in (MANIFEST_NAME, TOKENIZER_NAME):
            if (self.bundle.path / name).is_file():  # images alone have no tokenizer
                shutil.copyfile(self.bundle.path / name, path / name)


@dataclass(frozen=True)
class InstanceGroup:
    """Instances of a model. `kind` is Triton's name of what they run on, `profiles` how many a TensorRT plan has."""

    kind: str = "KIND_CPU"
    count: int = 1
    profiles: int = 0


@dataclass(frozen=True)
class WarmUp:
    """A batch that Triton runs before the model counts as ready: `batch` equal rows.

    `inputs` have one row's exact shapes; `data` holds the row's bytes of those that are not zeros, by input name.
    """

    name: str
    batch: int
    inputs: tuple[TensorSpec, ...]
    data: Mapping[str, bytes] = field(default_factory=dict)

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield input name, file name and content for each input that is not zeros."""
        for name, content in self.data.items():
            yield name, self.name if len(self.inputs) == 1 else f"{self.name}.{name}", content


@dataclass(frozen=True)
class EnsembleStep:
    """A model that an ensemble calls.

    `inputs` and `outputs` say which of the ensemble's tensors each of the model's own tensors is, by their names.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that Triton serves.

    - `bundle` is the name of the bundle that it belongs to, `space` the space of its embeddings; both None for a model
      of the whole repository. `precision` is that of the engine that it runs, None where it runs none, and `tower` the
      engine's, None for a reranker. Clients read them, and `parameters`, from its configuration.
    - `steps` are the models that an ensemble calls, one after the other; it has no `backend`, batches and warm-ups of
      its own.
    - `files` are what its version holds; `engine_sha256` is the digest of its engine's file. A model with another
      engine than the newest version in the repository becomes a further version; without an engine the newest version
      is replaced.
    - `max_batch` is the most rows of a batch, 0 for a model without a batch axis; with `dynamic_batching` Triton joins
      requests to batches.
    - `warm_ups` run before the model counts as ready. The first one is also its ready check: `twinspire serve` repeats
      it to notice a model that hangs. Models without warm-up are not checked.
    - `called_by` names the model that calls this one, which then has the same version; that one's parameter `engine`
      names this one. `replaces` names models that are removed when this one is installed.
    - `platform`, `note` (a comment above the backend) and `further_config` are written to config.pbtxt as they are.
    """

    name: str
    bundle: str | None = None
    space: str | None = None
    backend: str | None = None
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    files: Sequence[ModelFile]
    max_batch: int
    tower: Tower | None = None
    precision: Precision | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    engine_sha256: str | None = None
    dynamic_batching: bool = True
    instances: InstanceGroup = InstanceGroup()
    warm_ups: Sequence[WarmUp] = ()
    steps: Sequence[EnsembleStep] = ()
    called_by: str | None = None
    replaces: Sequence[str] = ()
    platform: str | None = None
    note: str | None = None
    further_config: str | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise InputError(f"the model name {self.name!r}: expected the name of a folder", option="name")
        if bool(self.steps) == (self.backend is not None) or (self.steps and self.warm_ups):
            raise InputError(
                f"the model {self.name}: expected either a backend, or the steps of an ensemble without warm-ups"
            )
        names = {tensor.name for tensor in self.inputs}
        for warm_up in self.warm_ups:
            if {tensor.name for tensor in warm_up.inputs} != names:
                raise InputError(f"the warm-up {warm_up.name} of {self.name}: expected the inputs {sorted(names)}")


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model of a repository: its folder, and the version that Triton serves."""

    spec: ModelSpec
    folder: Path
    version: int

    @property
    def name(self) -> str:
        """The name that Triton serves it under."""
        return self.spec.name
