"""`twinspire index build` and `tune` as a user meets them; the towers are fake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.arrays import random_vectors
from support.fakes import FakeClient
from twinspire.cli import main
from twinspire.cli.index import build
from twinspire.index import Index, Item, ItemKind

SPACE, DIM, COUNT = "5" * 64, 16, 2_000


def length_client(space: str) -> FakeClient:
    """Return a client that encodes any text to a direction drawn from its length."""
    return FakeClient(space, dim=DIM, text_vector=lambda text: random_vectors(1, len(text), dim=DIM)[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of 2,000 items."""
    vectors = random_vectors(COUNT, dim=DIM)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(vectors, [Item(f"/{n}.jpg", ItemKind.IMAGE) for n in range(COUNT)], space=SPACE)
    return tmp_path / "index"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `twinspire index` and return its status, output and errors."""
    with pytest.raises(SystemExit) as ended:
        main(["index", *map(str, arguments)])
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


def test_build_tells_what_it_takes_then_builds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory and time are told first, then what it took; the index has the kind afterwards."""
    status, out, _ = run(capsys, "build", folder, "--spec", "ivf,pq8x4", "--threads", 1)
    assert status == 0
    first, second, third = out.splitlines()
    assert "ivf,pq8x4" in first
    assert second.startswith("built")
    for word in ("recall@10", "held-out", "nprobe", "rescored", " ms "):
        assert word in third
    with Index.open(folder) as index:
        snapshot = index.stats().snapshot
    assert snapshot is not None
    assert snapshot.spec == "ivf,pq8x4"


def test_dry_run_builds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` tells what auto is and what it takes, also while another process writes, and changes nothing."""
    with Index.open(folder, mode="write") as index:
        status, out, _ = run(capsys, "build", folder, "--dry-run", "--json")
        assert index.stats().snapshot is None
    assert status == 0
    document = json.loads(out)
    assert (document["spec"], document["items"], document["predicted_memory_bytes"]) == ("flat", COUNT, 0)


def test_build_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one document with what was predicted and what it took."""
    _, out, _ = run(capsys, "build", folder, "--spec", "ivf,sq8", "--json")
    document = json.loads(out)
    calibration = document["calibration"]
    assert calibration["recall"] == min(group["recall"] for group in calibration["measured"])
    assert calibration["reached"] == (calibration["recall"] >= calibration["target_recall"] == 0.95)
    with Index.open(folder) as index:
        snapshot = index.stats().snapshot
    assert snapshot is not None
    assert (snapshot.effort, calibration["effort_name"]) == (calibration["effort"], "nprobe")
    assert document["spec"] == "ivf,sq8"
    assert document["file_bytes"] == pytest.approx(document["predicted_memory_bytes"], rel=0.2)


def test_target_out_of_reach_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes too coarse for the recall are told in the line, with what to do; flat is told to be exact."""
    vectors = random_vectors(20_000, dim=DIM)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(vectors, [Item(f"/{n}.jpg", ItemKind.IMAGE) for n in range(20_000)], space=SPACE)
    _, out, _ = run(capsys, "build", tmp_path / "index", "--spec", "ivf,nlist=4,pq1x4")
    assert "reached" in out.splitlines()[-1]
    assert "flat" in out.splitlines()[-1]
    _, out, _ = run(capsys, "build", tmp_path / "index", "--spec", "flat")
    assert "exact" in out.splitlines()[-1]


@pytest.mark.parametrize("asked", ["items", "file", "text"])
def test_tune_sets_the_effort(
    asked: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The effort that is told is stored; it comes from items, from embeddings in a file, or from texts."""
    monkeypatch.setattr(build, "open_client", lambda *_: length_client(SPACE))
    np.save(tmp_path / "some.npy", random_vectors(50, 3, dim=DIM))
    (tmp_path / "some.txt").write_text("a beach\n\nein Hund am Strand\n")
    options = {"items": [], "file": ["--queries", tmp_path / "some.npy"], "text": ["--queries", tmp_path / "some.txt"]}
    run(capsys, "build", folder, "--spec", "ivf")
    status, out, _ = run(capsys, "tune", folder, "--recall", "0.9", "--json", *options[asked])
    assert status == 0
    document = json.loads(out)
    assert document["recall"] >= 0.9
    assert document["queries"] == {"items": 256, "file": 50, "text": 2}[asked]
    with Index.open(folder) as index:
        snapshot = index.stats().snapshot
    assert snapshot is not None
    assert snapshot.effort == document["effort"]
    _, out, _ = run(capsys, "tune", folder, *options[asked])
    assert "recall@10" in out
    assert ("--queries" in out) == (asked == "items")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "INDEX", "--spec", "lsh"], "lsh"),
        (["build", "INDEX", "--spec", "cagra"], "cagra"),
        (["build", "nowhere"], "nowhere"),
        (["tune", "INDEX"], "searched exactly"),
        (["tune", "INDEX", "--queries", "no.npy"], "no.npy"),
        (["tune", "INDEX", "--queries", "no.txt"], "no.txt"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and a message that says what was wrong."""
    status, _, err = run(capsys, *[str(folder) if word == "INDEX" else word for word in arguments])
    assert status == 2
    assert message in " ".join(err.split())


def test_queries_of_another_space_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts encoded by a bundle of another space cannot tune."""
    monkeypatch.setattr(build, "open_client", lambda *_: length_client("6" * 64))
    (tmp_path / "some.txt").write_text("a beach\n")
    run(capsys, "build", folder, "--spec", "ivf")
    status, _, err = run(capsys, "tune", folder, "--queries", tmp_path / "some.txt")
    assert status == 2
    assert "compared" in " ".join(err.split())
