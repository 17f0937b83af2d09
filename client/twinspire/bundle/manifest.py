"""bundle.json: the model, its towers, engines and files.

Schema 2. Schema 1 is read into the same classes. Keys that this version does not know are ignored, as are towers and
precisions: what a reader must not ignore gets a new `schema_version`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeAlias, cast

from twinspire._arguments import as_finite, as_whole
from twinspire._codec import OPTIONAL, decode, encode, parse_document, write_document
from twinspire.bundle.records import (
    EngineRecord,
    FileRecord,
    RecommendedRuntime,
    Source,
    check_plain_name,
    check_sha256,
)
from twinspire.bundle.settings import (
    AudioSettings,
    ImageSettings,
    Interpolation,
    Padding,
    Precision,
    Resize,
    TextSettings,
    Tower,
)
from twinspire.contract import (
    FREE,
    TensorSpec,
    audio_input,
    embedding_output,
    image_input,
    probability_output,
    text_input,
)
from twinspire.errors import BundleError, InputError

SCHEMA_VERSION = 2
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
PROBES_NAME = "probes.npz"


class OutputForm(StrEnum):
    """What a tower gives for one item: one vector, or several of which the best scores (maximum of the cosines).

    Only images may have several: the output is then (Q, D).
    """

    VECTOR = "vector"
    MAX_OF_VECTORS = "max_of_vectors"


@dataclass(frozen=True, kw_only=True)
class ImageTowerSpec:
    """The image tower: how images are prepared, and the tensors of its engines.

    `patches` is the number of patches that it cuts an image into, None where it has none or a bundle does not say.
    """

    settings: ImageSettings
    input: TensorSpec
    output: TensorSpec
    output_form: OutputForm = field(default=OutputForm.VECTOR, metadata=OPTIONAL)
    patches: int | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.patches is not None:
            as_whole(self.patches, "patches", minimum=1)


@dataclass(frozen=True, kw_only=True)
class TextTowerSpec:
    """The text tower: how texts are prepared, and the tensors of its engines."""

    settings: TextSettings
    input: TensorSpec
    output: TensorSpec
    output_form: OutputForm = field(default=OutputForm.VECTOR, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class AudioTowerSpec:
    """The audio tower: how sounds are prepared, and the tensors of its engines."""

    settings: AudioSettings
    input: TensorSpec
    output: TensorSpec
    output_form: OutputForm = field(default=OutputForm.VECTOR, metadata=OPTIONAL)


TowerSpec: TypeAlias = ImageTowerSpec | TextTowerSpec | AudioTowerSpec


@dataclass(frozen=True, kw_only=True)
class TowerSpecs:
    """The towers by modality, one or more; None where the model has none of it. Raises InputError where it has none."""

    image: ImageTowerSpec | None = field(default=None, metadata=OPTIONAL)
    text: TextTowerSpec | None = field(default=None, metadata=OPTIONAL)
    audio: AudioTowerSpec | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not self.present:
            raise InputError(f"no towers: expected one or more of {', '.join(Tower)}")

    @property
    def present(self) -> tuple[Tower, ...]:
        """The towers that the model has, in the order of `Tower`."""
        return tuple(tower for tower in Tower if self.get(tower) is not None)

    def get(self, tower: Tower) -> TowerSpec | None:
        """Return one tower's tensors and settings, None where the model does not have it."""
        spec: TowerSpec | None = getattr(self, tower.value)
        return spec

    @classmethod
    def of_contract(
        cls,
        image: ImageSettings | None,
        text: TextSettings | None,
        *,
        audio: AudioSettings | None = None,
        dim: int,
        vectors_per_item: int = 1,
        patches: int | None = None,
    ) -> TowerSpecs:
        """Return towers with the tensors that every runtime of this version takes, of the modalities with settings.

        An image has `vectors_per_item` vectors, a text or a sound one. `patches` is of an image.
        """
        form = OutputForm.VECTOR if vectors_per_item == 1 else OutputForm.MAX_OF_VECTORS
        return cls(
            image=None
            if image is None
            else ImageTowerSpec(
                settings=image,
                input=image_input(image.height, image.width),
                output=embedding_output(dim, vectors_per_item),
                output_form=form,
                patches=patches,
            ),
            text=None
            if text is None
            else TextTowerSpec(
                settings=text,
                input=text_input(FREE if text.padding is Padding.TRIM else text.context_length),
                output=embedding_output(dim),
            ),
            audio=None
            if audio is None
            else AudioTowerSpec(
                settings=audio, input=audio_input(audio.frames, audio.mels), output=embedding_output(dim)
            ),
        )


