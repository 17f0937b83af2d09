"""CSV of hits: metadata keys as columns, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from twinspire.cli.output import CSV_COLUMNS, Results, csv_cell, show
from twinspire.search import Mode, Query, SearchHit, SearchRequest, SearchResponse
from twinspire.stores import ItemKind
from twinspire.stores.items import metadata_columns


def a_hit(rank: int, score: float, metadata: dict[str, Any], uri: str = "/a/b.png", caption: Any = None) -> SearchHit:
    """Return a hit of an image."""
    return SearchHit(rank, rank, uri, score, ItemKind.IMAGE, caption, metadata)


def table(capfd: pytest.CaptureFixture[str], *hits: SearchHit) -> list[list[str]]:
    """Return header and rows as a spreadsheet reads them."""
    response = SearchResponse(hits, Mode.VECTOR, 9)
    show(Results("/idx", "q", SearchRequest(Query.text("q")), response), as_csv=True)
    return list(csv.reader(io.StringIO(capfd.readouterr().out, newline="")))


def test_metadata_keys_are_columns_sorted(capfd: pytest.CaptureFixture[str]) -> None:
    """The union over all hits; a missing key and null are empty; numbers, texts and JSON read back."""
    header, *rows = table(
        capfd,
        a_hit(1, 0.5, {"year": 2020, "tags": ["a", "b"], "名": '红色, "x"\nnew'}),
        a_hit(2, -0.25, {"album": None, "year": 1.5, "sold": True}),
    )
    assert header == [*CSV_COLUMNS, "album", "sold", "tags", "year", "名"]
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert (json.loads(first["tags"]), first["year"], first["名"]) == (["a", "b"], "2020", '红色, "x"\nnew')
    assert (first["album"], first["sold"], second["album"], second["sold"]) == ("", "", "", "true")
    assert (second["score"], second["year"]) == ("-0.25", "1.5")


def test_keys_named_as_a_column_stand_apart(capfd: pytest.CaptureFixture[str]) -> None:
    """They are `metadata.KEY`, as in filters; no two keys meet in one column."""
    metadata = {"kind": "own", "uri": "u", "metadata.kind": "deep", "rank": 7, "metadata": "plain"}
    header, row = table(capfd, a_hit(1, 0.5, metadata))
    assert len(set(header)) == len(header)
    told = dict(zip(header, row, strict=True))
    assert (told["kind"], told["rank"], told["uri"]) == ("image", "1", "/a/b.png")
    columns = metadata_columns(metadata, CSV_COLUMNS)
    assert {key: told[column] for key, column in columns.items()} == {k: str(v) for k, v in metadata.items()}
    assert columns["kind"] == "metadata.kind"


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1"])
def test_no_cell_is_a_formula(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Captions, uris, metadata values and keys: each gets an apostrophe; the JSON of lists starts with a bracket."""
    header, row = table(capfd, a_hit(1, 0.5, {text: text, "list": [text]}, uri=text, caption=text))
    told = dict(zip(header, row, strict=True))
    assert told["uri"] == told["caption"] == told[f"'{text}"] == f"'{text}"
    assert json.loads(told["list"]) == [text]
    assert not [cell for cell in (*header, *row) if cell.startswith(("=", "+", "@", "\t", "\r", "\n", "＝"))]


def test_numbers_stay_numbers() -> None:
    """A negative number is none of a formula's, be it a number or the text of one."""
    for value, cell in (
        (-5, "-5"),
        ("-5", "-5"),
        ("+1.5e-3", "+1.5e-3"),
        ("-5 degrees", "'-5 degrees"),
        ("a=b", "a=b"),
    ):
        assert csv_cell(value) == cell
