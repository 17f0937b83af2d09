"""`twinspire index migrate` with two small bundles of different spaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Ran, run_twinspire
from twinspire import Bundle
from twinspire.index import BundleReference, Index

Run = Callable[..., Ran]


@pytest.fixture
def run(
    tmp_path: Path, make_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run `twinspire` in a folder with bundles `old` and `new` and an index of images and texts made with `old`."""
    make_tiny("old")
    make_tiny("new", seed=1)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "lines.txt").write_text("red cat\nblue dog\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, *arguments)

    assert run_main("index", "add", "idx", "photos", "--texts", "lines.txt", "-b", "old").status == 0
    return run_main


def test_searches_use_the_new_bundle_by_themselves(run: Run, tmp_path: Path) -> None:
    """After `index migrate` the index names the new bundle, and its answers are those of a fresh index."""
    ran = run("index", "migrate", "idx", "-b", "new", "--json")
    assert (ran.status, ran.document["switched"], ran.document["encoded"]) == (0, True, 7)
    assert ran.document["bundle"] == {"name": "tiny", "path": str(tmp_path / "new")}
    with Index.open("idx") as index:
        assert index.bundle == BundleReference("tiny", str(tmp_path / "new"))
        assert index.space == Bundle.open("new").space
    assert run("index", "add", "fresh", "photos", "--texts", "lines.txt", "-b", "new").status == 0
    assert run("search", "idx", "red cat").out == run("search", "fresh", "red cat").out
    assert run("index", "verify", "idx").status == 0
    again = run("index", "migrate", "idx", "-b", "new")
    assert (again.status, again.out.split()[0]) == (0, "0")


def test_lost_items_are_printed_and_end_with_status_3(run: Run, tmp_path: Path) -> None:
    """The items without a file are on standard error and in --json; the index still answers with the old bundle."""
    (tmp_path / "photos" / "3.png").unlink()
    dry = run("index", "migrate", "idx", "-b", "new", "--dry-run")
    assert dry.status == 0
    ran = run("index", "migrate", "idx", "-b", "new")
    assert ran.status == 3
    assert "photos/3.png" in dry.err
    assert "photos/3.png" in ran.err
    assert run("search", "idx", "red cat").status == 0
    ran = run("index", "migrate", "idx", "-b", "new", "--drop-missing", "--json", "--keep-old", "before")
    assert (ran.status, ran.document["dropped"], ran.document["items"]) == (0, 1, 6)
    assert ran.document["lost"][0]["uri"] == str(tmp_path / "photos" / "3.png")
    assert len(run("search", "before", "red cat").out.splitlines()) == 7


def test_the_new_bundle_must_be_given(run: Run) -> None:
    """Without --bundle it is an error: the index's own bundle is no migration."""
    ran = run("index", "migrate", "idx")
    assert ran.status == 2
    assert "--bundle" in ran.err
