"""Metadata of images from the columns beside image and caption: read, refused, searched, brought up to date."""

from __future__ import annotations

import csv
import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.fakes import FakeClient
from twinspire.cli import main
from twinspire.errors import InputError
from twinspire.index import Index
from twinspire.ingest import Captions, FolderEvent, IngestOptions, OnConflict, add_images, find_images, watch

SPACE = "d" * 64


@pytest.fixture
def client() -> Any:
    """Make a fake client."""
    return FakeClient(SPACE)


@pytest.fixture
def index(tmp_path: Path) -> Any:
    """Make an empty index, open for writing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=3) as index:
        yield index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw images a, b and c."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (4, 4), (60 * number, 10, 10)).save(folder / name)
    return folder


def table(photos: Path, text: str, name: str = "table.csv") -> Captions:
    """Write a file beside the images and read it."""
    (photos / name).write_text(text, encoding="utf-8")
    return Captions.read(photos / name)


def own(index: Index, path: Path) -> dict[str, Any]:
    """Return an item's metadata that is not its file's, by keys named here."""
    (item,) = index.find(uri=str(path))
    return {key: value for key, value in item.metadata.items() if key in ("sku", "price", "in_stock", "tags")}


CELLS = {
    "3": 3,
    "-12": -12,
    " 3.50 ": 3.5,
    "1e3": 1000.0,
    "9223372036854775807": 2**63 - 1,
    "9223372036854775808": "9223372036854775808",
    "007": "007",
    "+1": "+1",
    ".5": ".5",
    "1,5": "1,5",
    "1e999": "1e999",
    "nan": "nan",
    "Infinity": "Infinity",
    "٣": "٣",
    "true": True,
    "False": False,
    "TRUE": True,
    "yes": "yes",
    "null": "null",
    " red  car ": "red  car",
    "9" * 5000: "9" * 5000,
}


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t")])
def test_cells_are_numbers_truth_or_text(photos: Path, name: str, separator: str) -> None:
    """JSON's numbers and true/false are read as such, of their type, an empty cell is left out, the rest is text."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(["image", *(f"k{place}" for place in range(len(CELLS))), "empty", "blank", ""])
    writer.writerow(["a.png", *CELLS, "", "  ", "nameless"])
    told = table(photos, out.getvalue(), name).metadata_of(photos / "a.png")
    assert {key: (type(value), value) for key, value in told.items()} == {
        f"k{place}": (type(value), value) for place, value in enumerate(CELLS.values())
    }


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@given(st.dictionaries(TEXT.map(lambda key: f"_{key}"), JSON, min_size=1))
def test_values_of_json_stay_what_they_are(tmp_path_factory: pytest.TempPathFactory, said: dict[str, Any]) -> None:
    """Whatever JSON holds, in lines and in a list, with a caption and without."""
    folder = tmp_path_factory.getbasetemp()
    row = {"image": "a.png", **said}
    for name, text in (
        ("t.jsonl", json.dumps(row)),
        ("t.json", json.dumps([{**row, "caption": "a cat"}])),
    ):
        told = table(folder, text, name).metadata_of(Path("/somewhere/a.png"))
        assert json.dumps(told) == json.dumps(said)


def test_captions_and_metadata_stand_beside_each_other(photos: Path) -> None:
    """Rows of an image are put together, however they name it; an image may have one, both or neither."""
    said = table(photos, f"path,caption,price,sku\na.png,a cat,3,\n./a.png,asleep,,x\n{photos / 'b.png'},,4,\n")
    assert (said.of(photos / "a.png"), said.metadata_of(photos / "a.png")) == (
        ["a cat", "asleep"],
        {"price": 3, "sku": "x"},
    )
    assert (said.of(photos / "b.png"), said.metadata_of(photos / "b.png")) == ([], {"price": 4})
    assert (said.of(photos / "c.png"), said.metadata_of(photos / "c.png")) == ((), {})


