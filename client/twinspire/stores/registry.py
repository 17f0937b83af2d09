"""Opening a store by its URI: a path opens the embedded index, `scheme://...` what is registered for the scheme."""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal, Protocol, TypeAlias

from twinspire._arguments import require_text, shown
from twinspire.errors import InputError
from twinspire.stores.protocol import VectorStore
from twinspire.stores.validation import check_mode

ENTRY_POINTS = "twinspire.stores"
"""Entry-point group in which an installed package names its openers: the scheme, and a `StoreOpener`."""
OpenMode: TypeAlias = Literal["read", "write"]
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")


class StoreOpener(Protocol):
    """Opens the store at a URI, scheme included; `mode` says whether it will be changed."""

    def __call__(self, uri: str, *, mode: OpenMode) -> VectorStore:
        """Return the open store. Raises `InputError` for a URI that it does not support, else `IndexStoreError`."""


_openers: dict[str, StoreOpener] = {}


def register_store(scheme: str, opener: StoreOpener) -> None:
    """Let `open_index` open `scheme://...` with `opener`, instead of any opener that the scheme had.

    Raises `InputError` for an invalid scheme: expected a lower-case letter, then letters, digits and `+.-`.
    """
    if _SCHEME.fullmatch(f"{require_text(scheme, 'the scheme of a store')}://") is None:
        raise InputError(f"the scheme of a store must be a word such as qdrant, got {shown(scheme)}")
    _openers[scheme] = opener


def open_index(uri: str | os.PathLike[str], *, mode: OpenMode = "read") -> VectorStore:
    """Open a store: the embedded index at a path, or what is registered for the scheme of `scheme://...`.

    Openers are registered by `register_store`, and by installed packages in the entry-point group `twinspire.stores`.
    Raises `InputError` for an unknown scheme and mode, and what the opener raises.
    """
    scheme = _SCHEME.match(uri) if isinstance(uri, str) else None
    if scheme is None:
        # Imported by name, so that whoever opens stores imports no particular one.
        store: VectorStore = import_module("twinspire.index").Index.open(uri, mode=mode)
        return store
    check_mode(mode)
    return _opener(scheme[1], scheme.string)(scheme.string, mode=mode)


def _opener(scheme: str, uri: str) -> StoreOpener:
    if scheme not in _openers:
        installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
        if scheme not in installed:
            known = ", ".join(f"{name}://" for name in sorted({*_openers, *installed}))
            raise InputError(
                f"cannot open {shown(uri)}: no store is registered for {scheme}://. Pass the path of an index"
                f"{f', or a registered scheme ({known})' if known else ''}, or install the package that adds {scheme}://"
            )
        _openers[scheme] = installed[scheme].load()
    return _openers[scheme]
