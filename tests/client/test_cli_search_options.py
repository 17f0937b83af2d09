"""`twinspire search` with sums, filters, rules and words; the towers are fake, the index is real."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from support.arrays import unit
from support.commands import Ran, run_twinspire
from support.fakes import FakeClient
from twinspire.index import Index, Item, ItemKind

SPACE = "5" * 64


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `twinspire search idx` in a folder with an index of four images and a text."""
    colours = {"red": (250, 9, 9), "green": (9, 250, 9), "blue": (9, 9, 250), "purple": (180, 9, 180)}
    items = []
    for number, (name, colour) in enumerate(colours.items()):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        metadata = {"year": 2020 + number, "in_stock": number % 2 == 0}
        caption = f"a {name} thing at Sunny Bay" if number < 2 else "红色的汽车" if number == 2 else None
        items.append(Item(str(tmp_path / f"{name}.png"), ItemKind.IMAGE, caption=caption, metadata=metadata))
    items.append(Item("notes.txt#1", ItemKind.TEXT, caption="some words"))
    with Index.create(tmp_path / "idx", space=SPACE, dim=3) as index:
        index.add(unit([*colours.values(), (100, 100, 100)]), items, space=SPACE)

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, "search", "idx", *arguments)

    monkeypatch.setattr("twinspire.cli.search.open_client", lambda *_: FakeClient(SPACE))
    monkeypatch.chdir(tmp_path)
    return run_main


@pytest.mark.parametrize(
    "arguments",
    [
        ['"red" + blue.png', "--mode", "vector"],
        ["red", "-i", "blue.png", "--mode", "vector"],
        ["red", "--add", "blue", "--mode", "vector"],
        ["--add", "red", "--add", "0.8 * blue.png", "--mode", "vector"],
    ],
)
def test_a_sum_finds_what_is_both(run: Run, arguments: list[str]) -> None:
    """Red and blue make purple, in whatever way it is written."""
    assert run(*arguments).names[0] == "purple.png"


def test_what_is_taken_away_goes_to_the_end(run: Run) -> None:
    """A text less another, in the text or by --minus."""
    assert run('"red" - "blue"', "--mode", "vector").names[-1] == "blue.png"
    assert run("red", "--minus", "blue", "--mode", "vector").names[-1] == "blue.png"


def test_filters_kinds_boosts_and_pins_reach_the_search(run: Run) -> None:
    """Each option changes the hits as it says."""
    assert run("red", "--where", "year > 2021").names == ["purple.png", "blue.png"]
    assert run("red", "--kind", "text").names == ["notes.txt#1"]
    assert run("red", "--boost", "year = 2021:5", "--mode", "vector").names[0] == "green.png"
    assert run("red", "--boost", "year = 2020:-5", "--mode", "vector").names[-1] == "red.png"
    assert run("red", "--pin", "in_stock = true and year = 2022", "-k", 2, "--mode", "vector").names == [
        "blue.png",
        "red.png",
    ]
    assert run("red", "--min-score", "0.9", "--mode", "vector").names == ["red.png"]
    assert run("red", "--diversify", "1", "-k", 2, "--mode", "vector").names[0] == "red.png"


def test_words_and_phrases_find_captions(run: Run) -> None:
    """A quoted phrase must be there; Chinese captions are found by words of two characters."""
    assert sorted(run('"sunny bay"').names) == ["green.png", "red.png"]
    assert run('"汽车"').names == ["blue.png"]
    assert run("汽车", "--mode", "keyword").names == ["blue.png"]
    ran = run('"zorblatt"')
    assert (ran.status, ran.out) == (0, "")
    assert "zorblatt" in ran.err


