"""What `twinspire bench peers` takes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ran, run_twinspire
from support.peers import write_catalogue, write_photographs
from twinspire.bundle import Tower
from twinspire_bench.peers.catalogue import open_catalogue
from twinspire_eval.records import Record


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images without captions."""
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def test_captions_are_queries(tiny: Any, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A captions.json in the folder names the images and gives the texts; a peer of checkpoints asks for one."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        (folder / name).write_bytes((photographs / name).read_bytes())
    captions = {
        "images": [{"id": number, "file_name": f"{number:02}.png"} for number in range(2)],
        "annotations": [
            {"image_id": number, "id": number, "caption": f"the {word}"} for number, word in ((0, "cat"), (1, "dog"))
        ],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    adapter = {"kind": "embedding", "adapter": str(Path(__file__).with_name("toy_embedding_peer.py"))}
    catalogue = write_catalogue(tmp_path / "a.toml", {"toy": {**adapter, "needs_checkpoint": True}})
    arguments = ["--data", folder, "-b", tiny.bundle.path, "--catalogue", catalogue, "--peers", "toy", "--rounds", 1]
    ran = run_peers(capsys, *arguments, "--environments", tmp_path / "envs", "--json", tmp_path / "record.json")
    assert ran.status == 0, ran.err
    record = Record.load(tmp_path / "record.json")
    assert {name: record.parameters[name] for name in ("images", "texts", "texts_from")} == {
        "images": 2,
        "texts": 2,
        "texts_from": "captions.json",
    }
    assert "--checkpoint" in record.results["not_measured"]["toy"]


def run_peers(capture: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run `twinspire bench peers`."""
    return run_twinspire(capture, "bench", "peers", *arguments)


def test_unknown_peers_are_refused(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the unknown one and all that there are."""
    ran = run_peers(capsys, "--data", photographs, "--peers", "hnswlib,qdrant")
    assert ran.status == 2
    assert "qdrant" in ran.err
    assert all(name in " ".join(ran.err.split()) for name in open_catalogue())


def test_a_folder_without_images_is_refused(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder, one with other files, and one that does not exist."""
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "notes.txt").write_text("a")
    for folder, word in ((empty, "no images"), (other, ".txt"), (tmp_path / "none", "no such folder")):
        ran = run_peers(capsys, "--data", folder, "-b", tiny.bundle.path, "--environments", tmp_path / "e")
        assert ran.status == 2
        assert word in " ".join(ran.err.split())
        assert str(folder) in ran.err


@pytest.mark.parametrize("towers", [(Tower.TEXT,), (Tower.IMAGE,), (Tower.TEXT, Tower.AUDIO)])
def test_models_without_both_towers_are_refused(
    make_tiny: Callable[..., Any], photographs: Path, towers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the towers that the bundle has."""
    bundle = make_tiny("other", towers=towers).bundle
    ran = run_peers(capsys, "--data", photographs, "-b", bundle.path)
    assert ran.status == 2
    assert ", ".join(towers) in ran.err


def test_a_folder_that_is_no_checkpoint_is_refused(
    tiny: Any, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--checkpoint must have a config.json."""
    ran = run_peers(capsys, "--data", photographs, "-b", tiny.bundle.path, "--checkpoint", photographs)
    assert ran.status == 2
    assert "config.json" in ran.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[peers", ["cannot be read"]),
        ("[peers.a]\nkind = 'index'\nadapter = 'a.py'", ["embedding, store"]),
        ("[peers.a]\nkind = 'store'\nadapter = 'a.py'", ["a.py", "adapter"]),
        ("[peers.a]\nkind = 'store'\nadapter = 'c.toml'\nenvironment = 'e'", ["'e'", "environment"]),
        ("[peers.hnswlib]\nkind = 'store'\nadapter = 'c.toml'", ["hnswlib", "other names"]),
        ("[peers.a]\nkind = 'store'\nadapter = 'c.toml'\nspeed = 1", ["speed"]),
    ],
)
def test_wrong_catalogues_are_refused(
    photographs: Path, tmp_path: Path, text: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors name the place and what was expected."""
    (tmp_path / "c.toml").write_text(text)
    ran = run_peers(capsys, "--data", photographs, "--catalogue", tmp_path / "c.toml")
    assert ran.status == 2
    assert all(word in " ".join(ran.err.split()) for word in words), ran.err