def required_files(towers: TowerSpecs) -> tuple[str, ...]:
    """Return the names of the files that a bundle with these towers has beside its engines."""
    return (PROBES_NAME,) if towers.text is None else (TOKENIZER_NAME, PROBES_NAME)


@dataclass(frozen=True, kw_only=True)
class Reranker:
    """A model that scores pairs of an image and a text: its tensors, and its engine file at each precision.

    Images and texts are prepared as for the towers of its bundle.
    """

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    engines: Mapping[Precision, str]

    @classmethod
    def of_contract(
        cls, image: ImageSettings, text: TextSettings, engines: Mapping[Precision, str] | None = None
    ) -> Reranker:
        """Return a reranker with the tensors that every runtime of this version takes."""
        inputs = image_input(image.height, image.width), text_input(text.context_length)
        return cls(inputs=inputs, output=probability_output(), engines=engines or {})

    def precision_for(self, precision: Precision) -> Precision:
        """Return a precision if there is an engine of it, else the first that there is, in the order of `Precision`."""
        preferred: list[Precision] = [precision, *Precision]
        return next(known for known in preferred if known in self.engines)

    def engine_file(self, precision: Precision) -> str:
        """Return the file of the engine that is used for a precision: see `precision_for`."""
        return self.engines[self.precision_for(precision)]


