"""Opening and checking of bundles."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from twinspire._arguments import as_member
from twinspire.bundle.description import BundleDescription
from twinspire.bundle.manifest import MANIFEST_NAME, PROBES_NAME, TOKENIZER_NAME, Manifest, ManifestDraft
from twinspire.bundle.probes import Probes
from twinspire.bundle.records import FileRecord
from twinspire.bundle.settings import Precision, Tower
from twinspire.errors import BundleError

_HOW_TO_MAKE = {
    Precision.FP32: "twinspire export CHECKPOINT -o BUNDLE",
    Precision.FP16: "twinspire quantize BUNDLE -o NEW --precision fp16",
    Precision.INT8: "twinspire quantize BUNDLE -o NEW",
    Precision.INT8_TENSORRT: "twinspire quantize BUNDLE -o NEW --precision int8-tensorrt",
    Precision.FP32_TOME: "twinspire precision BUNDLE -o NEW --data DATA --merge-tokens auto",
    Precision.INT8_TOME: "twinspire precision BUNDLE -o NEW --data DATA --merge-tokens auto",
}


class Bundle(BundleDescription):
    """A folder with one model: manifest, tokenizer, engines and probes. Open one with `Bundle.open`.

    Bundles are immutable: quantizing or certifying writes a new one.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(manifest, tokenizer_json=None, location=str(path))
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle: read every file once and compare its sha256.

        Raises BundleError that names the file where one is missing, of the wrong size or changed, or where
        bundle.json violates its schema. Files that the manifest does not list are ignored.
        """
        folder = Path(path)
        text = read_manifest(folder / MANIFEST_NAME, f"a bundle, a folder with {MANIFEST_NAME}")
        try:
            manifest = Manifest.from_json(text)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        for name, record in manifest.all_files().items():
            check_file(folder / name, record)
        return cls(folder, manifest)

    @property
    def tokenizer_path(self) -> Path:
        """The path of tokenizer.json."""
        return self.path / TOKENIZER_NAME

    def tokenizer_json(self) -> bytes:
        """Read tokenizer.json. Raises BundleError where it cannot be read or the model has no text tower."""
        self.manifest.tower(Tower.TEXT)
        try:
            return self.tokenizer_path.read_bytes()
        except OSError as error:
            raise BundleError(f"{self.tokenizer_path} cannot be read: {error}") from error

    def precisions(self, tower: Tower | str) -> tuple[Precision, ...]:
        """Return the precisions of a tower's engines, in the order of `Precision`.

        Raises InputError for an unknown tower, BundleError for one that the model does not have.
        """
        tower = as_member(tower, Tower, "tower")
        self.manifest.tower(tower)
        engines = self.manifest.engines[tower]
        return tuple(precision for precision in Precision if precision in engines)

    def engine(self, tower: Tower | str, precision: Precision | str) -> Path:
        """Return the path of a tower's ONNX file at a precision.

        Raises BundleError with the precisions that exist and for a tower that the model does not have, InputError for
        an unknown tower or precision.
        """
        tower, precision = as_member(tower, Tower, "tower"), as_member(precision, Precision, "precision")
        self.manifest.tower(tower)
        record = self.manifest.engines[tower].get(precision)
        if record is None:
            existing = ", ".join(self.precisions(tower))
            raise BundleError(
                f"{self.path} has no {precision} engine for the {tower} tower, only {existing}. "
                f"Make one with: {_HOW_TO_MAKE[precision]}"
            )
        return self.path / record.file

    def probes(self) -> Probes:
        """Read the probes. Raises BundleError where they do not match the manifest."""
        probes = Probes.load(self.path / PROBES_NAME)
        check_probes(probes, self.manifest, self.path / PROBES_NAME)
        return probes


def read_manifest(file: Path, expected: str) -> str:
    """Return the text of a manifest. Raises BundleError that names its folder, which should be `expected`."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        problem = f"has no {file.name}" if file.parent.is_dir() else "is not a folder"
        raise BundleError(f"{file.parent} {problem}: expected {expected}") from None
    except (OSError, ValueError) as error:  # invalid UTF-8, or a NUL or lone surrogates in the name
        raise BundleError(f"{file} cannot be read: {error}") from error


def check_probes(probes: Probes, manifest: ManifestDraft, path: Path) -> None:
    """Raise BundleError unless the probes match the manifest's towers, image size, dimension and context length."""
    present = tuple(tower for tower in Tower if tower in probes.towers)
    if present != manifest.towers.present:
        raise BundleError(
            f"{path} has probes of {', '.join(present) or 'no tower'}: expected those of {MANIFEST_NAME}'s towers, "
            f"{', '.join(manifest.towers.present)}"
        )
    for tower, (inputs, embedding) in probes.towers.items():
        output = manifest.tower(tower).output.shape
        if embedding.shape[1:] != output:
            raise BundleError(f"{path} has {tower} embeddings of {embedding.shape[1:]}: expected {output}")
        if tower is Tower.TEXT:
            longest = max(map(len, inputs), default=0)
            if longest > manifest.text.context_length:
                message = f"{path} has a text of {longest} tokens: the context is {manifest.text.context_length}"
                raise BundleError(message)
        elif inputs[0].shape != manifest.tower(tower).input.shape:
            raise BundleError(
                f"{path} has {tower} inputs {inputs[0].shape}: expected {manifest.tower(tower).input.shape}"
            )


def check_file(
    path: Path, record: FileRecord, *, listed_in: str = MANIFEST_NAME, remedy: str = "Copy or export the bundle again"
) -> None:
    """Raise BundleError that names the file unless its size and sha256 are as recorded."""
    if not path.is_file():
        raise BundleError(f"{path} is missing: {listed_in} lists it. {remedy}")
    found = file_record(path)
    if found != record:
        raise BundleError(
            f"{path} is damaged: {found.size_bytes} bytes with sha256 {found.sha256}, expected "
            f"{record.size_bytes} bytes with {record.sha256}. {remedy}"
        )


def file_record(path: Path) -> FileRecord:
    """Return the size and sha256 of a file. Raises BundleError where it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(sha256=digest, size_bytes=os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
