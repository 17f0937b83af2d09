"""Choice of the bundle that encodes for an index: the bundle that made it, unless another of its space is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire._dims import split_space
from twinspire.cli.shared import printable
from twinspire.errors import BundleError, InputError, SpaceMismatchError

if TYPE_CHECKING:
    from twinspire.bundle import Bundle, BundleDescription
    from twinspire.stores import BundleReference, VectorStore


def open_bundle(given: Path | None, store: VectorStore | None = None) -> Bundle:
    """Open the bundle that was given, else the bundle that made the index, else the sample.

    Raises `BundleError` where the index's own does not exist any more, `SpaceMismatchError` where the bundle is of
    another space than the index.
    """
    from twinspire.bundle import Bundle
    from twinspire.sample import sample_bundle

    remembered = store.bundle if store is not None else None
    if given is not None:
        bundle = Bundle.open(given)
    elif store is None or remembered is None:
        bundle = Bundle.open(sample_bundle())
    elif _is_there(remembered):
        bundle = Bundle.open(_folder(remembered))
    else:
        raise BundleError(
            f"the index {printable(store.uri)} was made with {printable(str(remembered))}, which does not exist: pass "
            "the bundle's folder with --bundle"
        )
    if store is not None and bundle.space != split_space(store.space)[0]:
        raise SpaceMismatchError(_mismatch(store, remembered, bundle, was_given=given is not None))
    return bundle


def has_bundle(store: VectorStore | None) -> bool:
    """Whether an index remembers a bundle that still exists."""
    return store is not None and store.bundle is not None and _is_there(store.bundle)


def reference_to(bundle: BundleDescription) -> BundleReference | None:
    """Return the reference to a bundle that an index stores, None for a server's and where its path is not UTF-8."""
    from twinspire.bundle import Bundle
    from twinspire.sample import sample_bundle
    from twinspire.stores import BundleReference

    if not isinstance(bundle, Bundle):
        return None
    is_sample = bundle.path.resolve() == sample_bundle().resolve()
    try:
        # A link is not resolved: when it is changed to a newer bundle, that one is used.
        return BundleReference(bundle.name, None if is_sample else os.path.abspath(bundle.path))  # noqa: PTH100
    except InputError:
        return None


def remember_bundle(store: VectorStore, bundle: BundleDescription) -> None:
    """Store a reference to a bundle in an index of its space, unless the index has one that still exists."""
    known, reference = store.bundle, reference_to(bundle)
    if reference is None or (known is not None and _space_at(known) == split_space(store.space)[0]):
        return
    store.set_bundle(reference)


def _mismatch(store: VectorStore, remembered: BundleReference | None, bundle: Bundle, *, was_given: bool) -> str:
    own = printable(str(remembered or "an unknown bundle"))
    found = f"{bundle.name} at {printable(bundle.path)}"
    if was_given:
        advice = (
            "Leave --bundle out, or create another index" if remembered is not None else "Pass the bundle that made it"
        )
    elif remembered is not None:
        advice = "Pass --bundle with the bundle that made it"
        found = f"the bundle that is there now, {bundle.name},"
    else:
        advice, found = "Pass --bundle with the bundle that made it", f"the sample {bundle.name}"
    return (
        f"the index {printable(store.uri)} was made with {own}; {found} is of another space: their embeddings cannot "
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
