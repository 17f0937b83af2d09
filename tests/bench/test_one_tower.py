"""`twinspire bench` with models that have one tower: recall of captions among themselves, latency of that tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire.bundle import Tower
from twinspire.cli.app import application
from twinspire.errors import BundleError, InputError
from twinspire_eval.comparison import compare
from twinspire_eval.recall import Direction, rank_captions
from twinspire_eval.records import Record

WORDS = ("a", "the", "red", "blue", "green", "large", "cat", "dog", "house", "boat", "left", "of", "on", "snow")


@pytest.fixture
def text_only(make_tiny: Callable[..., Any]) -> Any:
    """Make a tiny bundle with a text tower alone."""
    return make_tiny("text", towers=(Tower.TEXT,))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Write captions of 30 images, two or three each, in the tiny model's words."""
    rng = np.random.default_rng(0)
    file = tmp_path / "captions.jsonl"
    rows = [
        {"image": f"{image}.jpg", "caption": " ".join(rng.choice(WORDS, rng.integers(3, 9)))}
        for image in range(30)
        for _ in range(2 + image % 2)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def run(*arguments: object) -> None:
    """Run a command of `twinspire bench`; its error is raised."""
    application()(["bench", *map(str, arguments)], standalone_mode=False)


def test_recall_of_captions(text_only: Any, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks are those of the towers in NumPy, for each engine; the record says which direction they are of."""
    run("recall", "-b", text_only.bundle.path, "-d", f"captions:{captions}", "--json", tmp_path / "record.json")
    record = Record.load(tmp_path / "record.json")
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    owners = np.array([int(row["image"].removesuffix(".jpg")) for row in rows])
    from twinspire.text import Tokenizer

    ids = Tokenizer(text_only.bundle.tokenizer_path, text_only.bundle.text).encode([row["caption"] for row in rows])
    for engine, model in (("fp32", text_only.model), ("int8", text_only.int8)):
        found = record.results["engines"][engine]["und"]
        assert list(found) == [Direction.TEXT_TO_TEXT]
        expected = rank_captions(model.encode_texts(ids).astype(np.float32), owners)
        ranks = np.array(found[Direction.TEXT_TO_TEXT]["first_ranks"]["samples"])
        assert (ranks == expected.first_ranks).mean() > 0.97  # float32 turns a few near ties
    assert record.parameters["captions"] == {"und": 75}
    assert "75 captions" in capsys.readouterr().out
    assert {figure.name[-1] for figure in compare(record, record)} >= {"value"}


def test_two_towers_rank_captions_too(tiny: Any, captions: Path, tmp_path: Path) -> None:
    """A model of both towers is measured on captions alone by its text tower."""
    run("recall", "-b", tiny.bundle.path, "-d", f"captions:{captions}", "-p", "fp32", "--json", tmp_path / "a.json")
    assert list(Record.load(tmp_path / "a.json").results["engines"]["fp32"]["und"]) == [Direction.TEXT_TO_TEXT]


def test_images_need_an_image_tower(text_only: Any) -> None:
    """A data set with images is an error before anything is encoded."""
    with pytest.raises(BundleError, match="image"):
        run("recall", "-b", text_only.bundle.path, "-d", "scenes:3")


@pytest.mark.parametrize("tower", [Tower.TEXT, Tower.IMAGE])
def test_latency_of_one_tower(make_tiny: Callable[..., Any], tower: Tower, tmp_path: Path) -> None:
    """Only the tower that the model has is measured."""
    bundle = make_tiny("one", towers=(tower,)).bundle
    run("latency", "-b", bundle.path, "--provider", "cpu", "--smoke", "--json", tmp_path / "record.json")
    measured = {"image", "text"} & set(Record.load(tmp_path / "record.json").results)
    assert measured == {tower.value}


def test_lengths_need_a_text_tower(make_tiny: Callable[..., Any]) -> None:
    """Lengths of texts for a model of images alone are an error."""
    bundle = make_tiny("one", towers=(Tower.IMAGE,)).bundle
    with pytest.raises((BundleError, InputError), match="text"):
        run("latency", "-b", bundle.path, "--provider", "cpu", "--lengths", "8", "--smoke")
