"""`twinspire.metrics`: what is observed of clients, searchers and indexes in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from support.arrays import noise_images
from twinspire import AsyncClient, Client, Index, Searcher, _telemetry
from twinspire.errors import ImageError, InputError
from twinspire.metrics import Metrics, enable_metrics
from twinspire.stores import Item, ItemKind


@pytest.fixture
def registry() -> CollectorRegistry:
    """Make an empty registry."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Iterator[Metrics]:
    """Observe this process."""
    enabled = enable_metrics(registry)
    yield enabled
    enabled.disable()


@pytest.fixture
def client(tiny: Any) -> Iterator[Client]:
    """Open the tiny bundle in this process."""
    with Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=1) as opened:
        yield opened


def test_the_phases_of_encoding(client: Client, metrics: Metrics, registry: CollectorRegistry) -> None:
    """Each call is one `encode`, with a `tokenize` or `preprocess` and a `tower` for each batch, by tower."""
    client.encode_texts(["a red cat", "a dog"])
    client.encode_images(list(noise_images(40)))

    def count(phase: str, tower: str) -> float | None:
        labels = {"phase": phase, "tower": tower}
        return registry.get_sample_value("twinspire_client_phase_seconds_count", labels)

    assert (count("encode", "text"), count("tokenize", "text"), count("tower", "text")) == (1, 1, 1)
    assert (count("encode", "image"), count("preprocess", "image"), count("tower", "image")) == (1, 2, 2)


def test_calls_that_raise_are_counted_by_their_error(
    client: Client, metrics: Metrics, registry: CollectorRegistry
) -> None:
    """An image that cannot be decoded counts as one ImageError and observes no time of a call."""
    with pytest.raises(ImageError):
        client.encode_images([b"no image"])
    assert registry.get_sample_value("twinspire_client_errors_total", {"error": "ImageError"}) == 1
    labels = {"phase": "encode", "tower": "image"}
    assert registry.get_sample_value("twinspire_client_phase_seconds_count", labels) is None


def test_searches_by_mode_and_phase(
    client: Client, metrics: Metrics, registry: CollectorRegistry, tmp_path: Path
) -> None:
    """A search is observed with the mode that was used and whether it was cached, and its phases once each."""
    vectors = client.encode_texts(["a red cat", "a dog"])
    with Index.create(tmp_path / "an.index", space=client.space, dim=client.dim) as index:
        items = [Item(uri=f"{name}.txt", kind=ItemKind.TEXT, caption=name) for name in ("a red cat", "a dog")]
        index.add(vectors, items, space=client.space)
        metrics.watch_index(index, "pets")
        searcher = Searcher(client, index)
        for _ in range(2):
            searcher.search("cat", mode="vector")
        for cached, expected in (("false", 1), ("true", 1)):
            labels = {"mode": "vector", "cached": cached}
            assert registry.get_sample_value("twinspire_search_seconds_count", labels) == expected
        for phase in ("encode", "retrieve", "fetch"):
            assert registry.get_sample_value("twinspire_search_phase_seconds_count", {"phase": phase}) == 1
        assert registry.get_sample_value("twinspire_index_items", {"index": "pets"}) == 2
        stats = index.stats()
        for part, size in (("vectors", stats.vectors_bytes), ("catalogue", stats.catalogue_bytes), ("snapshot", 0)):
            assert registry.get_sample_value("twinspire_index_bytes", {"index": "pets", "part": part}) == size


def test_a_closed_index_does_not_break_the_page(
    metrics: Metrics, registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sizes of a closed index are left out, with a warning; the rest of the page is there."""
    index = Index.create(tmp_path / "an.index", space="0" * 64, dim=4)
    metrics.watch_index(index, "closed")
    index.close()
    names = {family.name for family in registry.collect()}
    assert "twinspire_client_phase_seconds" in names
    assert registry.get_sample_value("twinspire_index_items", {"index": "closed"}) is None
    assert "closed" in caplog.text


def test_two_indexes_do_not_share_a_name(metrics: Metrics, tmp_path: Path) -> None:
    """Watching a second index under a name is an InputError."""
    with (
        Index.create(tmp_path / "a.index", space="0" * 64, dim=4) as one,
        Index.create(tmp_path / "b.index", space="0" * 64, dim=4) as other,
    ):
        metrics.watch_index(one, "photos")
        with pytest.raises(InputError, match="photos"):
            metrics.watch_index(other, "photos")


def test_enabling_twice_in_a_registry_is_refused(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A second set of the same metrics is an InputError, and observes nothing."""
    with pytest.raises(InputError, match="registry"):
        enable_metrics(registry)


def test_nothing_is_observed_when_off(
    client: Client, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `disable` the registry is empty, and a span is the shared one that does nothing."""
    monkeypatch.setattr(_telemetry, "_observers", ())  # without those of tests before it
    enable_metrics(registry).disable()
    client.encode_texts(["a cat"])
    assert list(registry.collect()) == []
    assert _telemetry.span("encode") is _telemetry._NO_SPAN


def test_a_failing_observer_breaks_no_call(
    client: Client, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What an observer raises is logged; the vectors are returned."""
    monkeypatch.setattr(metrics, "end", lambda *_: 1 / 0)
    assert np.isfinite(client.encode_texts(["a cat"])).all()
    assert "observer" in caplog.text


def test_importing_loads_no_library() -> None:
    """The module itself needs neither prometheus_client nor opentelemetry."""
    code = "import twinspire.metrics, twinspire.tracing, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"prometheus_client", "opentelemetry"} & set(done.stdout.split())


def test_the_asynchronous_client_is_observed_too(tiny: Any, metrics: Metrics, registry: CollectorRegistry) -> None:
    """Its calls have the same phases."""

    async def encode() -> None:
        async with await AsyncClient.local(tiny.bundle, precision="fp32", provider="cpu", threads=1) as opened:
            await opened.encode_texts(["a red cat"])
            await opened.encode_images(list(noise_images(40)))

    asyncio.run(encode())
    for phase, tower, expected in (
        *(("encode", "text", 1), ("tokenize", "text", 1), ("tower", "text", 1)),
        *(("encode", "image", 1), ("preprocess", "image", 2), ("tower", "image", 2)),
    ):
        labels = {"phase": phase, "tower": tower}
        assert registry.get_sample_value("twinspire_client_phase_seconds_count", labels) == expected
