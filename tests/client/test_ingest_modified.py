"""When a file was last written to: ISO 8601 in metadata and in filters, and how a run tells that nothing changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twinspire import Client, Index
from twinspire.ingest import add_images
from twinspire.ingest.files import looks_the_same


def test_modified_is_iso_8601(tmp_path: Path, tiny: Any) -> None:
    """It is stored and shown in UTC, filters take any offset, and a file that is as it was is known as such."""
    times = {"old.png": 1514764800, "new.png": 1714550400.123456, "future.png": 4102444800}
    for number, (name, seconds) in enumerate(times.items()):
        Image.new("RGB", (8, 8), (number * 100, 9, 9)).save(tmp_path / name)
        os.utime(tmp_path / name, (seconds, seconds))
    paths = [tmp_path / name for name in times]
    with (
        Client.local(tiny.bundle, precision="fp32", provider="cpu") as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        assert add_images(index, client, paths).added == 3
        found = {Path(item.uri).name: item.metadata["modified"] for item in index}
        assert found == {
            "old.png": "2018-01-01T00:00:00.000000Z",
            "new.png": "2024-05-01T08:00:00.123456Z",
            "future.png": "2100-01-01T00:00:00.000000Z",
        }
        for where in (
            "modified >= 2024-05-01",
            "modified >= '2024-05-01T10:00:00+02:00'",
            "modified > 2024-05-01T08:00Z",
            "modified >= 1714550400",
        ):
            kept = {Path(item.uri).name for item in index.items(where=where)}
            assert kept == {"new.png", "future.png"}, where
        assert all(looks_the_same(item) for item in index)
        assert add_images(index, client, paths).changed == 0
        os.utime(tmp_path / "old.png", (1, 1))
        assert [Path(item.uri).name for item in index if not looks_the_same(item)] == ["old.png"]


def test_a_time_that_no_calendar_has_stops_nothing(tmp_path: Path, tiny: Any) -> None:
    """File systems store times beyond the year 9999."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    try:
        os.utime(path, (300_000_000_000, 300_000_000_000))
    except (OSError, OverflowError):
        pytest.skip("this file system cannot store such a time")
    with (
        Client.local(tiny.bundle, precision="fp32", provider="cpu") as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        assert add_images(index, client, [path]).added == 1
        assert looks_the_same(next(index.items()))
