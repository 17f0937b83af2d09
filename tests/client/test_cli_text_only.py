"""`twinspire index`, `search` and `classify` with a model that has a text tower alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.data import PHOTOS
from twinspire.bundle import Tower
from twinspire.cli.app import application
from twinspire.errors import BundleError


@pytest.fixture
def bundle(make_tiny: Callable[..., Any]) -> Path:
    """Make a tiny bundle with a text tower alone."""
    path: Path = make_tiny("text", towers=(Tower.TEXT,)).bundle.path
    return path


def run(*arguments: object) -> None:
    """Run a command; its error is raised."""
    application()(list(map(str, arguments)), standalone_mode=False)


@pytest.fixture
def index(bundle: Path, tmp_path: Path) -> Path:
    """Make an index of four lines of text."""
    lines = tmp_path / "lines.txt"
    lines.write_text("a red cat\nthe blue boat\na large house\nsnow on the house\n", encoding="utf-8")
    run("index", "add", tmp_path / "index", "--texts", lines, "-b", bundle)
    return tmp_path / "index"


def test_texts_are_found_by_texts(index: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is the first hit for itself."""
    capsys.readouterr()
    run("search", index, "the blue boat", "-b", bundle, "--json")
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert hits[0]["uri"].endswith("#2")


def test_images_are_refused_before_any_work(index: Path, bundle: Path, tmp_path: Path) -> None:
    """Images to add, to search by and to classify are an error that names the tower; no index is made."""
    photo = next(iter(sorted(PHOTOS.glob("*.jpg"))))
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n", encoding="utf-8")
    for arguments in (
        ("index", "add", tmp_path / "other", PHOTOS),
        ("index", "add", index, PHOTOS),
        ("search", index, "--image", photo),
        ("classify", photo, "--labels", labels),
    ):
        with pytest.raises(BundleError, match=r"image tower|towers text"):
            run(*arguments, "-b", bundle)
    assert not (tmp_path / "other").exists()
