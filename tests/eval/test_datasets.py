"""Data sets: what each published form is read as, and what a user is told about every file that is none."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.data import PHOTO_CAPTIONS, PHOTOS, VAL2017_CAPTIONS
from twinspire.errors import InputError
from twinspire_eval.datasets import (
    DATASETS,
    Caption,
    CaptionedImages,
    DatasetOptions,
    LabelledQuery,
    open_dataset,
    register_dataset,
)
from twinspire_eval.scenes import Colour, Language, ObjectType, Query, Split, draw_dataset, scene_set

IMAGES = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}]
SAID = [{"image_id": 9, "caption": "two"}, {"image_id": 7, "caption": "one "}, {"image_id": 7, "caption": "uno"}]
Put = Callable[[str, Any], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file of captions, JSON where it is no text, in a folder with the images images/a.jpg and b.jpg."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return path

    return write


def _content(data: CaptionedImages) -> list[tuple[str, str, list[str]]]:
    """Ids, names of files and captions."""
    return [
        (name, Path(str(picture)).name, [caption.text for caption in said])
        for name, picture, said in zip(data.ids, data.images, data.captions, strict=True)
    ]


def _karpathy(*splits: str, **more: Any) -> dict[str, Any]:
    names = ("a.jpg", "b.jpg")
    return {
        "dataset": "coco",
        "images": [
            {"filename": names[place % 2], "split": split, "sentences": [{"raw": "one"}, {"raw": "uno"}], **more}
            for place, split in enumerate(splits)
        ],
    }


FLICKR = [("a.jpg", "a.jpg", ["one", "uno"]), ("b.jpg", "b.jpg", ["two"])]
READ = [
    ("captions_val2017.json", {"images": IMAGES, "annotations": SAID}, None, "coco"),
    ("results_20130124.token", "a.jpg#0\tone\na.jpg#1\tuno \nb.jpg#0\ttwo\n", FLICKR, "flickr30k"),
    ("Flickr8k.token.txt", "a.jpg#0\tone\r\na.jpg#1\tuno\r\nb.jpg#0\ttwo\r\n", FLICKR, "flickr30k"),
    (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 4   uno\nb.jpg| 0| two\n",
        FLICKR,
        "flickr30k",
    ),
    ("captions.txt", "image,caption\na.jpg,one\na.jpg,uno\nb.jpg,two\n", FLICKR, "table"),
    ("some.csv", "\ufeffcaption,note,image\none,1,a.jpg\ntwo,3,b.jpg\n\nuno,2,a.jpg\n", FLICKR, "table"),
    ("some.csv", 'image,captions\na.jpg,"[""one"", ""uno""]"\nb.jpg,two\n', FLICKR, "table"),
    ("some.tsv", "path\ttext\na.jpg\tone\na.jpg\tuno\nb.jpg\ttwo\n", FLICKR, "table"),
    (
        "some.jsonl",
        '{"file_name": "a.jpg", "captions": ["one", "uno"]}\n\n{"picture": "b.jpg", "text": "two"}',
        FLICKR,
        "table",
    ),
    (
        "some_captions.json",
        [{"file": "a.jpg", "captions": ["one", "uno"]}, {"file": "b.jpg", "captions": ["two"]}],
        FLICKR,
        "table",
    ),
]


@pytest.mark.parametrize(("name", "content", "expected", "form"), READ)
def test_a_form_is_told_by_its_file(put: Put, name: str, content: Any, expected: Any, form: str) -> None:
    """A path alone gives images in the file's order, each with its own captions, found in images/."""
    expected = expected or [("7", "a.jpg", ["one", "uno"]), ("9", "b.jpg", ["two"])]
    path = put(name, content)
    data = open_dataset(path)
    assert _content(data) == expected
    assert data.name == f"{name} ({form})"
    assert _content(open_dataset(f"{form}:{path}")) == expected
    assert _content(open_dataset(path.parent)) == expected, "the one file of captions in a folder"


def test_every_data_set_is_described() -> None:
    """The usages that errors and the help show name what they describe."""
    assert list(DATASETS) == [
        *("scenes", "coco", "karpathy", "flickr30k", "table", "captions"),
        *("coco-cn", "flickr30k-cn", "muge", "xflickrco", "xm3600"),
    ]
    assert all(dataset.usage.startswith(f"{name}:") for name, dataset in DATASETS.items())


