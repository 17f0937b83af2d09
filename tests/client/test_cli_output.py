"""One search's hits in every form: list, lines, JSON, CSV and contact sheet."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinspire.cli.output import CSV_COLUMNS, Results, check_output, show
from twinspire.errors import InputError
from twinspire.search import Mode, Query, SearchHit, SearchRequest, SearchResponse
from twinspire.stores import ItemKind

COLOURS = [(250, 20, 30), (20, 250, 40), (30, 20, 250)]


@pytest.fixture
def hits(tmp_path: Path) -> list[SearchHit]:
    """Return three images, of which the last colour is the best, and a text."""
    found = []
    for rank, number in enumerate((2, 0, 1), start=1):
        Image.new("RGB", (40, 40), COLOURS[number]).save(tmp_path / f"{number}, a.png")
        metadata = {"year": 2020 + number, "camera": 'X "1"'}
        uri = str(tmp_path / f"{number}, a.png")
        found.append(SearchHit(rank, number, uri, 0.7123456789 / rank, ItemKind.IMAGE, "one\ntwo", metadata))
    text = "a 红 line, with a comma\tand a tab"
    return [*found, SearchHit(4, 3, str(tmp_path / "lines.txt#4"), 0.1, ItemKind.TEXT, text, {})]


def results(hits: list[SearchHit], mode: Mode = Mode.VECTOR) -> Results:
    """Wrap hits as a search's results."""
    return Results("/idx", "red 红", SearchRequest(Query.text("red 红"), k=4), SearchResponse(tuple(hits), mode, 1234))


def test_every_form_shows_the_same_hits(
    hits: list[SearchHit], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python, lines in a pipe, JSON and CSV agree on uri, order, id, caption, metadata, and scores as printed."""
    shown = results(hits)
    show(shown)
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert lines == [[f"{hit.score:.4f}", hit.uri] for hit in hits]
    show(shown, as_json=True)
    document = json.loads(capfd.readouterr().out)
    show(shown, as_csv=True)
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out, newline="")))
    assert SearchResponse.from_dict({key: document[key] for key in shown.response.to_dict()}) == shown.response
    assert SearchRequest.from_dict(document["request"]) == shown.request
    for hit, row in zip(hits, rows, strict=True):
        expected = (hit.rank, hit.id, hit.uri, hit.kind.value, hit.caption, dict(hit.metadata), round(hit.score, 6))
        metadata = {"year": int(row["year"]), "camera": row["camera"]} if row["year"] else {}
        as_read = (int(row["rank"]), int(row["id"]), row["uri"], row["kind"], row["caption"], metadata)
        assert (*as_read, float(row["score"])) == expected
    assert tuple(rows[0]) == (*CSV_COLUMNS, "camera", "year")


def test_the_sheet_shows_the_hits_in_their_order(hits: list[SearchHit], tmp_path: Path) -> None:
    """From left to right stand the images' colours as the hits have them; a text is a card with ink on it."""
    show(results(hits), sheet=tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)  # (H, W, 3)
    places = []
    for hit in hits[:3]:
        colour = COLOURS[int(Path(hit.uri).name[0])]
        places.append(np.argwhere((abs(sheet - colour) < 3).all(axis=2))[:, 1].mean())
    assert places == sorted(places)
    card = sheet[150:260, int(places[-1]) + 150 : int(places[-1]) + 310]
    assert (card < 90).all(axis=2).sum() > 50, "no words on the card"


def test_on_a_terminal_a_hit_says_what_is_known_of_it(
    hits: list[SearchHit], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Title and size, the path with its caption's first line, a text by its words, what rules did, probability."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    parts = {"vector": 0.25, "boost": 0.1}
    explained = SearchHit(5, 9, "/a/b.png", 0.5, ItemKind.IMAGE, None, {}, parts, probability=0.875)
    show(results([*hits, explained]))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().out).splitlines()
    assert plain[0].startswith("red 红 ")
    assert "1,234" in plain[0]
    assert plain[1] == f"  1  {hits[0].score:.4f}  {hits[0].uri}  one …"
    assert plain[4] == f"  4  {hits[3].score:.4f}  a 红 line, with a comma\\tand a tab  {hits[3].uri}"
    assert plain[5:] == ["  5  0.5000  /a/b.png  p 0.88", "             boost 0.1"]
    show(results([]))
    assert "1,234" in capfd.readouterr().out


def test_parts_and_probability_come_in_json_and_csv(capfd: pytest.CaptureFixture[str]) -> None:
    """A hit that has them shows them; what the caller adds stands beside the query."""
    hit = SearchHit(1, 1, "a.png", 0.5, ItemKind.IMAGE, None, {}, {"keyword": 7.5}, probability=0.25)
    show(results([hit], Mode.HYBRID), as_json=True)
    document = json.loads(capfd.readouterr().out)
    assert (document["mode"], document["hits"][0]["parts"]) == ("hybrid", {"keyword": 7.5})
    show(results([hit]), as_csv=True)
    (row,) = csv.DictReader(io.StringIO(capfd.readouterr().out, newline=""))
    assert (row["probability"], row["parts"]) == ("0.25", '{"keyword": 7.5}')


def test_what_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    """Two forms for one output, a sheet of another suffix, a missing folder, a folder."""
    (tmp_path / "folder.png").mkdir()
    for options, message in (
        ({"as_json": True, "as_csv": True}, "--csv"),
        ({"sheet": tmp_path / "a.gif"}, r"\.png"),
        ({"sheet": tmp_path / "no" / "a.png"}, r"/no/a\.png"),
        ({"sheet": tmp_path / "folder.png"}, "folder"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(**options)  # type: ignore[arg-type]
    check_output(as_csv=True, sheet=tmp_path / "a.PNG")
