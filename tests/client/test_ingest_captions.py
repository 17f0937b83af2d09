"""Captions of images: read from files, matched to paths, mixed into vectors; lines of text as items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from support.arrays import random_vectors, unit
from support.fakes import FakeClient
from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.ingest import Captions, IngestOptions, Sidecars, add_images, add_texts, find_images, fuse

SPACE = "c" * 64
DIM = 8


def vector_of(text: str) -> NDArray[np.float32]:
    """Return a unit vector that depends on the text alone."""
    return random_vectors(1, sum(text.encode()), dim=DIM)[0]


@pytest.fixture
def client() -> Any:
    """Make a fake client."""
    return FakeClient(
        SPACE, dim=DIM, image_vector=lambda pixels: vector_of(f"colour {pixels[0, 0].tolist()}"), text_vector=vector_of
    )


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Make an empty index, open for writing."""
    return Index.create(tmp_path / "index", space=SPACE, dim=DIM)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw images a, b and c; a second b below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "below/b.png")):
        Image.new("RGB", (4, 4), (60 * number, 10, 10)).save(folder / name)
    return folder


FORMS = {
    "captions.csv": 'file_name,caption\nphotos/a.png,"a cat, asleep"\nphotos/a.png,一只猫\nbelow/b.png,a dog\n',
    "captions.tsv": "image\ttext\nphotos/a.png\ta cat, asleep\nphotos/a.png\t一只猫\nbelow/b.png\ta dog\n",
    "captions.jsonl": '{"image": "photos/a.png", "captions": ["a cat, asleep", "一只猫"]}\n\n'
    '{"image": "below/b.png", "caption": "a dog"}\n',
    "captions.json": json.dumps(
        {
            "images": [{"id": 1, "file_name": "photos/a.png"}, {"id": "x", "file_name": "below/b.png"}],
            "annotations": [
                {"image_id": 1, "caption": "a cat, asleep"},
                {"image_id": "x", "caption": "a dog"},
                {"image_id": 1, "caption": "一只猫"},
            ],
        }
    ),
    "rows.json": json.dumps(
        [
            {"image": "photos/a.png", "caption_1": "a cat, asleep", "caption_2": "一只猫"},
            {"image": "below/b.png", "caption": "a dog"},
        ]
    ),
    "cells.csv": 'image,captions\nphotos/a.png,"[""a cat, asleep"", ""一只猫""]"\nbelow/b.png,a dog\n',
    "dataset_coco.json": json.dumps(
        {
            "images": [
                {
                    "filename": name,
                    "filepath": "elsewhere",
                    "split": "test",
                    "sentences": [{"raw": caption} for caption in captions],
                }
                for name, captions in (("photos/a.png", ["a cat, asleep", "一只猫"]), ("below/b.png", ["a dog"]))
            ]
        }
    ),
    "results.token": "photos/a.png#0\ta cat, asleep\nphotos/a.png#1\t一只猫\nbelow/b.png#0\ta dog\n",
    "results.csv": "image_name| comment_number| comment\nphotos/a.png| 0| a cat, asleep\nphotos/a.png| 1| 一只猫\n"
    "below/b.png| 0| a dog\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_captions_are_read_from_every_form(photos: Path, name: str) -> None:
    """Tables, COCO's, Karpathy's and Flickr30k's files: two captions of one image, one of another, none of the rest."""
    (photos.parent / name).write_text(FORMS[name], encoding="utf-8")
    captions = Captions.read(photos.parent / name)
    said = {path.relative_to(photos).as_posix(): list(captions.of(path)) for path in find_images([photos])}
    assert said == {"a.png": ["a cat, asleep", "一只猫"], "b.png": [], "below/b.png": ["a dog"], "c.png": []}


def test_the_longest_end_of_a_path_names_a_image(photos: Path) -> None:
    """A bare name fits images in any folder, a longer end wins, an absolute path fits one alone."""
    names = {"b.png": ["any b"], "below/b.png": ["the lower b"], str(photos / "c.png"): ["exactly c"]}
    captions = Captions(names, folder=Path("/elsewhere"))
    assert captions.of(photos / "b.png") == ["any b"]
    assert captions.of(photos / "below" / "b.png") == ["the lower b"]
    assert captions.of(photos / "c.png") == ["exactly c"]
    assert captions.of(Path("/other/c.png")) == ()


def test_a_path_from_the_files_folder_names_that_image_alone(photos: Path) -> None:
    """`b.png` beside the captions is that file, not one of the same name below."""
    captions = Captions({"b.png": ["mine"]}, folder=photos)
    assert (captions.of(photos / "b.png"), captions.of(photos / "below" / "b.png")) == (["mine"], ())


def test_sidecars_are_text_files_beside_the_images(photos: Path) -> None:
    """`c.png.txt` before `c.txt`, a caption on each line; without one there is none; no UTF-8 is an error."""
    (photos / "a.txt").write_text("\ufeffa cat\n\n asleep \n")
    (photos / "c.txt").write_text("not this")
    (photos / "c.png.txt").write_text("this")
    (photos / "below" / "b.txt").write_bytes(b"\xff\xfe")
    sidecars = Sidecars()
    assert sidecars.of(photos / "a.png") == ["a cat", "asleep"]
    assert sidecars.of(photos / "c.png") == ["this"]
    assert sidecars.of(photos / "b.png") == ()
    with pytest.raises(InputError, match="UTF-8"):
        sidecars.of(photos / "below" / "b.png")


@pytest.mark.parametrize(
    ("name", "content", "place", "word"),
    [
        ("a.csv", "picture,caption\na.png\n", "line 2", "cells"),
        ("a.csv", "photo,words\na.png,x\n", "line 1", "photo"),
        ("a.csv", "picture,caption\n", "a.csv", "captions"),
        ("a.csv", 'picture,caption\na.png,"x\n', "a.csv", "CSV"),
        ("a.jsonl", '{"image": "a.png"}\n', "line 1", "columns"),
        ("a.jsonl", '{"image": 3, "caption": "x"}\n', "line 1", "'image'"),
        ("a.jsonl", "[1]\n", "a.jsonl", "object"),
        ("a.jsonl", "nonsense\n", "line 1", "JSON"),
        ("a.json", '{"images": []}', "a.json", "COCO"),
        ("a.json", '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', "a.json", "'images'"),
        ("a.json", "3", "a.json", "objects"),
        ("a.xml", "<a/>", "a.xml", ".jsonl"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused(
    tmp_path: Path, name: str, content: str, place: str, word: str
) -> None:
    """The message names the place and says what is expected."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        Captions.read(tmp_path / name)
    assert place in str(caught.value)
    assert word in str(caught.value)


def test_a_missing_file_of_captions_is_said(tmp_path: Path) -> None:
    """So is a folder and a file that is not UTF-8."""
    (tmp_path / "latin.csv").write_bytes(b"picture,caption\na.png,caf\xe9\n")
    for path, word in (("no.csv", r"no\.csv"), (".", "directory"), ("latin.csv", "UTF-8")):
        with pytest.raises(InputError, match=word):
            Captions.read(tmp_path / path)


def test_fused_vectors_are_the_formulas(index: Index, client: Any, photos: Path) -> None:
    """A captioned image's vector is the unit of 0.7 image + 0.3 mean caption, another's its own."""
    captions = Captions({"a.png": ["one", "two"], "c.png": ["three"]}, folder=Path("/"))
    report = add_images(
        index, client, find_images([photos]), IngestOptions(captions=captions, caption_weight=0.3, batch=3)
    )
    assert (report.added, report.captioned) == (4, 2)
    (hits,) = index.search(vector_of("any")[None], k=4, space=SPACE)
    by_name = {Path(hit.uri).relative_to(photos).as_posix(): hit for hit in hits}
    said = {"a.png": ["one", "two"], "c.png": ["three"], "b.png": [], "below/b.png": []}
    for number, name in enumerate(("a.png", "b.png", "c.png", "below/b.png")):
        expected = vector_of(f"colour {[60 * number, 10, 10]}").astype(np.float64)
        if said[name]:
            mean = np.mean([vector_of(text) for text in said[name]], axis=0, dtype=np.float64)
            expected = 0.7 * expected + 0.3 * mean / np.linalg.norm(mean)
            expected /= np.linalg.norm(expected)
        hit = by_name[name]
        assert hit.score == pytest.approx(expected @ vector_of("any"), abs=1e-6)
        assert hit.caption == ("\n".join(said[name]) or None)
        assert hit.metadata.get("fused_captions") == (0.3 if said[name] else None)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_captions_come_to_images_that_are_there(index: Index, client: Any, photos: Path, weight: Any) -> None:
    """A second run with captions gives them to known images, mixed in where a weight came; a third is idle."""
    add_images(index, client, find_images([photos]))
    captions = Captions({"a.png": ["one"]}, folder=Path("/"))
    report = add_images(index, client, find_images([photos]), IngestOptions(captions=captions, caption_weight=weight))
    assert (report.added, report.already, report.changed, report.captioned) == (0, 3, 1, 1)
    (item,) = index.find(uri=str(photos / "a.png"))
    expected = vector_of("colour [0, 10, 10]") + (vector_of("one") if weight else 0)
    np.testing.assert_allclose(index.vectors([item.id])[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert (item.caption, item.metadata.get("fused_captions")) == ("one", weight)
    report = add_images(index, client, find_images([photos]), IngestOptions(captions=captions, caption_weight=weight))
    assert (report.already, report.changed) == (4, 0)


def test_captions_alone_leave_the_vectors_as_they_are(index: Index, client: Any, photos: Path) -> None:
    """Without a weight nothing is encoded but images."""
    captions = Captions({"a.png": ["one"]}, folder=Path("/"))
    assert add_images(index, client, [photos / "a.png"], IngestOptions(captions=captions)).captioned == 1
    assert client.encoded_texts == []
    (hits,) = index.search(vector_of("colour [0, 10, 10]")[None], k=1, space=SPACE)
    assert (hits[0].caption, hits[0].score) == ("one", pytest.approx(1, abs=1e-6))


@given(
    arrays.arrays(np.float32, (5, DIM), elements=st.floats(-1, 1, width=32)),
    arrays.arrays(np.float32, (5, DIM), elements=st.floats(-1, 1, width=32)),
    st.floats(0.01, 0.49),
)
def test_fused_vectors_are_unit_and_between(a: NDArray[np.float32], b: NDArray[np.float32], weight: float) -> None:
    """Whatever the vectors: of length 1, float32, and nearer to the image below a weight of a half."""
    pictures, captions = (unit(rows + np.eye(5, DIM, dtype=np.float32) * 9) for rows in (a, b))
    fused = fuse(pictures, captions, weight)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)
    assert ((fused * pictures).sum(1) >= (fused * captions).sum(1) - 1e-5).all()


@pytest.mark.parametrize("weight", [0, 1, -0.1, 1.5, float("nan"), "0.3", True])
def test_a_weight_that_is_none_is_refused(index: Index, client: Any, photos: Path, weight: Any) -> None:
    """Before anything is read."""
    with pytest.raises(InputError, match=r"\bweight\b"):
        add_images(index, client, [photos / "a.png"], IngestOptions(captions=Sidecars(), caption_weight=weight))
    assert len(index) == 0


def test_fusing_needs_captions(index: Index, client: Any, photos: Path) -> None:
    """A weight without a source is an InputError."""
    with pytest.raises(InputError, match=r"\bcaptions\b"):
        add_images(index, client, [photos / "a.png"], IngestOptions(caption_weight=0.3))


def test_opposite_vectors_have_no_mean() -> None:
    """At a weight of a half they cancel each other out, which is said."""
    with pytest.raises(InputError, match="cancel"):
        fuse(np.eye(1, DIM, dtype=np.float32), -np.eye(1, DIM, dtype=np.float32), 0.5)


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_lines_of_a_file_become_items_of_kind_text(index: Index, client: Any, tmp_path: Path, batch: int) -> None:
    """Each line with its words as the caption and its place as the uri; the same words are encoded once."""
    path = tmp_path / "lines.txt"
    path.write_text("\ufeffa red cat\n\n  红猫 \r\na red cat\na dog", encoding="utf-8")
    steps: list[int] = []
    report = add_texts(index, client, [path], batch=batch, on_progress=steps.append)
    assert (report.added, report.already, report.failed, sum(steps)) == (4, 0, [], 4)
    assert sorted(client.encoded_texts) == ["a dog", "a red cat", "红猫"]
    (hits,) = index.search(vector_of("红猫")[None], k=3, space=SPACE)
    assert (hits[0].uri, hits[0].kind, hits[0].caption) == (f"{path}#3", ItemKind.TEXT, "红猫")
    assert hits[0].metadata == {"name": "lines.txt", "folder": str(tmp_path), "line": 3}
    np.testing.assert_array_equal(*index.vectors([index.find(uri=f"{path}#{line}")[0].id for line in (1, 4)]))
    generation = index.generation
    report = add_texts(index, client, [path], batch=batch)
    assert (report.added, report.already, index.generation) == (0, 4, generation)


def lines_of(index: Index, path: Path) -> dict[int, tuple[int, str | None]]:
    """Return id and words of a text file's items by line, and check their vectors."""
    found = {}
    for line in range(1, 12):
        for item in index.find(uri=f"{path}#{line}"):
            assert (item.metadata["line"], item.metadata["name"]) == (line, path.name)
            np.testing.assert_allclose(index.vectors([item.id])[0], vector_of(item.caption or ""), atol=1e-6)
            assert line not in found
            found[line] = item.id, item.caption
    return found


def test_lines_keep_their_items_when_a_file_is_edited_or_moved(index: Index, client: Any, tmp_path: Path) -> None:
    """A line put in before the others moves them, words that are no more go; only new words are encoded."""
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\nthree\ntwo\n")
    add_texts(index, client, [path])
    before = {words: number for number, words in lines_of(index, path).values()}
    client.encoded_texts.clear()
    path.write_text("zero\none\ntwo\nTHREE\ntwo\n")
    report = add_texts(index, client, [path], batch=2)
    assert (report.added, report.changed, report.removed, report.already) == (2, 3, 1, 0)
    assert sorted(client.encoded_texts) == ["THREE", "zero"]
    after = lines_of(index, path)
    assert [words for _, words in after.values()] == ["zero", "one", "two", "THREE", "two"]
    assert after[2] == (before["one"], "one")
    path.write_text("zero\nONE\ntwo\nTHREE\ntwo\n")
    report = add_texts(index, client, [path])
    assert (report.changed, report.already, lines_of(index, path)[2]) == (1, 4, (before["one"], "ONE"))
    after = lines_of(index, path)
    moved = tmp_path / "moved.txt"
    path.rename(moved)
    report = add_texts(index, client, [moved])
    assert (report.added, report.changed, lines_of(index, moved)) == (0, 5, after)
    assert len(index) == 5


def test_the_same_line_in_two_files_is_two_items(index: Index, client: Any, tmp_path: Path) -> None:
    """In one run and in two; encoded once."""
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in paths:
        path.write_text("the same words")
    assert add_texts(index, client, paths[:2]).added == 2
    assert add_texts(index, client, paths).added == 1
    assert client.encoded_texts == ["the same words"]
    assert len({number for path in paths for number, _ in lines_of(index, path).values()}) == 3


def test_a_image_and_a_text_of_the_same_content_are_two_items(index: Index, client: Any, photos: Path) -> None:
    """Texts and images stand beside each other in one index."""
    add_images(index, client, [photos / "a.png"])
    (photos / "words.txt").write_text("a cat")
    add_texts(index, client, [photos / "words.txt"])
    assert len(index) == 2


def test_a_text_file_that_cannot_be_used_is_refused(index: Index, client: Any, tmp_path: Path) -> None:
    """Not there, a folder, not UTF-8, empty, none at all, a path for a list."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text(" \n\n")
    for paths, word in (
        ([tmp_path / "no.txt"], r"no\.txt"),
        ([tmp_path], "directory"),
        ([tmp_path / "latin.txt"], "UTF-8"),
        ([tmp_path / "empty.txt"], r"empty\.txt"),
        ([], "path"),
        (tmp_path / "empty.txt", "list"),
    ):
        with pytest.raises(InputError, match=word):
            add_texts(index, client, paths)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch"):
        add_texts(index, client, [tmp_path / "empty.txt"], batch=0)
