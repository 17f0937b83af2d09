"""The command `twinspire`, run as a user runs it: right and wrong input, exit codes, messages without traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.data import ODD_IMAGES
from twinspire import sample_bundle

TWINSPIRE = Path(sys.executable).with_name("twinspire")


def _run(arguments: Sequence[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(TWINSPIRE), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which the demo was run, and how it ended."""
    folder = tmp_path_factory.mktemp("session")
    return folder, _run(["demo", "-o", "demo", "--json", "figures/demo.json"], folder)


def test_the_demo_finds_images_in_words(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """`twinspire demo` ends with 0, writes its JSON and its sheet, and finds most images at once."""
    folder, done = demo
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "figures" / "demo.json").read_text(encoding="utf-8"))
    assert document["images"] == 500
    for both in document["recall"].values():
        for recall in both.values():
            assert recall["r1"] >= 0.5
            assert recall["r10"] >= 0.9
    assert (folder / "demo" / "answers.png").is_file()
    assert "images/s" in done.stdout


def test_a_session_of_index_and_search(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Images added once are found; added again they change nothing."""
    folder, _ = demo
    first = _run(["index", "add", "own", "demo/scenes"], folder)
    assert first.returncode == 0, first.stderr
    again = _run(["index", "add", "own", "demo/scenes"], folder)
    assert again.returncode == 0, again.stderr
    stats = json.loads(_run(["index", "stats", "own", "--json"], folder).stdout)
    assert stats["items"] == 500
    found = _run(
        ["search", "own", "--image", "demo/scenes/000003.jpg", "-k", "3", "--json", "--sheet", "s.png"], folder
    )
    assert found.returncode == 0, found.stderr
    hits = json.loads(found.stdout)["hits"]
    assert Path(hits[0]["uri"]).name == "000003.jpg"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert (folder / "s.png").is_file()


def test_the_demo_leaves_a_strangers_folder_alone(tmp_path: Path) -> None:
    """A demo into a folder with other files is refused."""
    (tmp_path / "thesis.tex").write_text("mine")
    done = _run(["demo", "-o", "."], tmp_path)
    _assert_refused(done, "empty")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "none", "a cat"], "none"),
        (["search", "demo/index", ""], "empty"),
        (["search", "demo/index"], "TEXT"),
        (["search", "demo/index", "a cat", "-k", "0"], "-k"),
        (["search", "demo/index", "a cat", "--bundle", "none"], "none"),
        (["search", "demo/index", "--image", "figures/demo.json"], "demo.json"),
        (["index", "add", "new", "empty"], "empty"),
        (["index", "add", "new", "figures/demo.json"], "demo.json"),
        (["index", "add", "new", "nowhere"], "nowhere"),
        (["scenes", "draw", "-n", "3", "-o", "demo"], "empty"),
        (["export", "nowhere/checkpoint", "-o", "new"], "nowhere/checkpoint"),
        (["export", "empty", "-o", "new"], "empty"),
        (["quantize", "empty", "-o", "new"], "bundle.json"),
    ],
)
def test_wrong_input_is_refused(
    demo: tuple[Path, subprocess.CompletedProcess[str]], arguments: list[str], says: str
) -> None:
    """Wrong input ends with status 2 and a message that names it, without traceback; nothing new appears."""
    folder, _ = demo
    (folder / "empty").mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    _assert_refused(_run(arguments, folder), says)
    assert sorted(folder.iterdir()) == before


def test_a_flipped_byte_in_a_bundle_is_found(
    demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A bundle with one changed byte is refused, and the message names the file."""
    folder, _ = demo
    for file in sample_bundle().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((tmp_path / "tokenizer.json").read_bytes())
    damaged[100] ^= 1
    (tmp_path / "tokenizer.json").write_bytes(damaged)
    _assert_refused(_run(["search", "demo/index", "a cat", "--bundle", tmp_path], folder), "tokenizer.json")


def test_awkward_images_do_not_stop_the_rest(tmp_path: Path) -> None:
    """Of the awkward files those that hold an image are added, the others listed with their causes; status 3."""
    done = _run(["index", "add", "odd", *sorted(ODD_IMAGES.glob("*.*"))], tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    for name in ("broken.png", "truncated_jpeg.jpg", "decompression_bomb.gif"):
        assert name in done.stderr
    stats = json.loads(_run(["index", "stats", "odd", "--json"], tmp_path).stdout)
    assert stats["items"] == len(list(ODD_IMAGES.glob("*.*"))) - done.stderr.count("failed ")


def _assert_refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