def test_synonyms_and_templates_are_files(run: Run, tmp_path: Path) -> None:
    """Both are read from where they are said to be."""
    (tmp_path / "synonyms.txt").write_text("automobile => 汽车\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("blue {}\n")
    assert run("automobile", "--mode", "keyword", "--synonyms", "synonyms.txt").names == ["blue.png"]
    assert run("thing", "--mode", "vector", "--templates", "templates.txt").names[0] == "blue.png"


def test_json_csv_and_lines_show_the_same(run: Run) -> None:
    """The same hits in every form; JSON says what was asked, by which side, and what the scores are made of."""
    asked = ['"red thing" + 0.5 * blue.png', "--boost", "year > 2020:0.1", "--where", "id < 4"]
    names = run(*asked).names
    document = json.loads(run(*asked, "--json").out)
    rows = list(csv.DictReader(io.StringIO(run(*asked, "--csv").out, newline="")))
    assert [Path(hit["uri"]).name for hit in document["hits"]] == names == [Path(row["uri"]).name for row in rows]
    assert document["mode"] == "hybrid"
    assert document["request"]["where"] == "id < 4"
    texts = [(part.get("text"), part["weight"]) for part in document["request"]["query"]]
    assert texts == [("red thing", 1), (None, 0.5)]
    boosted = next(hit for hit in document["hits"] if hit["metadata"]["year"] > 2020)
    assert boosted["parts"]["boost year > 2020"] == 0.1
    (note,) = json.loads(run("red", "--where", "year > 3000", "--json").out)["notes"]
    assert "filter" in note


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minus", "red"], "TEXT"),
        (['"red" + nowhere.png'], "nowhere.png"),
        (['"red" + blue'], "blue"),
        (["red", "--where", "year >"], "filter"),
        (["red", "--kind", "photo"], "photo"),
        (["red", "--mode", "fuzzy"], "fuzzy"),
        (["red", "--boost", "year > 2000"], "boost"),
        (["red", "--pin", "year"], "filter"),
        (["red", "--diversify", "2"], "diversify"),
        (["red", "--min-score", "nan"], "nan"),
        (["red", "--templates", "nowhere.txt"], "nowhere.txt"),
        (["red", "--synonyms", "red.png"], "UTF-8"),
        (["-i", "red.png", "--mode", "keyword"], "keyword"),
        (["red", "--json", "--csv"], "--csv"),
        (["red", "--minus", "red"], "cancel out"),
    ],
)
def test_search_refuses_what_it_cannot_do(run: Run, arguments: list[str], says: str) -> None:
    """Status 2, one message, no hits."""
    ran = run(*arguments)
    assert ran.status == 2
    assert says in ran.err.replace("\n", " ")
    assert ran.out == ""


def test_an_offset_gives_the_next_page(run: Run) -> None:
    """Ranks go on where the page before ended, in JSON and CSV; beyond the last hit a note says so."""
    whole = run("red", "-k", "5").names
    assert run("red", "-k", "2", "--offset", "2").names == whole[2:4]
    document = json.loads(run("red", "-k", "2", "--offset", "2", "--json").out)
    assert [hit["rank"] for hit in document["hits"]] == [3, 4]
    assert document["offset"] == 2
    rows = list(csv.DictReader(io.StringIO(run("red", "-k", "2", "--offset", "4", "--csv").out)))
    assert [row["rank"] for row in rows] == ["5"]
    past = run("red", "--offset", "9")
    assert (past.status, past.names) == (0, [])
    assert "5" in past.err
    assert run("red", "--offset", "-1").status == 2


def test_the_least_score_is_a_similarity_in_every_mode(run: Run) -> None:
    """Of the same items, whatever is searched; a value of another scale is refused."""
    for mode in ("keyword", "hybrid", "vector"):
        document = json.loads(run("red thing", "--mode", mode, "--min-score", "0.9", "--json").out)
        assert [Path(hit["uri"]).name for hit in document["hits"]] == ["red.png"]
        ran = run("red thing", "--mode", mode, "--min-score", "3")
        assert ran.status == 2
        assert "-1 to 1" in ran.err


def test_a_filter_of_the_wrong_type_is_noted(run: Run) -> None:
    """A text compared with numbers keeps nothing, and standard error says why."""
    ran = run("red", "--where", 'year >= "2020"')
    assert (ran.status, ran.out) == (0, "")
    assert "year" in ran.err
    assert "number" in ran.err
    assert run("red", "--where", "added_at >= 2024-05-01T10:00:00+02:00 and year >= 2020").names
