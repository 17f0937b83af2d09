"""Which bundle encodes for an index: the one that made it, unless another of its space is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.cli.shared import printable
from twinspire.errors import BundleError, InputError, SpaceMismatchError

if TYPE_CHECKING:
    from twinspire.bundle import Bundle
    from twinspire.index import BundleReference, Index
    from twinspire.stores import VectorStore


def open_bundle(given: Path | None, index: VectorStore | None = None) -> Bundle:
    """Open the bundle that was given, else the one that made the index, else the sample.

    Raises `BundleError` where the index's own is not there any more, `SpaceMismatchError` where the bundle is not of
    the index's space.
    """
    from twinspire.bundle import Bundle
    from twinspire.sample import sample_bundle

    remembered = index.bundle if index is not None else None
    if given is not None:
        bundle = Bundle.open(given)
    elif index is None or remembered is None:
        bundle = Bundle.open(sample_bundle())
    elif _is_there(remembered):
        bundle = Bundle.open(_folder(remembered))
    else:
        raise BundleError(
            f"the index {printable(index.uri)} was made with {printable(str(remembered))}, which is not there: "
            "pass --bundle with the folder it is in now"
        )
    if index is not None and bundle.space != index.space:
        raise SpaceMismatchError(_mismatch(index, remembered, bundle, was_given=given is not None))
    return bundle


def reference_to(bundle: Bundle) -> BundleReference | None:
    """Return what an index remembers of a bundle, None where its path is no text that an index can hold."""
    from twinspire.index import BundleReference
    from twinspire.sample import sample_bundle

    is_sample = bundle.path.resolve() == sample_bundle().resolve()
    try:
        # A link keeps its name: where it is set to a newer bundle, that one is taken.
        return BundleReference(bundle.name, None if is_sample else os.path.abspath(bundle.path))  # noqa: PTH100
    except InputError:
        return None


def remember_bundle(index: Index, bundle: Bundle) -> None:
    """Let an index that is open for writing remember a bundle of its space, unless the one that it knows is there."""
    known, reference = index.bundle, reference_to(bundle)
    if reference is None or (known is not None and _space_at(known) == index.space):
        return
    index.set_bundle(reference)


def _mismatch(index: VectorStore, remembered: BundleReference | None, bundle: Bundle, *, was_given: bool) -> str:
    own = printable(str(remembered or "a bundle that it does not remember"))
    found = f"{bundle.name} at {printable(bundle.path)}"
    if was_given:
        advice = "Leave --bundle out, or make another index" if remembered is not None else "Pass the one that made it"
    elif remembered is not None:
        advice = "Pass --bundle with the one that made it"
        found = f"what is there now, {bundle.name},"
    else:
        advice, found = "Pass --bundle with the one that made it", f"the sample {bundle.name}"
    return (
        f"the index {printable(index.uri)} was made with {own}; {found} is of another space, their embeddings cannot "
        f"be compared. {advice}"
    )


def _folder(reference: BundleReference) -> Path:
    from twinspire.sample import sample_bundle

    return sample_bundle() if reference.path is None else Path(reference.path)


def _is_there(reference: BundleReference) -> bool:
    from twinspire.bundle import MANIFEST_NAME

    return os.path.lexists(_folder(reference) / MANIFEST_NAME)


def _space_at(reference: BundleReference) -> str | None:
    """Return the space of a remembered bundle by its manifest alone, None where it has none."""
    from twinspire.bundle import MANIFEST_NAME, Manifest

    try:
        return Manifest.from_json((_folder(reference) / MANIFEST_NAME).read_text(encoding="utf-8")).space
    except (BundleError, OSError, UnicodeDecodeError):
        return None
