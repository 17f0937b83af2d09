"""Which store `open_index` opens for a path and for a scheme."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from stores.numpy_store import NumpyStore, create_store, open_store
from twinspire import open_index
from twinspire.errors import IndexStoreError, InputError
from twinspire.index import Index
from twinspire.stores import register_store, registry


@pytest.fixture(autouse=True)
def openers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after the test what it registers."""
    monkeypatch.setattr(registry, "_openers", {})


@pytest.mark.parametrize("as_given", [str, Path])
def test_a_path_opens_the_embedded_index(tmp_path: Path, as_given: Callable[[Path], Any]) -> None:
    """As a str or a Path, in either mode."""
    Index.create(tmp_path / "index", space="s", dim=4).close()
    with open_index(as_given(tmp_path / "index")) as store:
        assert isinstance(store, Index)
        assert store.uri == str(tmp_path / "index")
    with open_index(as_given(tmp_path / "index"), mode="write") as store:
        store.remove([0])
    with pytest.raises(IndexStoreError):
        open_index(as_given(tmp_path / "nothing"))


def test_a_registered_scheme_opens_its_store() -> None:
    """The opener gets the whole URI and the mode."""
    register_store("memory", open_store)
    create_store("registered", space="s", dim=4)
    store = open_index("memory://registered", mode="write")
    assert isinstance(store, NumpyStore)
    assert store.remove([0]) == 0
    with pytest.raises(IndexStoreError):
        open_index("memory://registered").remove([0])
    with pytest.raises(InputError, match="mode"):
        open_index("memory://registered", mode="append")  # type: ignore[arg-type]


def test_an_installed_package_registers_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point of the group `twinspire.stores`, which is loaded when the scheme is first opened."""
    entry = EntryPoint("installed", "stores.numpy_store:open_store", "twinspire.stores")
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    create_store("installed", space="s", dim=4)
    assert registry._openers == {}
    with pytest.raises(IndexStoreError):  # the opener of `memory://` knows no such name
        open_index("installed://other")
    assert list(registry._openers) == ["installed"]


def test_an_unknown_scheme_is_refused() -> None:
    """The error names the known ones."""
    register_store("memory", open_store)
    with pytest.raises(InputError, match="memory://"):
        open_index("qdrant://host/collection")


@pytest.mark.parametrize("scheme", ["", "A", "a b", "1a", "a/b", 3])
def test_what_is_no_scheme_is_refused(scheme: Any) -> None:
    """A scheme is a word of lower-case letters."""
    with pytest.raises(InputError):
        register_store(scheme, open_store)