class Squares:
    """A data set of grey squares."""

    name = "toy"
    usage = "toy:COUNT, grey squares"

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Make COUNT squares, or as many as the limit says."""
        data = _numbered(int(argument))
        return data if options.limit is None else data.sample(options.limit, seed=options.seed)


def test_a_data_set_is_added_by_one_class() -> None:
    """Once registered it is opened by its name, with the common options, and named where another one is unknown."""
    register_dataset(Squares())
    try:
        assert open_dataset("toy:5", limit=3).ids == _numbered(5).sample(3).ids
        with pytest.raises(InputError, match="toy:COUNT"):
            open_dataset("nowhere")
    finally:
        del DATASETS["toy"]


def test_karpathy_wants_a_split_chosen(put: Put) -> None:
    """Most of such a file is training data: nobody measures on it by oversight."""
    path = put("dataset_coco.json", _karpathy("test", "train", filepath="val2014"))
    assert _content(open_dataset(path, split="test")) == [("a.jpg", "a.jpg", ["one", "uno"])]
    assert len(open_dataset(path, split="all")) == 2
    assert open_dataset(path, split="test").name == "dataset_coco.json (karpathy), test"
    with pytest.raises(InputError, match="--split"):
        open_dataset(path)
    with pytest.raises(InputError, match="'dev'"):
        open_dataset(path, split="dev")


def test_images_are_found_as_archives_are_unpacked(put: Put, tmp_path: Path) -> None:
    """COCO's captions lie in annotations/, its images in val2017/ beside it; Karpathy's name the folder."""
    (tmp_path / "images").rename(tmp_path / "val2017")
    path = put("annotations/captions_val2017.json", {"images": IMAGES, "annotations": SAID})
    assert open_dataset(path).images[0] == tmp_path / "val2017/a.jpg"
    assert _content(open_dataset(tmp_path)) == _content(open_dataset(path))
    karpathy = put("dataset_coco.json", _karpathy("test", filepath="val2017"))
    assert open_dataset(karpathy, split="test").images[0] == tmp_path / "val2017/a.jpg"
    assert open_dataset(path, images=tmp_path / "val2017").images[1] == tmp_path / "val2017/b.jpg"


def test_a_relative_path_finds_the_folder_beside_it(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from within the captions' folder, too, the images lie beside it."""
    put("annotations/captions_some.json", {"images": IMAGES, "annotations": SAID})
    monkeypatch.chdir(tmp_path / "annotations")
    assert Path(str(open_dataset("captions_some.json").images[0])).samefile(tmp_path / "images/a.jpg")


def test_languages_stand_beside_captions(put: Put) -> None:
    """A data set may say everything in two languages; captions of one come with their images' positions."""
    rows = [
        {"image": "a.jpg", "captions": ["one", "uno"], "language": "en"},
        {"image": "a.jpg", "caption": "一", "language": "zh"},
        {"image": "b.jpg", "caption": "二", "language": "zh"},
    ]
    data = open_dataset(put("rows.json", rows))
    assert data.languages == ("en", "zh")
    assert (data.captions_in("en").texts, data.captions_in("en").owners.tolist()) == (["one", "uno"], [0, 0])
    assert (data.captions_in("zh").texts, data.captions_in("zh").owners.tolist()) == (["一", "二"], [0, 1])
    with pytest.raises(InputError, match="'de'"):
        data.captions_in("de")
    with pytest.raises(InputError, match="'en'"):
        open_dataset(put("some.json", [{"image": "a.jpg", "caption": "x"}])).captions_in("en")


def test_rows_may_tell_splits(put: Put) -> None:
    """A table's column `split` chooses rows; without a choice all are taken."""
    path = put("some.csv", "image,split,caption\na.jpg,train,one\nb.jpg,test,two\n")
    assert len(open_dataset(path)) == 2
    assert open_dataset(path, split="test").ids == ("b.jpg",)


