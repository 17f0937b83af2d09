"""`twinspire index sync`, and the options of adding and watching that concern files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from twinspire.cli import main
from twinspire.index import Index


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)


@pytest.fixture
def run(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run a command in a folder with images, with the tiny bundle: `run("index", "sync", ...)`."""
    monkeypatch.chdir(tmp_path)
    Path("photos/below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")):
        Image.new("RGB", (20, 10), (80 * number, 9, 9)).save(Path("photos") / name)

    def command(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([*(str(argument) for argument in arguments), "-b", str(tiny.bundle.path)])
        sys.stdout.flush()
        return Ran(int(ended.value.code or 0), *capfd.readouterr())

    return command


def test_sync_adds_changes_moves_and_removes(run: Callable[..., Ran]) -> None:
    """With status 0; a dry run says the same before; a second run has nothing to do."""
    assert run("index", "sync", "idx", "photos").status == 0
    Path("photos/a.png").rename("photos/moved.png")
    Path("photos/b.png").unlink()
    Image.new("RGB", (5, 5)).save("photos/below/c.png")
    shutil.copy("photos/moved.png", "photos/copy.png")
    expected = {"added": 1, "changed": 1, "moved": 1, "removed": 1, "unchanged": 0, "captioned": 0, "failed": []}
    for options, items in ((["--dry-run"], 3), ([], 3)):
        ran = run("index", "sync", "idx", "photos", "--json", *options)
        assert ran.status == 0, ran.err
        assert {name: ran.document[name] for name in expected} == expected
        assert (ran.document["items"], ran.document["dry_run"]) == (items, bool(options))
    ran = run("index", "sync", "idx", "photos")
    assert (ran.status, ran.out) == (0, "3 unchanged\nidx holds 3 items\n")


def test_sync_ends_with_3_where_some_files_failed(run: Callable[..., Ran]) -> None:
    """They are named; what was skipped is counted by suffix, in words and in JSON."""
    Path("photos/broken.png").write_text("no picture")
    for name in ("x.mp4", "y.MP4", "z.mov"):
        (Path("photos") / name).touch()
    ran = run("index", "sync", "idx", "photos")
    assert ran.status == 3
    assert "photos/broken.png" in ran.err
    assert "2 .mp4" in ran.err
    for command in ("sync", "add"):
        ran = run("index", command, "idx", "photos", "--json")
        assert ran.status == 3
        assert ran.document["skipped"] == {".mp4": 2, ".mov": 1}
        assert [Path(failed["path"]).name for failed in ran.document["failed"]] == ["broken.png"]


def test_sync_refuses_a_folder_that_lost_all_its_images(run: Callable[..., Ran]) -> None:
    """Its disk may just be away: status 2, and nothing is removed."""
    assert run("index", "sync", "idx", "photos").status == 0
    shutil.rmtree("photos")
    Path("photos").mkdir()
    ran = run("index", "sync", "idx", "photos")
    assert ran.status == 2
    assert "mounted" in ran.err
    with Index.open("idx") as index:
        assert len(index) == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["idx"], "DIR"),
        (["idx", "nowhere"], "nowhere"),
        (["idx", "photos/a.png"], "folder"),
        (["idx", "photos", "photos/below"], "photos/below"),
        (["none", "photos", "--dry-run"], "--dry-run"),
        (["idx", "photos", "--on-conflict", "mine"], "prefix"),
        (["idx", "photos", "--max-megapixels", "0"], "--max-megapixels"),
        (["photos", "photos"], "photos.index"),
    ],
)
def test_sync_refuses_what_it_cannot_do(run: Callable[..., Ran], arguments: list[str], word: str) -> None:
    """With status 2 and a message that names what is wrong."""
    ran = run("index", "sync", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert word in ran.err


def test_max_megapixels_is_an_option_wherever_images_are_decoded(run: Callable[..., Ran]) -> None:
    """Images of 200 pixels are refused below that, and the message names the option."""
    Path("labels.txt").write_text("a cat\n")
    assert run("index", "sync", "idx", "photos").status == 0
    for command in (
        ("index", "add", "idx2", "photos"),
        ("index", "sync", "idx3", "photos"),
        ("search", "idx", "--image", "photos/a.png"),
        ("classify", "photos/a.png", "--labels", "labels.txt"),
    ):
        ran = run(*command, "--max-megapixels", "0.0001")
        assert (ran.status, "--max-megapixels" in ran.err) == (2, True), command
        assert run(*command, "--max-megapixels", "0.0002").status == 0, command


def test_columns_that_the_file_has_too_are_stored_as_is_asked_for(run: Callable[..., Ran]) -> None:
    """By default the table's, else the file's, or both; filters find them."""
    Path("shop.csv").write_text("path,name,width\nphotos/a.png,Sunset,999\n")

    def hits(index: str, where: str) -> int:
        return len(run("search", index, "a cat", "--where", where, "--json").document["hits"])

    for policy, where in (("table", "width = 999"), ("file", "name = 'a.png'"), ("prefix", "table_name = 'Sunset'")):
        add = ("index", "add", policy, "photos", "--captions", "shop.csv")
        assert run(*add, "--on-conflict", policy).status == 0
        assert hits(policy, where) == 1
    assert run("index", "add", "default", "photos", "--captions", "shop.csv").status == 0
    assert hits("default", "name = 'Sunset'") == 1
