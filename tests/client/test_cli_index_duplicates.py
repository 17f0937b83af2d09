"""`twinspire index duplicates`: lines, list, JSON, contact sheet, status and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.arrays import noise_images, random_vectors
from support.commands import Ran, run_twinspire
from twinspire.index import Index, Item, ItemKind

SPACE = "5" * 64
Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `twinspire index duplicates` in a folder with an index of two groups, the second with a missing file."""
    names = []
    for number, sides in enumerate(((64, 96, 32), (80, 40), (50,))):
        small = Image.fromarray(noise_images(1, 8, number)[0])
        for side in sides:
            names.append(f"picture {number}, {side}.png")
            small.resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / names[-1])
    vectors = random_vectors(3, dim=8)[[0, 0, 0, 1, 1, 2]]
    with Index.create(tmp_path / "idx", space=SPACE, dim=8) as index:
        index.add(vectors, [Item(str(tmp_path / name), ItemKind.IMAGE) for name in names], space=SPACE)
    with Index.create(tmp_path / "texts", space=SPACE, dim=8) as index:
        index.add(vectors[:2], [Item(f"t#{number}", ItemKind.TEXT) for number in range(2)], space=SPACE)
    Index.create(tmp_path / "empty", space=SPACE, dim=8).close()
    (tmp_path / "picture 1, 40.png").unlink()
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, "index", "duplicates", *arguments)

    return run_main


def test_a_pipe_gets_lines(run: Run) -> None:
    """A line for each picture has group, best or copy, cosine, correlation and path; a missing file ends with 3."""
    ran = run("idx")
    lines = [line.split("\t") for line in ran.out.splitlines()]
    assert [line[:2] for line in lines] == [["1", "best"], ["1", "copy"], ["1", "copy"], ["2", "best"], ["2", "copy"]]
    assert [Path(line[4]).name for line in lines[:2]] == ["picture 0, 96.png", "picture 0, 64.png"]
    assert lines[4][3] == "-"
    assert ran.status == 3
    assert "picture 1, 40.png: no such file" in ran.err
    assert "3 copies" in ran.err


def test_json_has_the_same_groups(run: Run) -> None:
    """The document names sizes, thresholds and causes, and standard output has nothing else."""
    document = run("idx", "--json").document
    assert document["schema_version"] == 1
    assert [len(group["others"]) for group in document["groups"]] == [2, 1]
    assert [group["is_checked"] for group in document["groups"]] == [True, False]
    best = document["groups"][0]["best"]
    assert (best["width"], best["height"], best["correlation"]) == (96, 96, 1.0)
    assert (document["images"], document["redundant"], document["threshold"]) == (6, 3, 0.6)
    assert [image["problem"] for image in document["unreadable"]] == ["no such file"]


def test_a_terminal_gets_a_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are shown, and what was compared by vector alone."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    ran = run("idx")
    assert "96 x 96" in ran.out
    assert "file not read" in ran.out
    assert "by vector" in ran.out


@pytest.mark.parametrize(("name", "file_format"), [("sheet.png", "PNG"), ("sheet.JPG", "JPEG")])
def test_the_sheet_shows_the_groups(run: Run, name: str, file_format: str) -> None:
    """The suffix gives the format; a picture without a file has its card too."""
    assert f"contact sheet: {name}" in run("idx", "--sheet", name).err
    with Image.open(name) as sheet:
        assert sheet.format == file_format
        assert sheet.height > 600  # two rows
        pixels = np.asarray(sheet.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_no_groups_write_no_sheet(run: Run) -> None:
    """An index without near-equal pictures says so, with status 0."""
    ran = run("idx", "--threshold", "1", "--min-correlation", "1", "--sheet", "sheet.png", "--json")
    assert [len(group["others"]) for group in ran.document["groups"]] == [1]  # by vector alone
    with Index.open("idx", mode="write") as index:
        index.remove([0, 1, 3, 4])
    ran = run("idx", "--sheet", "none.png")
    assert (ran.status, ran.out) == (0, "")
    assert "no near-equal pictures among 2" in ran.err
    assert not Path("none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["idx", "--threshold", "1.5"], "threshold"),
        (["idx", "--min-correlation", "-1"], "min_correlation"),
        (["idx", "--max-megapixels", "0"], "--max-megapixels"),
        (["idx", "--sheet", "sheet.gif"], ".png, .jpg or .jpeg"),
        (["idx", "--sheet", "nowhere/sheet.png"], "nowhere"),
        (["texts"], "none is an image"),
        (["empty"], "empty"),
        (["nothing"], "nothing"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, arguments: list[str], words: str) -> None:
    """One message, and no output."""
    ran = run(*arguments)
    assert ran.status != 0
    assert words in ran.err
    assert ran.err.count("error:") == 1
    assert ran.out == ""


def test_larger_pictures_are_not_decoded(run: Run) -> None:
    """With --max-megapixels a larger picture is compared by vector alone, and the cause names the option."""
    ran = run("idx", "--max-megapixels", "0.005", "--json")
    problems = [image["problem"] for image in ran.document["unreadable"]]
    assert sum("--max-megapixels" in problem for problem in problems) == 2
    assert ran.status == 3