def test_cocos_fields_are_no_metadata(photos: Path) -> None:
    """COCO's form gives captions alone."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "license": 3}],
        "annotations": [{"image_id": 1, "caption": "a cat", "id": 7}],
    }
    said = table(photos, json.dumps(document), "coco.json")
    assert (said.of(photos / "a.png"), said.metadata_of(photos / "a.png")) == (["a cat"], {})


@pytest.mark.parametrize(
    ("name", "text", "place", "word"),
    [
        (
            "t.csv",
            "path,price\na.png,3\nb.png,4\n./a.png,5\n",
            "line 4",
            "price",
        ),
        (
            "t.json",
            '[{"path": "a", "x": 1}, {"path": "a", "x": true}]',
            "entry 1",
            "True",
        ),
        ("t.jsonl", '{"path": "a", "x": [NaN]}', "line 1", "JSON"),
        ("t.jsonl", '{"path": "a", "x": "\\ud800"}', "line 1", "JSON"),
        ("t.csv", "path,price, price\na.png,3,4\n", "line 1", "'price'"),
        ("t.csv", "path\na.png\n", "line 1", "columns"),
        ("t.csv", "path,price\na.png,\n", "t.csv", "captions"),
    ],
)
def test_metadata_that_cannot_be_is_refused(photos: Path, name: str, text: str, place: str, word: str) -> None:
    """Contradictions, what is no JSON, double columns, nothing said: the message names the place."""
    with pytest.raises(InputError) as caught:
        table(photos, text, name)
    assert place in str(caught.value)
    assert word in str(caught.value)


CONFLICTS = {
    "table": {"name": "Sunset", "width": 999, "table_bytes": 7, "price": 3, "overridden": ["name", "width"]},
    "file": {"name": "a.png", "width": 4, "price": 3},
    "prefix": {"name": "a.png", "width": 4, "table_name": "Sunset", "table_width": 999, "table_bytes": 7, "price": 3},
}
CONFLICT_KEYS = ("name", "width", "price", "table_name", "table_width", "table_bytes", "overridden")


def conflicting(index: Index, path: Path) -> dict[str, Any]:
    """Return what an item has of the keys in question."""
    (item,) = index.find(uri=str(path))
    return {key: value for key, value in item.metadata.items() if key in CONFLICT_KEYS}


@pytest.mark.parametrize("on_conflict", [*CONFLICTS, *OnConflict])
def test_a_column_that_the_file_has_too_counts_as_is_asked_for(
    index: Index, client: Any, photos: Path, on_conflict: str
) -> None:
    """By default the table's value counts; the keys by which changes are seen are the file's and prefixed at least."""
    (photos / "t.csv").write_text("path,name,width,bytes,price\na.png,Sunset,999,7,3\n")
    said = Captions.read(photos / "t.csv", on_conflict=on_conflict)
    assert add_images(index, client, [photos / "a.png"], IngestOptions(captions=said)).added == 1
    assert conflicting(index, photos / "a.png") == CONFLICTS[on_conflict]
    report = add_images(index, client, [photos / "a.png"], IngestOptions(captions=said))
    assert (report.already, report.changed) == (1, 0)


def test_the_tables_value_stays_when_the_file_changes_or_moves(index: Index, client: Any, photos: Path) -> None:
    """Also in runs without the table: what it says is the user's; the rest follows the file."""
    path, moved = photos / "a.png", photos / "z.png"
    add_images(index, client, [path])
    said = table(photos, "path,name,year\na.png,Sunset,1999\n")
    assert add_images(index, client, [path], IngestOptions(captions=said)).changed == 1
    path.rename(moved)
    assert add_images(index, client, [moved]).changed == 1
    assert (conflicting(index, moved)["name"], conflicting(index, moved)["width"]) == ("Sunset", 4)
    Image.new("RGB", (9, 9), (9, 9, 9)).save(moved)
    assert add_images(index, client, [moved]).changed == 1
    (item,) = index.find(uri=str(moved))
    assert [item.metadata[key] for key in ("name", "year", "width", "overridden")] == [
        "Sunset",
        1999,
        9,
        ["name", "year"],
    ]


def test_an_unknown_way_to_solve_conflicts_is_refused(photos: Path) -> None:
    """The message names those that there are."""
    with pytest.raises(InputError) as caught:
        Captions({}, folder=photos, on_conflict="mine")
    assert all(way in str(caught.value) for way in OnConflict)


def test_adding_again_changes_metadata_and_encodes_nothing(index: Index, client: Any, photos: Path) -> None:
    """New values come, values of which nothing is said stay, so do others' keys; the same again is idle."""
    pictures = find_images([photos])
    first = table(photos, "image,price,in_stock\na.png,3,true\nb.png,4,true\n")
    assert add_images(index, client, pictures, IngestOptions(captions=first)).added == 3
    (item,) = index.find(uri=str(photos / "a.png"))
    index.update(item.id, metadata={**item.metadata, "tags": ["mine"]})
    again = table(photos, "image,price,in_stock,caption\na.png,5,,\nb.png,4,false,a dog\n")
    report = add_images(index, client, pictures, IngestOptions(captions=again))
    assert (report.added, report.changed, report.captioned, report.already) == (0, 2, 1, 1)
    assert own(index, photos / "a.png") == {"price": 5, "in_stock": True, "tags": ["mine"]}
    assert own(index, photos / "b.png") == {"price": 4, "in_stock": False}
    assert index.find(uri=str(photos / "b.png"))[0].caption == "a dog"
    report = add_images(index, client, pictures, IngestOptions(captions=again))
    assert (report.changed, report.already, client.encoded_images) == (0, 3, 3)


