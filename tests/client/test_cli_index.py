"""`twinspire index` as a user meets it, with real engines of a tiny bundle."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from twinspire import Client
from twinspire.cli import main
from twinspire.contact_sheet import SheetRow
from twinspire.index import Index
from twinspire.search import Query, Searcher

WORDS = ("red cat", "blue dog", "green house on snow", "a large boat")


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `twinspire` in a folder of its own with the tiny bundle as `tiny`, and four images in `photos`."""
    (tmp_path / "tiny").symlink_to(tiny.bundle.path)
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "below/d")):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run_main(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        sys.stdout.flush()
        return Ran(int(ended.value.code or 0), *capfd.readouterr())

    return run_main


def refused(ran: Ran, message: str) -> None:
    """Check for status 2, one clear message and nothing else."""
    assert (ran.status, ran.out) == (2, "")
    assert re.search(message, ran.err.replace("\n", " ")), ran.err
    assert ran.err.count("error:") == 1
    assert "Traceback" not in ran.err


def added(run: Run, *options: object) -> None:
    """Make an index of the images."""
    assert run("index", "add", "idx", "photos", "-b", "tiny", *options).status == 0


def write_captions(path: Path) -> None:
    """Write a caption for every image but the last."""
    lines = [f"{name}.png,{words}" for name, words in zip(("a", "b", "c"), WORDS, strict=False)]
    path.write_text("\n".join(["file,caption", *lines]) + "\n")


def test_the_version_is_told(run: Run) -> None:
    """`twinspire --version` names the product and the installed version."""
    assert run("--version") == Ran(0, f"twinspire {version('twinspire')}\n", "")


def test_captions_and_texts_are_added_and_counted(run: Run, tmp_path: Path) -> None:
    """Captions from a file, mixed in; lines of a text file; the report as words and as JSON."""
    write_captions(tmp_path / "captions.csv")
    ran = run("index", "add", "idx", "photos", "--captions", "captions.csv", "--fuse-captions", "0.3", "-b", "tiny")
    assert re.fullmatch(r"4 added in .* images/s\), 3 with a caption\nidx holds 4 items\n", ran.out)
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    document = json.loads(run("index", "add", "idx", "photos", "--texts", "lines.txt", "-b", "tiny", "--json").out)
    counts = {name: document[name] for name in ("added", "already", "captioned", "failed", "items")}
    assert counts == {"added": 4, "already": 4, "captioned": 0, "failed": [], "items": 8}
    with Index.open("idx") as index:
        (item,) = index.find(uri=str(tmp_path / "photos" / "a.png"))
    assert (item.caption, item.metadata["fused_captions"], item.metadata["width"]) == ("red cat", 0.3, 16)


def test_sidecars_are_taken_where_they_are_asked_for(run: Run, tmp_path: Path) -> None:
    """Text files beside images are captions with --sidecars alone."""
    (tmp_path / "photos" / "a.txt").write_text("a red cat")
    added(run)
    assert ", 1 with a caption" in run("index", "add", "idx2", "photos", "--sidecars", "-b", "tiny").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["idx"], "PATH"),
        (["idx", "photos", "--captions", "nope"], r"\bnope\b"),
        (["idx", "photos", "--captions", "photos"], "directory"),
        (["idx", "photos", "--captions", "other.csv"], r"\ba\.png"),
        (["idx", "photos", "--captions", "other.csv", "--sidecars"], "--sidecars"),
        (["idx", "photos", "--fuse-captions", "0.3"], "--fuse-captions needs captions"),
        (["idx", "photos", "--sidecars", "--fuse-captions", "1.5"], "must be above 0 and below 1"),
        (["idx", "--texts", "nope.txt"], "the text file .*nope.txt cannot be read: No such file"),
        (["idx", "--texts", "photos/a.png"], "is not UTF-8"),
        (["idx", "--texts", "lines.txt", "--captions", "other.csv"], "--captions"),
        (["photos", "photos"], r"photos\.index"),
    ],
)
def test_add_refuses_what_it_cannot_do(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Status 2, one message, and no index appears."""
    (tmp_path / "other.csv").write_text("file,caption\nx.png,a cat\n")
    (tmp_path / "lines.txt").write_text("a cat\n")
    refused(run("index", "add", *arguments, "-b", "tiny"), message)
    assert not (tmp_path / "idx").exists()


def test_items_are_removed_by_path_id_or_filter(run: Run, tmp_path: Path) -> None:
    """A file that is gone, a folder, a text file's lines, ids, a filter; dry runs change nothing."""
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    added(run, "--texts", "lines.txt")
    (tmp_path / "photos" / "a.png").unlink()
    assert run("index", "remove", "idx", "photos/a.png").out == "1 removed\nidx holds 7 items\n"
    assert (
        run("index", "remove", "idx", "photos/below", "lines.txt", "--dry-run").out == "5 of 7 items would be removed\n"
    )
    assert run("index", "remove", "idx", "photos/below").out == "1 removed\nidx holds 6 items\n"
    assert run("index", "remove", "idx", "lines.txt").out == "4 removed\nidx holds 2 items\n"
    assert (
        run("index", "remove", "idx", "--where", "name = 'b.png'", "--dry-run").out == "1 of 2 items would be removed\n"
    )
    document = json.loads(run("index", "remove", "idx", "--where", "name = 'b.png'", "--json").out)
    assert (document["removed"], document["dry_run"], document["items"]) == (1, False, 1)
    with Index.open("idx") as index:
        (item,) = index.find(under=str(tmp_path))
    assert run("index", "remove", "idx", "--id", item.id).out == "1 removed\nidx holds 0 items\n"


def test_a_filter_that_removes_nothing_says_why(run: Run) -> None:
    """A key that no item has, or a number compared with text; also in a dry run."""
    added(run)
    for options in ([], ["--dry-run"]):
        ran = run("index", "remove", "idx", "--where", 'width = "8" or yaer = 2', *options)
        assert ran.status == 0
        assert "width" in ran.err
        assert "yaer" in ran.err
    assert run("index", "remove", "idx", "--where", "width = 10000").err == ""


def test_remove_refuses_what_it_cannot_do(run: Run) -> None:
    """No way or two ways to say what, something that is not there, no filter, no index: nothing is removed."""
    added(run)
    for arguments, message in (
        (["idx"], "--where"),
        (["idx", "photos", "--id", "0"], "--where"),
        (["idx", "photos/a.png", "photos/zzz.png"], r"photos/zzz\.png"),
        (["idx", "--id", "99"], "99"),
        (["idx", "--where", "year >"], "filter"),
        (["nope", "photos"], "nope"),
    ):
        refused(run("index", "remove", *arguments), message)
    assert run("index", "stats", "idx").out.splitlines()[1] == "items           4"


def test_compact_frees_what_was_removed(run: Run) -> None:
    """Stats say that there is something to free, compact frees it, a second time nothing is left."""
    added(run)
    run("index", "remove", "idx", "photos/a.png")
    assert "dead rows       1 (`twinspire index compact idx` frees them)\n" in run("index", "stats", "idx").out
    assert re.fullmatch(r"1 vectors dropped, 0\.2 KiB became 0\.2 KiB\n", run("index", "compact", "idx").out)
    assert run("index", "compact", "idx").out == "nothing to free: every vector belongs to an item\n"
    document = json.loads(run("index", "compact", "idx", "--json").out)
    assert document["dropped_rows"] == 0
    assert json.loads(run("index", "stats", "idx", "--json").out)["rows"] == 3


def test_verify_reads_everything(run: Run, tmp_path: Path) -> None:
    """A whole index is status 0, one with a flipped bit status 1 and says where; what is no index is an error."""
    added(run)
    assert run("index", "verify", "idx").out.startswith("idx is intact: 4 items")
    (vectors,) = (tmp_path / "idx").glob("vectors-*")
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 64
    vectors.write_bytes(data)
    ran = run("index", "verify", "idx")
    assert ran.status == 1
    assert "checksum" in ran.out
    ran = run("index", "verify", "idx", "--json")
    assert (ran.status, json.loads(ran.out)["ok"]) == (1, False)
    refused(run("index", "verify", "photos"), "photos")


def test_python_command_line_and_sheet_show_the_same_hits(
    run: Run, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Searcher`, lines, --json, --csv and --sheet have the same items in the same order with the same scores."""
    write_captions(tmp_path / "captions.csv")
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    added(run, "--captions", "captions.csv", "--texts", "lines.txt")
    with Client.local(tiny.bundle.path) as client, Index.open("idx") as index:
        answer = Searcher(client, index).search(Query.parse("red cat"), 6)
    expected = [(hit.uri, pytest.approx(hit.score, abs=1e-4)) for hit in answer.hits]
    assert len(expected) == 6
    search = ("search", "idx", "red cat", "-k", "6", "-b", "tiny")
    lines = [line.split("\t") for line in run(*search).out.splitlines()]
    assert [(uri, float(score)) for score, uri in lines] == expected
    assert [(hit["uri"], hit["score"]) for hit in json.loads(run(*search, "--json").out)["hits"]] == expected
    rows = csv.DictReader(io.StringIO(run(*search, "--csv").out))
    assert [(row["uri"], float(row["score"])) for row in rows] == expected
    drawn: list[SheetRow] = []
    from twinspire import contact_sheet

    draw = contact_sheet.contact_sheet
    monkeypatch.setattr(contact_sheet, "contact_sheet", lambda rows, path: drawn.extend(rows) or draw(rows, path))
    assert run(*search, "--sheet", "out.png").status == 0
    by_words = {words: f"{tmp_path}/lines.txt#{number}" for number, words in enumerate(WORDS, start=1)}
    shown = [(by_words.get(hit, "") if isinstance(hit, str) else str(hit), score) for hit, score in drawn[0].hits]
    assert shown == expected
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_watch_follows_a_folder_until_ctrl_c(run: Run, tmp_path: Path) -> None:
    """It catches up, tells each change as it happens, and ends with status 0, a summary and an index that is whole."""
    command = [sys.executable, "-c", "from twinspire.cli import main; main()", "index", "watch", "idx", "photos"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "client")}
    with subprocess.Popen(
        [*command, "-b", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert re.fullmatch(r"caught up in .* s: 4 added\n", process.stdout.readline())
            (tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / "z.png")
            line = process.stdout.readline()
            assert re.fullmatch(r"\d\d:\d\d:\d\d  moved      photos/z\.png  \(was photos/a\.png\)\n", line)
            (tmp_path / "photos" / "b.png").unlink()
            assert re.fullmatch(r"\d\d:\d\d:\d\d  removed    photos/b\.png\n", process.stdout.readline())
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out == "1 moved, 1 removed while watching\nidx holds 3 items\n"
    assert err == "watching photos; Ctrl-C ends it\n"
    assert run("index", "verify", "idx").status == 0


def test_watch_refuses_what_it_cannot_follow(run: Run, tmp_path: Path) -> None:
    """No folder, one that is not there, a file: no index appears."""
    for arguments, message in (
        ([], "DIR"),
        (["nope"], r"\bnope\b"),
        (["photos/a.png"], r"photos/a\.png"),
        (["photos", "--captions", "nope"], r"\bnope\b"),
    ):
        refused(run("index", "watch", "idx", *arguments, "-b", "tiny"), message)
    assert not (tmp_path / "idx").exists()
