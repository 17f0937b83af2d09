"""plans.json: the TensorRT plans of one bundle. `twinspire tensorrt` writes it, `twinspire build` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire._codec import decode, parse_document, write_document
from twinspire.bundle import Bundle, Certificate, EngineRecord, FileRecord, Precision, Tower
from twinspire.bundle.folder import check_file, read_manifest
from twinspire.errors import BundleError, InputError, SpaceMismatchError

SCHEMA_VERSION = 1
PLANS_NAME = "plans.json"

_BUILD_AGAIN = "Build the plans of this bundle with: twinspire tensorrt BUNDLE"


@dataclass(frozen=True)
class Profile:
    """The range of input shapes of one optimization profile of a plan, and the shape that it is tuned for.

    The first dimension is the batch. Raises InputError unless minimum, optimum and maximum ascend.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        ranks = {len(self.minimum), len(self.optimum), len(self.maximum)}
        bounds = zip(self.minimum, self.optimum, self.maximum, strict=False)
        if len(ranks) != 1 or not all(1 <= low <= best <= high for low, best, high in bounds):
            raise InputError(f"profile {self.minimum}, {self.optimum}, {self.maximum}: expected shapes that ascend")


@dataclass(frozen=True, kw_only=True)
class PlanRecord(EngineRecord):
    """One tower's plan: its file, the ONNX engine that it was built from, and its profiles."""

    engine_sha256: str
    profiles: tuple[Profile, ...]
    certificate: Certificate

    @property
    def max_batch(self) -> int:
        """The largest batch that every profile accepts."""
        return min(profile.maximum[0] for profile in self.profiles)

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """The lengths of the text tower's profiles, ascending; each profile accepts one."""
        return tuple(sorted(profile.maximum[1] for profile in self.profiles))


_RANKS = {Tower.IMAGE: 4, Tower.TEXT: 2, Tower.AUDIO: 3}


@dataclass(frozen=True, kw_only=True)
class PlanManifest:
    """The content of plans.json. Plans run only on GPUs of the kind `gpu` and with TensorRT's version `tensorrt`."""

    bundle: str
    space: str
    precision: Precision
    max_batch: int
    gpu: str
    tensorrt: str
    plans: Mapping[Tower, PlanRecord]

    def __post_init__(self) -> None:
        if not self.plans:
            raise InputError("plans of no tower: expected one for each tower")
        for tower, record in self.plans.items():
            rank = _RANKS[tower]
            if not record.profiles or any(len(profile.maximum) != rank for profile in record.profiles):
                raise InputError(f"the {tower} tower's profiles: expected one or more of {rank} dimensions")

    def to_json(self) -> str:
        """Return the text of plans.json, with a final newline."""
        return write_document(self, SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str, where: str) -> PlanManifest:
        """Read a plans.json. Raises BundleError for anything but one of this schema version."""
        try:
            _, document = parse_document(text, where, (SCHEMA_VERSION,), _BUILD_AGAIN)
            return decode(cls, document, where)
        except InputError as error:
            raise BundleError(str(error)) from error


@dataclass(frozen=True)
class PlanFolder:
    """A folder that `twinspire tensorrt` wrote. Get one with `PlanFolder.open`."""

    path: Path
    manifest: PlanManifest

    @classmethod
    def open(cls, path: Path) -> PlanFolder:
        """Read a folder's plans.json, but not the plans. Raises BundleError where it is missing or damaged."""
        file = path / PLANS_NAME
        text = read_manifest(file, f"a folder of plans. {_BUILD_AGAIN}")
        return cls(path, PlanManifest.from_json(text, str(file)))

    def check(self, bundle: Bundle) -> None:
        """Check that the plans were built from the engines of `bundle` and match plans.json.

        Reads every plan once. Raises SpaceMismatchError for plans of another space, BundleError for plans of another
        bundle or other engines, and for a file that is missing or damaged.
        """
        manifest = self.manifest
        if manifest.space != bundle.space:
            raise SpaceMismatchError(
                f"the plans in {self.path} are of another space than {bundle.path}. {_BUILD_AGAIN}",
                expected=bundle.space,
                found=manifest.space,
            )
        if manifest.bundle != bundle.name:
            raise BundleError(
                f"the plans in {self.path} are of the bundle {manifest.bundle!r}, not {bundle.name!r}. {_BUILD_AGAIN}"
            )
        if set(manifest.plans) != set(bundle.towers):
            raise BundleError(
                f"{self.path} has plans of {', '.join(manifest.plans)}, {bundle.path} the towers "
                f"{', '.join(bundle.towers)}. {_BUILD_AGAIN}"
            )
        for tower, record in manifest.plans.items():
            engine = bundle.manifest.engines[tower].get(manifest.precision)
            if engine is None or engine.sha256 != record.engine_sha256:
                raise BundleError(
                    f"the {tower} plan in {self.path} was built from another {manifest.precision} engine than that of "
                    f"{bundle.path}. {_BUILD_AGAIN}"
                )
            _check_shapes(tower, record, bundle, self.path)
            check_file(
                self.path / record.file,
                FileRecord(sha256=record.sha256, size_bytes=record.size_bytes),
                listed_in=PLANS_NAME,
                remedy=_BUILD_AGAIN,
            )


def _check_shapes(tower: Tower, record: PlanRecord, bundle: Bundle, folder: Path) -> None:
    """Raise BundleError unless the profiles accept the bundle's inputs."""
    expected = (bundle.text.context_length,) if tower is Tower.TEXT else bundle.input_spec(tower).shape
    longest = max(profile.maximum[1:] for profile in record.profiles)
    if longest != expected:
        raise BundleError(
            f"the {tower} plan in {folder} takes inputs of {longest}, the bundle {bundle.path} has {expected}. "
            f"{_BUILD_AGAIN}"
        )
