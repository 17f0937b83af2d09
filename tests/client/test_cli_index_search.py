"""`twinspire index` and `twinspire search` as a user meets them; the towers are fake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.commands import Ran, run_twinspire
from support.fakes import COLOURS, FakeClient
from twinspire.cli.client_options import ClientOptions
from twinspire.index import Index, Item, ItemKind

Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `twinspire` in a folder of its own, the bundle named `other` being of another space."""

    def open_client(options: ClientOptions, *_: object) -> FakeClient:
        return FakeClient("6" * 64) if options.bundle == Path("other") else FakeClient()

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, *arguments)

    monkeypatch.setattr("twinspire.cli.index.shared.open_client", open_client)
    monkeypatch.setattr("twinspire.cli.search.open_client", open_client)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return run_main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw images of three colours in a folder with an awkward name."""
    folder = tmp_path / "my [photos] of things that have a really long name, longer than the terminal is wide 猫"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (32, 24), COLOURS[name]).save(folder / f"{name}.png")
    return folder


def refused(ran: Ran, message: str) -> None:
    """Check for status 2 and one clear message."""
    assert ran.status == 2
    assert message in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err
    assert ran.err.count("error:") == 1
    assert ran.out == ""


def numbers(text: str) -> list[str]:
    """Return the numbers in what a command printed, whatever its words."""
    return re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text)


def files(folder: Path) -> list[str]:
    """List everything below a folder but SQLite's own passing files."""
    return sorted(str(path) for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))


def test_images_are_added_and_adding_them_again_is_a_no_op(run: Run, photos: Path) -> None:
    """The index is made, the report counts; a second time everything is there already; both succeed."""
    ran = run("index", "add", "idx", photos)
    told = numbers(ran.out)
    assert (ran.status, told[0], told[-1]) == (0, "3", "3")
    before = (Path("idx") / "vectors-1.f32").read_bytes()
    ran = run("index", "add", "idx", photos)
    assert (ran.status, numbers(ran.out), ran.err) == (0, ["0", "3", "3"], "")
    assert (Path("idx") / "vectors-1.f32").read_bytes() == before


def test_files_that_fail_are_listed_on_standard_error(run: Run, photos: Path) -> None:
    """The rest is added, the status is 3, and each failed file is on one line with its cause; added again, too."""
    (photos / "bad\n\x1b[31m.png").write_text("no picture")
    odd = os.fsdecode(os.fsencode(photos) + b"/\xff.png")
    Path(odd).write_text("x")
    ran = run("index", "add", "idx", photos)
    assert ran.status == 3
    told = numbers(ran.out)
    assert (told[0], told[-2:]) == ("3", ["2", "3"])
    not_utf8, no_image = sorted(ran.err.splitlines())
    assert f"{photos.name}/bad\\n\\x1b[31m.png" in no_image
    assert "is no picture" in no_image  # the cause that the client gave
    assert f"{photos.name}/\\xff.png" in not_utf8
    assert "UTF-8" in not_utf8
    assert run("index", "add", "idx", photos).status == 3
    Path("lines.txt").write_text("a red thing\n")
    bad = photos / "bad\n\x1b[31m.png"
    assert run("index", "add", "idx", bad, "--texts", "lines.txt").status == 3, "the text worked"
    assert run("index", "add", "idx", bad).status == 2
    assert run("index", "add", "idx", photos / "red.png").status == 0


def test_no_index_appears_where_every_file_fails(run: Run, tmp_path: Path) -> None:
    """Status 2, the causes, and nothing written."""
    (tmp_path / "bad.png").write_text("no picture")
    ran = run("index", "add", "idx", "bad.png")
    assert ran.status == 2
    assert "bad.png" in ran.err
    assert ran.err.count("error:") == 1
    assert files(tmp_path) == [str(tmp_path / "bad.png")]