def test_a_moved_image_takes_the_metadata_of_its_new_name(index: Index, client: Any, photos: Path) -> None:
    """It follows its file and what is said there, both in one run."""
    options = IngestOptions(captions=table(photos, "image,price\na.png,3\n"))
    add_images(index, client, [photos / "a.png"], options)
    (photos / "a.png").rename(photos / "z.png")
    report = add_images(
        index, client, [photos / "z.png"], IngestOptions(captions=table(photos, "image,price\nz.png,8\n"))
    )
    assert (report.changed, client.encoded_images, own(index, photos / "z.png")) == (1, 1, {"price": 8})
    assert index.find(uri=str(photos / "z.png"))[0].metadata["name"] == "z.png"


def test_a_new_caption_that_is_mixed_in_brings_its_metadata(index: Index, client: Any, photos: Path) -> None:
    """With a weight the image is encoded again and its metadata changes with it."""
    add_images(index, client, [photos / "a.png"])
    said = table(photos, "image,caption,price\na.png,a cat,3\n")
    report = add_images(index, client, [photos / "a.png"], IngestOptions(captions=said, caption_weight=0.5))
    assert (report.changed, report.captioned, own(index, photos / "a.png")) == (1, 1, {"price": 3})


def test_a_watch_takes_over_metadata_at_its_start(index: Index, client: Any, photos: Path) -> None:
    """New images get it, known ones are changed without encoding, a second start says nothing."""

    def catch_up(said: Captions) -> list[str]:
        stop, events = threading.Event(), list[FolderEvent]()
        watch(
            index,
            client,
            [photos],
            IngestOptions(captions=said, on_event=events.append),
            stop=stop,
            on_caught_up=stop.set,
            poll=True,
        )
        return sorted(f"{event.happened} {event.path.name}" for event in events)

    assert catch_up(table(photos, "image,price\na.png,3\n")) == ["added a.png", "added b.png", "added c.png"]
    new = table(photos, "image,price,caption\na.png,3,a cat\nb.png,4,\n")
    assert catch_up(new) == ["captioned a.png", "changed b.png"]
    assert (own(index, photos / "a.png"), own(index, photos / "b.png")) == ({"price": 3}, {"price": 4})
    assert (catch_up(new), client.encoded_images) == ([], 3)


def test_the_command_line_filters_and_boosts_by_columns(
    photos: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`index add --captions shop.csv` without captions, then `search --where` and `--boost` over its columns."""
    monkeypatch.chdir(photos.parent)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    def found(*options: str) -> list[str]:
        status, out, err = run("search", "idx", "a cat", "-b", tiny.bundle.path, "--json", *options)
        assert status == 0, err
        return [Path(hit["uri"]).name for hit in json.loads(out)["hits"]]

    Path("shop.csv").write_text("image,in_stock,price,sku\na.png,true,3,007\nb.png,false,4.5,x\nc.png,true,9,y\n")
    add = ("index", "add", "idx", "photos", "-b", tiny.bundle.path, "--captions", "shop.csv")
    status, out, err = run(*add, "--json")
    assert (status, json.loads(out)["added"], json.loads(out)["captioned"]) == (0, 3, 0), err
    assert sorted(found("--where", "in_stock = true")) == ["a.png", "c.png"]
    assert found("--where", "price > 3 and price <= 4.5") == ["b.png"]
    assert found("--where", "sku = '007'") == ["a.png"]
    for name in ("a", "b", "c"):
        price = {"a": "3", "b": "4.5", "c": "9"}[name]
        assert found("--boost", f"price = {price}:1.0")[0] == f"{name}.png"
    status, out, err = run(*add, "--fuse-captions", "0.3")
    assert (status, out) == (2, "")
    assert "--fuse-captions" in err
    Path("shop.csv").write_text("image,in_stock\na.png,false\n")
    assert run(*add)[0] == 0
    assert found("--where", "in_stock = true") == ["c.png"]