BROKEN: list[tuple[str, Any, str]] = [
    (
        "c.json",
        {"images": IMAGES, "annotations": SAID[:1]},
        "id 7",
    ),
    (
        "c.json",
        {"images": IMAGES, "annotations": [{"image_id": "7", "caption": "x"}]},
        "'7'",
    ),
    ("c.json", {"images": IMAGES, "annotations": [{"image_id": 7, "bbox": []}]}, "captions_"),
    ("c.json", {"images": IMAGES, "annotations": [{"image_id": 7}]}, "image_id"),
    ("c.json", {"images": IMAGES, "annotations": [{"image_id": 7, "caption": None}]}, "null"),
    (
        "c.json",
        {"images": IMAGES, "annotations": [{"image_id": 7, "caption": " "}]},
        "empty",
    ),
    ("c.json", {"images": {}, "annotations": SAID}, "'images'"),
    ("c.json", {"images": [], "annotations": SAID}, "'images'"),
    ("c.json", {"images": [1], "annotations": SAID}, "number"),
    ("c.json", {"images": [{"id": 7}], "annotations": SAID}, "'file_name'"),
    (
        "c.json",
        {"images": [{"id": True, "file_name": "a.jpg"}], "annotations": SAID},
        "true",
    ),
    ("c.json", {"images": [{"id": 7, "file_name": ""}], "annotations": SAID}, "empty"),
    ("c.json", {"images": [*IMAGES, IMAGES[0]], "annotations": SAID}, "image 2"),
    (
        "c.json",
        {"images": [IMAGES[0] | {"file_name": "z.jpg"}], "annotations": SAID[1:]},
        "/images/",
    ),
    ("c.json", {"images": [IMAGES[0] | {"file_name": "z" * 300}], "annotations": SAID[1:]}, "zzz"),
    ("c.json", {"images": [IMAGES[0] | {"file_name": "a\0"}], "annotations": SAID[1:]}, r"a\\x00"),
    (
        "c.json",
        {"images": [IMAGES[0], IMAGES[1] | {"file_name": "z.jpg"}], "annotations": SAID},
        "z.jpg",
    ),
    ("c.json", {"annotations": SAID}, "COCO"),
    ("c.json", "{'a'", "column 2"),
    ("c.json", "", "JSON"),
    ("c.json", "3", "number"),
    ("c.json", "9" * 5_000, "digits"),
    ("c.json", "[" * 100_000, "nested"),
    ("c.json", b"\xff\xfe", "UTF-8"),
    ("c.json", [], "rows"),
    ("c.json", [1], "number"),
    ("c.json", [{"a": 1}], "column"),
    (
        "k.json",
        _karpathy("test") | {"images": [{"filename": "a.jpg", "split": "test", "sentences": []}]},
        "'raw'",
    ),
    (
        "k.json",
        _karpathy("test") | {"images": [{"filename": "a.jpg", "split": "test", "sentences": ["x"]}]},
        "'raw'",
    ),
    (
        "k.json",
        {"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": 3}]}]},
        "number",
    ),
    ("k.json", {"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}]}, "'split'"),
    ("f.token", "a.jpg\tone", "line 1"),
    ("f.token", "a.jpg#0\tone\na.jpg#1\t ", "empty"),
    ("f.token", "\n", "captions"),
    ("f.csv", "image_name| comment_number| comment\na.jpg| x| one", "line 2"),
    ("f.csv", "image_name| comment_number| comment\n", "captions"),
    ("t.csv", "image,caption\na.jpg,one,two\n", "cells"),
    ("t.csv", "a.jpg,one\n", "column"),
    ("t.csv", "image,note\na.jpg,one\n", "note"),
    ("t.csv", "image,caption\n", "rows"),
    ("t.csv", "image,path,caption\n", "columns"),
    ("t.csv", "image,caption,caption\n", "'caption'"),
    ("t.csv", "image,caption\na.jpg,\n", "empty"),
    ("t.csv", "image,caption\n,one\n", "'image'"),
    ("t.csv", "image,captions\na.jpg,[one\n", "JSON"),
    ("t.csv", 'image,caption\na.jpg,"one\n', "CSV"),
    (
        "t.csv",
        "image,split,caption\na.jpg,test,x\na.jpg,train,y\n",
        "train",
    ),
    ("t.csv", "image,id,caption\na.jpg,1,x\nb.jpg,1,y\n", "'1'"),
    ("j.jsonl", "{", "JSON"),
    ("j.jsonl", "[[" * 50_000, "JSON"),
    ("j.jsonl", "[1]", "list"),
    ("j.jsonl", '{"image": "a.jpg", "captions": []}', "'captions'"),
    ("j.jsonl", '{"image": "a.jpg", "captions": ["x", 3]}', "number"),
    ("j.jsonl", '{"image": 3, "caption": "x"}', "'image'"),
    ("j.jsonl", '{"image": "a.jpg", "caption": "x", "id": {}}', "'id'"),
    ("j.jsonl", '{"image": "a.jpg", "caption": "x", "language": 3}', "'language'"),
    ("x.parquet", "PAR1", "flickr30k:"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_told_as_such(put: Put, name: str, content: Any, message: str) -> None:
    """What came, where it stands, what was expected."""
    path = put(name, content)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(path, split="all")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nowhere", {}, "coco:PATH"),
        ("", {}, "''"),
        ("a\0b", {}, r"a\\x00b"),
        ("z" * 5_000, {}, "zzz"),
        ("bogus:/tmp", {}, "bogus:/tmp"),
        ("coco:", {}, "'coco:'"),
        ("coco:nowhere", {}, "nowhere"),
        ("coco:~nobody-of-that-name/x", {}, "nobody-of-that-name"),
        ("scenes:many", {}, "scenes:many"),
        ("scenes:3:" + "9" * 30, {}, "scenes:COUNT"),
        ("scenes:0", {}, "10,000"),
        ("scenes:10001", {}, "10,000"),
        ("scenes:3", {"split": "test"}, "heldout"),
        ("scenes:3", {"images": Path("/tmp")}, "/tmp"),
        ("scenes:3", {"limit": 0}, "limit"),
        ("scenes:3", {"seed": -1}, "seed"),
        ("FOLDER", {}, r"\*\.jsonl"),
        ("coco:FOLDER", {}, r"\*captions\*\.json"),
    ],
)
def test_what_names_no_data_set_is_an_error(tmp_path: Path, spec: str, options: dict[str, Any], message: str) -> None:
    """The message lists what may be written."""
    with pytest.raises(InputError, match=message):
        open_dataset(spec.replace("FOLDER", str(tmp_path)), **options)


def test_other_forms_in_front_are_errors(put: Put, tmp_path: Path) -> None:
    """A form that is named is taken at its word."""
    karpathy = put("dataset_coco.json", _karpathy("test"))
    coco = put("captions.json", {"images": IMAGES, "annotations": SAID})
    for spec, message in [
        (f"coco:{karpathy}", "COCO"),
        (f"karpathy:{coco}", "'filename'"),
        (f"table:{coco}", "list"),
        (f"flickr30k:{coco}", "JSON"),
        (str(tmp_path), "dataset_coco.json"),
    ]:
        with pytest.raises(InputError, match=message):
            open_dataset(spec)
    with pytest.raises(InputError, match="'test'"):
        open_dataset(coco, split="test")
    with pytest.raises(InputError, match="nowhere"):
        open_dataset(coco, images=tmp_path / "nowhere")


def test_scenes_are_those_that_are_drawn_to_a_folder(tmp_path: Path) -> None:
    """The same seed gives the same JPEG files and captions, and the folder is a data set too."""
    drawn = draw_dataset(tmp_path / "scenes", 6, seed=5, split=Split.HELDOUT)
    data, folder = open_dataset("scenes:6:5"), open_dataset(tmp_path / "scenes")
    files = sorted((tmp_path / "scenes").glob("*.jpg"))
    assert list(data.images) == [file.read_bytes() for file in files]
    assert [Path(str(picture)) for picture in folder.images] == files
    assert data.captions == folder.captions
    assert data.captions_in("zh").texts == [
        scene.captions[language] for scene in drawn for language in scene.captions if language == "zh"
    ]
    assert data.name == "6 heldout scenes, seed 5"
    assert data.languages == ("en", "zh")
    assert open_dataset("scenes:6:5", split="train").captions != data.captions


def test_the_scenes_of_the_samples_figures_are_the_default() -> None:
    """`scenes:5000` is held out and of the seed that the sample's figures name."""
    expected = scene_set(12, seed=101, split=Split.HELDOUT)
    assert [said[0].text for said in open_dataset("scenes:12").captions] == [scene.captions["en"] for scene in expected]
    assert len(open_dataset("scenes")) == 1_000


def test_images_are_drawn_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening draws nothing; a slice draws only what is taken from it."""
    drawn: list[int] = []
    real = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *given, **options: drawn.append(1) or real(*given, **options))
    data = open_dataset("scenes:50")
    part = data.images[10:20]
    assert (len(part), len(drawn)) == (10, 0)
    raw = part[-1]
    assert len(drawn) == 1
    assert isinstance(raw, bytes)
    assert Image.open(io.BytesIO(raw)).size == (256, 256)
    with pytest.raises(IndexError):
        part[10]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_sample_is_a_part_in_order(count: int, limit: int, seed: int) -> None:
    """As many as were asked for, none twice, in their order, with their own captions, the same for a seed."""
    data = _numbered(count)
    part = data.sample(limit, seed=seed)
    positions = [int(name) for name in part.ids]
    assert len(positions) == min(limit, count)
    assert positions == sorted(set(positions))
    assert [said[0].text for said in part.captions] == [f"picture {position}" for position in positions]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in part.images] == positions
    assert part.ids == data.sample(limit, seed=seed).ids
    assert (part.name == data.name) == (limit >= count)


def test_a_limit_draws_before_images_are_looked_for(put: Put) -> None:
    """Of a file that lists more images than are there, those that were drawn must be there, and it says so."""
    path = put("some.csv", "image,caption\na.jpg,one\nb.jpg,two\n")
    data = open_dataset(path, limit=1, seed=3)
    assert data.ids == open_dataset(path).sample(1, seed=3).ids
    assert data.name == "some.csv (table), 1 of 2 sampled with seed 3"


def test_scenes_have_a_query_for_each_object_and_colour_that_they_show() -> None:
    """In each language; right are all scenes of which `Query` is true, and no two queries are alike."""
    scenes = [entry.scene for entry in scene_set(60, seed=9, split=Split.HELDOUT)]
    shown = {(group.kind, group.colour) for scene in scenes for group in scene.groups}
    data = open_dataset("scenes:60:9")
    expected = [
        tuple(place for place, scene in enumerate(scenes) if Query(kind, colour).matches(scene))
        for kind, colour in product(ObjectType, Colour)
        if (kind, colour) in shown
    ]
    for language in Language:
        queries = data.queries_in(language)
        assert [query.relevant for query in queries] == expected
        assert len({query.text for query in queries}) == len(shown)
    assert all(query.text.startswith(("a ", "an ")) for query in data.queries_in("en"))
    assert all(query.text.startswith("一") for query in data.queries_in("zh"))


def test_queries_keep_their_words_in_any_scenes() -> None:
    """Queries of other scenes differ in which images are right, never in words; many scenes show all 192 pairs."""
    many = {query.text for query in open_dataset("scenes:2000:3").queries}
    assert len(many) == 2 * 192
    assert {query.text for query in open_dataset("scenes:30:8").queries} < many


def test_queries_follow_a_sample() -> None:
    """A limit and a sample find the same images right, and leave out queries that lost all of theirs."""
    data = open_dataset("scenes:60:9")
    part = data.sample(12, seed=4)
    assert part.queries == open_dataset("scenes:60:9", limit=12, seed=4).queries
    kept = set(part.ids)
    whole = {query.text: {data.ids[place] for place in query.relevant} & kept for query in data.queries}
    found = {query.text: {part.ids[place] for place in query.relevant} for query in part.queries}
    assert found == {text: ids for text, ids in whole.items() if ids}


def test_queries_have_a_fingerprint_of_their_own() -> None:
    """That of the captions stays what it is without queries; another word or right image gives the queries another."""
    data = _numbered(3)
    asked = replace(data, queries=(LabelledQuery("low", "en", (0, 1)),))
    assert (asked.sha256, data.queries_sha256) == (data.sha256, None)
    others = [LabelledQuery("high", "en", (0, 1)), LabelledQuery("low", "en", (0, 2)), LabelledQuery("low", None, (0,))]
    assert len({asked.queries_sha256, *(replace(data, queries=(other,)).queries_sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "relevant", "message"),
    [
        (" ", (0,), "empty"),
        ("low", (), "one or more"),
        ("low", (1, 0), "ascending"),
        ("low", (1, 1), "ascending"),
        ("low", (3,), "0 to 2"),
        ("low", (-1, 0), "0 to 2"),
    ],
)
def test_queries_are_checked(text: str, relevant: tuple[int, ...], message: str) -> None:
    """Words, and the positions of right images in ascending order, of the images that there are."""
    with pytest.raises(InputError, match=message):
        replace(_numbered(3), queries=(LabelledQuery(text, "en", relevant),))


def test_captions_alone_take_no_queries() -> None:
    """There is no image that could be right."""
    with pytest.raises(InputError, match="captions alone"):
        replace(_numbered(3), images=(), queries=(LabelledQuery("low", "en", (0,)),))


def _numbered(count: int) -> CaptionedImages:
    return CaptionedImages(
        "numbered",
        tuple(f"{number}" for number in range(count)),
        [np.full((2, 2, 3), number, np.uint8) for number in range(count)],
        tuple((Caption(f"picture {number}"),) for number in range(count)),
    )


def test_chunks_are_all_images() -> None:
    """One after the other, the last one shorter."""
    assert [len(chunk) for chunk in _numbered(10).chunks(4)] == [4, 4, 2]


def test_a_fingerprint_is_of_questions_not_of_places(put: Put, tmp_path: Path) -> None:
    """The same captions of the same ids have one, wherever the files lie; another word has another."""
    first = open_dataset(put("one.csv", "image,caption\na.jpg,one\n"))
    again = open_dataset(put("other/two.jsonl", '{"image": "a.jpg", "caption": "one"}'), images=tmp_path / "images")
    other = open_dataset(put("three.csv", "image,caption\na.jpg,One\n"))
    assert first.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize(
    ("ids", "said", "message"),
    [
        ((), (), "ids"),
        (("a", "b"), (("x",),), "ids"),
        (("a", "a"), (("x",), ("y",)), "'a'"),
        (("a", "b"), (("x",), ()), "'b'"),
        (("a", "b"), (("x",), ("y", " ")), "empty"),
    ],
)
def test_a_data_set_is_checked(ids: tuple[str, ...], said: tuple[tuple[str, ...], ...], message: str) -> None:
    """Whoever makes one by hand is told the same things."""
    with pytest.raises(InputError, match=message):
        CaptionedImages("mine", ids, list(ids), tuple(tuple(Caption(text) for text in texts) for texts in said))


def test_the_photographs_have_their_captions() -> None:
    """Each photograph of COCO has at least five captions; those of val2017 that lack their image are counted."""
    data = open_dataset(PHOTO_CAPTIONS)
    assert len(data) == len(list(PHOTOS.iterdir()))
    assert min(len(said) for said in data.captions) >= 5
    val2017 = len(open_dataset(PHOTO_CAPTIONS, split="val2017"))
    total = len(json.loads(VAL2017_CAPTIONS.read_text(encoding="utf-8"))["images"])
    assert (len(data), val2017, total) in ((76, 50, 5000), (8, 5, 7))
    with pytest.raises(InputError, match=f"{total - val2017:,}"):
        open_dataset(VAL2017_CAPTIONS)


def test_the_official_captions_are_read_whole(tmp_path: Path) -> None:
    """Every caption of the file belongs to its image, as pycocotools groups them."""
    document = json.loads(VAL2017_CAPTIONS.read_text(encoding="utf-8"))
    for image in document["images"]:
        (tmp_path / image["file_name"]).touch()
    data = open_dataset(VAL2017_CAPTIONS, images=tmp_path)
    assert (len(data), len(data.captions_in(None).texts)) == (len(document["images"]), len(document["annotations"]))
    grouped: dict[str, list[str]] = {}
    for annotation in document["annotations"]:
        grouped.setdefault(str(annotation["image_id"]), []).append(annotation["caption"].strip())
    assert {
        name: [caption.text for caption in said] for name, said in zip(data.ids, data.captions, strict=True)
    } == grouped