def test_index_add_refuses_what_it_cannot_do(run: Run, photos: Path, tmp_path: Path) -> None:
    """No path, an empty folder, a folder that is no index, a missing parent: status 2, nothing written."""
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    refused(run("index", "add", "idx", "empty"), "/empty")
    refused(run("index", "add", "idx", "nowhere"), "/nowhere")
    refused(run("index", "add", photos, photos), f"{photos.name}.index")
    refused(run("index", "add", photos / "red.png", photos), "/red.png")
    refused(run("index", "add", "a/b", photos), str(tmp_path / "a"))
    refused(run("index", "add", "idx"), "PATH")
    assert files(tmp_path) == before


def test_an_empty_folder_becomes_the_index(run: Run, photos: Path, tmp_path: Path) -> None:
    """Nothing is in its way there."""
    (tmp_path / "idx").mkdir()
    assert numbers(run("index", "add", "idx", photos).out)[-1] == "3"


def test_another_space_and_a_second_writer_are_refused(run: Run, photos: Path) -> None:
    """The index stays as it is, and the message says what to do."""
    run("index", "add", "idx", photos)
    before = (Path("idx") / "vectors-1.f32").read_bytes()
    refused(run("index", "add", "idx", photos, "--bundle", "other"), "another space")
    refused(run("search", "idx", "red", "-b", "other"), "another space")
    with Index.open("idx", mode="write"):
        refused(run("index", "add", "idx", photos), str(os.getpid()))
        assert run("search", "idx", "red").status == 0
    assert (Path("idx") / "vectors-1.f32").read_bytes() == before


def test_in_a_pipe_hits_are_lines_of_score_and_whole_path(run: Run, photos: Path) -> None:
    """Best first, separated by a tab, never wrapped or shortened, and nothing else on standard output."""
    run("index", "add", "idx", photos)
    ran = run("search", "idx", "red", "-k", "2")
    assert ran.status == 0
    assert ran.out.splitlines()[0] == f"1.0000\t{photos / 'red.png'}"
    assert len(ran.out.splitlines()) == 2
    assert ran.err == ""