@dataclass(frozen=True, kw_only=True)
class ManifestDraft:
    """What the maker of a bundle knows of the model; `BundleWriter.commit` adds the files.

    `space` is what `space_id` gave. `logit_scale` is the factor that the cosine is multiplied with (for a
    Hugging Face checkpoint the exponential of its parameter), `logit_bias` what is added after it (SigLIP),
    else None. `dims` are the lengths that embeddings may be cut to and normalised again (Matryoshka), ascending, `dim`
    the last; None where they may not. `rerankers` are by name.

    Raises InputError where a value is out of range.
    """

    name: str
    family: str
    space: str
    dim: int
    towers: TowerSpecs
    logit_scale: float
    logit_bias: float | None
    source: Source
    dims: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)
    rerankers: Mapping[str, Reranker] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        check_plain_name(self.name, "bundle name")
        check_sha256(self.space, "space")
        if not self.family:
            raise InputError("family is empty: expected a word such as 'clip'")
        as_whole(self.dim, "dim", minimum=1)
        if self.dims is not None and (self.dims != tuple(sorted({*self.dims, self.dim})) or self.dims[0] < 1):
            raise InputError(f"dims {list(self.dims)}: expected ascending lengths that end with dim, {self.dim}")
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise InputError(f"logit_scale {self.logit_scale}: expected a positive number")
        if self.logit_bias is not None:
            as_finite(self.logit_bias, "logit_bias")

    @property
    def image(self) -> ImageSettings:
        """How images are prepared. Raises BundleError as `tower` does."""
        return cast(ImageTowerSpec, self.tower(Tower.IMAGE)).settings

    @property
    def text(self) -> TextSettings:
        """How texts are prepared. Raises BundleError as `tower` does."""
        return cast(TextTowerSpec, self.tower(Tower.TEXT)).settings

    @property
    def audio(self) -> AudioSettings:
        """How sounds are prepared. Raises BundleError as `tower` does."""
        return cast(AudioTowerSpec, self.tower(Tower.AUDIO)).settings

    def tower(self, tower: Tower) -> TowerSpec:
        """Return one tower's tensors and settings. Raises BundleError where the model does not have it."""
        spec = self.towers.get(tower)
        if spec is None:
            present = ", ".join(self.towers.present)
            raise BundleError(f"the bundle {self.name!r} has no {tower} tower, only {present}: use another model")
        return spec

    def reranker(self) -> tuple[str, Reranker]:
        """Return the name and the engines of the model that scores pairs, the first of several.

        Raises BundleError where the bundle has none, or one with other tensors than this version computes.
        """
        if not self.rerankers:
            raise BundleError(
                f"the bundle {self.name!r} has no reranker: search without rerank, or with a bundle that has one"
            )
        name, found = next(iter(self.rerankers.items()))
        expected = Reranker.of_contract(self.image, self.text)
        if (found.inputs, found.output) != (expected.inputs, expected.output) or not found.engines:
            raise BundleError(
                f"the reranker {name!r} of the bundle {self.name!r} takes {list(map(str, found.inputs))} and gives "
                f"{found.output}, with {len(found.engines)} engines: expected {list(map(str, expected.inputs))} and "
                f"{expected.output}, with one or more. Install a newer version of twinspire"
            )
        return name, found

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an image has; 1 but for towers whose output is the maximum of several."""
        image = self.towers.image
        is_single = image is None or image.output_form is OutputForm.VECTOR or len(image.output.shape) != 2
        return 1 if image is None or is_single else image.output.shape[0]

    def unsupported(self) -> str | None:
        """Return what of the towers no runtime of this version can compute or search, None where nothing is."""
        image, text, audio = self.towers.image, self.towers.text, self.towers.audio
        count = self.vectors_per_item
        if count == 1 and image is not None and image.output_form is not OutputForm.VECTOR:
            return f"the image tower gives {OutputForm.MAX_OF_VECTORS} of one vector: expected {OutputForm.VECTOR}"
        contract = TowerSpecs.of_contract(
            None if image is None else image.settings,
            None if text is None else text.settings,
            audio=None if audio is None else audio.settings,
            dim=self.dim,
            vectors_per_item=count,
        )
        for tower in self.towers.present:
            found, expected = self.tower(tower), contract.get(tower)
            assert expected is not None
            if found.output_form is not expected.output_form:
                return f"the {tower} tower gives several vectors for an item ({found.output_form}): expected one"
            if (found.input, found.output) != (expected.input, expected.output):
                return (
                    f"the {tower} tower takes {found.input} and gives {found.output}: expected {expected.input} "
                    f"and {expected.output}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class Manifest(ManifestDraft):
    """The whole of bundle.json. `files` holds every file that is not an engine, except the manifest itself.

    `auto` is the runtime that was measured to be best; None where nobody measured.
    """

    engines: Mapping[Tower, Mapping[Precision, EngineRecord]]
    files: Mapping[str, FileRecord]
    auto: RecommendedRuntime | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        for tower in self.engines:
            self.tower(tower)
        for tower in self.towers.present:
            if not self.engines.get(tower):
                raise InputError(f"no engine for the {tower} tower: expected at least one for each")
            if self.auto is not None and self.auto.precision not in self.engines[tower]:
                raise InputError(f"auto is {self.auto.precision}: the {tower} tower has no engine of that precision")
        rerankers = [file for reranker in (self.rerankers or {}).values() for file in reranker.engines.values()]
        for name in (*required_files(self.towers), *rerankers):
            if name not in self.files:
                raise InputError(f"files has no {name}")
        seen = {MANIFEST_NAME}
        for name in [*self.files, *(record.file for record in self._records())]:
            check_plain_name(name, "file")
            if name in seen:
                raise InputError(f"{name} is named twice")
            seen.add(name)

    def _records(self) -> list[EngineRecord]:
        return [record for precisions in self.engines.values() for record in precisions.values()]

    def draft(self) -> ManifestDraft:
        """Return what a further bundle of the same model keeps: everything but the files."""
        return ManifestDraft(**{known.name: getattr(self, known.name) for known in fields(ManifestDraft)})

    def all_files(self) -> dict[str, FileRecord]:
        """Return every file by name, engines included, except bundle.json."""
        engines = {r.file: FileRecord(sha256=r.sha256, size_bytes=r.size_bytes) for r in self._records()}
        return {**self.files, **engines}

    def to_json(self) -> str:
        """Return the text of bundle.json, with a final newline."""
        return write_document(self, SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a bundle.json. Raises BundleError for anything but a manifest of a known schema version."""
        try:
            remedy = "Install the version of twinspire that wrote it, or export the bundle again"
            version, document = parse_document(text, MANIFEST_NAME, (1, SCHEMA_VERSION), remedy)
            if version == 1:
                document.setdefault("towers", _towers_of_schema_1(document))
            return decode(cls, document, MANIFEST_NAME, ignore_unknown=version > 1)
        except InputError as error:
            raise BundleError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class _ImageSettings1:
    """Schema 1's image settings: `resize` is the length of the shorter side before the crop, else the size."""

    size: int
    resize: int
    interpolation: Interpolation
    crop: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def upgraded(self) -> ImageSettings:
        """Return the settings in today's form."""
        if not self.crop and self.resize != self.size:
            raise InputError(f"resize {self.resize} without crop: expected the size, {self.size}")
        crop = ImageSettings.centre_crop(
            self.size, shortest_side=self.resize, interpolation=self.interpolation, mean=self.mean, std=self.std
        )
        return crop if self.crop else replace(crop, resize=Resize.STRETCH, shortest_side=None, crop_rounding=None)


def _towers_of_schema_1(document: dict[str, Any]) -> Any:  # noqa: ANN401 - parsed JSON
    """Take schema 1's image and text settings out of a document; return its `towers` in today's form."""
    image = decode(_ImageSettings1, document.pop("image", None), f"{MANIFEST_NAME}.image")
    text = decode(TextSettings, document.pop("text", None), f"{MANIFEST_NAME}.text")
    dim = document.get("dim")  # checked with the rest
    return encode(TowerSpecs.of_contract(image.upgraded(), text, dim=dim if type(dim) is int else 0))