def test_on_a_terminal_the_path_is_whole_and_can_be_copied(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns a long path is left to the terminal to wrap; brackets in it are no markup."""
    run("index", "add", "idx", photos)
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = run("search", "idx", "red").out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert out != plain
    assert plain.startswith("red ")
    assert numbers(plain.splitlines()[0]) == ["3"]
    assert plain.splitlines()[1] == f"  1  1.0000  {photos.name}/red.png"


def test_a_image_finds_itself(run: Run, photos: Path) -> None:
    """--image searches by an image."""
    run("index", "add", "idx", photos)
    ran = run("search", "idx", "--image", photos / "blue.png", "-k", 1)
    assert ran.out == f"1.0000\t{photos / 'blue.png'}\n"


def test_json_is_one_document(run: Run, photos: Path) -> None:
    """Query, k and the hits with rank, score, uri; the index's stats as well."""
    run("index", "add", "idx", photos)
    document = json.loads(run("search", "idx", "红 pale", "-k", "9", "--json").out)
    request = document["request"]
    assert (document["schema_version"], request["k"]) == (1, 9)
    assert request["query"] == [{"text": "红 pale", "weight": 1.0}]
    assert [hit["rank"] for hit in document["hits"]] == [1, 2, 3]
    best = document["hits"][0]
    assert (best["uri"], best["kind"]) == (str(photos / "red.png"), "image")
    assert best["score"] == pytest.approx(1)
    (part,) = json.loads(run("search", "idx", "-i", photos / "red.png", "--json").out)["request"]["query"]
    assert part["image"] == str(photos / "red.png")
    stats = json.loads(run("index", "stats", "idx", "--json").out)
    assert (stats["items"], stats["images"], stats["dim"], stats["space"]) == (3, 3, 3, "5" * 64)
    assert stats["vectors_bytes"] == 64 + 3 * 3 * 4


def test_stats_are_readable(run: Run, photos: Path) -> None:
    """One line a fact."""
    run("index", "add", "idx", photos)
    out = run("index", "stats", "idx").out
    assert re.search(r"^items +3$", out, re.MULTILINE)
    assert re.search(r"^vectors +0\.1 KiB$", out, re.MULTILINE)
    refused(run("index", "stats", "nowhere"), "/nowhere")


def test_the_sheet_is_written_beside_the_hits(run: Run, photos: Path, tmp_path: Path) -> None:
    """A PNG with the colours of the hits; the list still comes, and JSON stays pure."""
    run("index", "add", "idx", photos)
    (photos / "green.png").unlink()
    ran = run("search", "idx", "red", "--sheet", "out.png")
    assert ran.status == 0
    assert len(ran.out.splitlines()) == 3
    assert "out.png" in ran.err
    with Image.open(tmp_path / "out.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 24) or []}
    assert {COLOURS["red"], COLOURS["blue"]} <= colours
    json.loads(run("search", "idx", "-i", photos / "red.png", "--sheet", "out.png", "--json").out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "TEXT"),
        (["red", "--image", "red.png"], "red.png"),
        ([""], "empty"),
        ([" \t\n"], "empty"),
        (["\udcff"], "UTF-8"),
        (["red", "-k", "0"], "-k"),
        (["red", "-k", "-3"], "-3"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", "bad.png"], "bad.png"),
        (["red", "--sheet", "out.gif"], "out.gif"),
        (["red", "--sheet", "nowhere/out.png"], "nowhere/out.png"),
    ],
)
def test_search_refuses_what_it_cannot_do(
    run: Run, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Status 2, one message, nothing written."""
    run("index", "add", "idx", photos)
    (tmp_path / "bad.png").write_text("no picture")
    before = files(tmp_path)
    refused(run("search", "idx", *arguments), message)
    assert files(tmp_path) == before


def test_an_empty_or_missing_index_is_said(run: Run, tmp_path: Path) -> None:
    """Searching it is status 2 with what to do."""
    Index.create(tmp_path / "idx", space="5" * 64, dim=3).close()
    refused(run("search", "idx", "red"), "empty")
    refused(run("search", "nowhere", "red"), "twinspire index add")


def test_a_damaged_index_is_said(run: Run, tmp_path: Path) -> None:
    """A flipped bit is status 2 with what to do."""
    with Index.create(tmp_path / "idx", space="5" * 64, dim=3) as index:
        index.add(np.eye(3, dtype=np.float32), [Item(str(n), ItemKind.TEXT) for n in range(3)], space="5" * 64)
    path = tmp_path / "idx" / "vectors-1.f32"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    refused(run("search", "idx", "red"), "vectors-1.f32")


def test_an_interruption_is_said_and_keeps_what_was_added(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second batch: status 130, the first stays, and the same command goes on from there."""
    for number in range(40):
        Image.new("RGB", (9, 9), (number + 1, 200, 100)).save(photos / f"{number}.png")
    encode, batches = FakeClient.encode_pixels, []

    def interrupted(client: FakeClient, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches.append(len(pixels))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return encode(client, pixels)

    monkeypatch.setattr(FakeClient, "encode_pixels", interrupted)
    ran = run("index", "add", "idx", photos)
    assert (ran.status, ran.err) == (130, "interrupted\n")
    assert numbers(run("index", "add", "idx", photos).out)[-2:] == ["32", "43"]


def test_starting_up_imports_nothing_heavy() -> None:
    """`twinspire --help` loads neither numpy nor what is heavier."""
    code = (
        "import sys, twinspire.cli\n"
        "heavy = {'numpy', 'faiss', 'onnxruntime', 'PIL', 'torch', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    client = Path(__file__).parents[2] / "client"
    environment = {**os.environ, "PYTHONPATH": str(client)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
