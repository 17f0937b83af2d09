"""Published test sets in tiny folders of the exact forms in which each is distributed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire.errors import InputError
from twinspire_eval.datasets import CaptionedImages, open_dataset, published_sizes
from twinspire_eval.datasets.published_sizes import TestSetSize as Size  # pytest would collect the name
from twinspire_eval.recall import Direction, rank_pairs

COCO = ("COCO_val2014_000000000042", "COCO_train2014_000000000007")


def jpeg(seed: int = 0) -> bytes:
    """A small image of noise."""
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(written, "JPEG")
    return written.getvalue()


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def lines(*rows: object) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tsv(*names: int) -> str:
    """Images in base64 as Chinese-CLIP's preprocessing writes them."""
    return "".join(f"{name}\t{base64.b64encode(jpeg(name)).decode()}\n" for name in names)


def coco_cn(folder: Path) -> Path:
    """COCO-CN's archive beside COCO's images."""
    put(folder, {f"{name.split('_')[1]}/{name}.jpg": jpeg() for name in COCO})
    captions = (
        f"{COCO[1]}#0\t两个人在骑马\n{COCO[0]}#0\t一只猫\n{COCO[1]}#1\t夜晚的街道\nCOCO_val2014_000000000001#0\t别的\n"
    )
    return put(
        folder / "coco-cn-version1805v1.1",
        {"coco-cn_test.txt": f"{COCO[0]}\n{COCO[1]}\n", "imageid.human-written-caption.txt": captions},
    )


def flickr30k_cn(folder: Path) -> Path:
    """Flickr30k-CNA's file of the test split beside Flickr30k's images."""
    put(folder, {f"flickr30k-images/{name}.jpg": jpeg() for name in (36979, 65567)})
    said = "36979.jpg#0\t一个男人\n36979.jpg#1\t一个人 坐着\n65567.jpg#0\t一只狗\n"
    return put(folder / "Flickr30k-CNA", {"flickr30k_cn_test.txt": said})


def flickr30k_cn_base64(folder: Path) -> Path:
    """Flickr30k-CN as Chinese-CLIP distributes it."""
    texts = [
        {"text_id": 0, "text": "一个男人", "image_ids": [36979]},
        {"text_id": 1, "text": "狗", "image_ids": [65567]},
    ]
    return put(folder / "Flickr30k-CN", {"test_imgs.tsv": tsv(36979, 65567), "test_texts.jsonl": lines(*texts)})


def muge(folder: Path) -> Path:
    """MUGE as Chinese-CLIP distributes it: a query with two images, and an image without a query."""
    texts = [
        {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1076345, 517602]},
        {"text_id": 8429, "text": "红色裙子", "image_ids": [517602]},
    ]
    return put(folder / "MUGE", {"valid_imgs.tsv": tsv(1076345, 517602, 99), "valid_texts.jsonl": lines(*texts)})


def xflickrco(folder: Path) -> Path:
    """IGLUE's captions in two languages, beside both data sets' images; ids are texts and numbers, as there."""
    put(folder, {"flickr30k-images/1007129816.jpg": jpeg(), f"val2014/{COCO[0]}.jpg": jpeg(1)})

    def rows(*said: str) -> str:
        files = [("1007129816", "1007129816.jpg"), (42, f"{COCO[0]}.jpg")]
        return lines(
            *(
                {"sentences": [text], "id": name, "img_path": file}
                for text, (name, file) in zip(said, files, strict=True)
            )
        )

    captions = {
        "annotations/zh/test.jsonl": rows("一个人", "狗"),
        "annotations/de/test.jsonl": rows("ein Mann", "Hund"),
    }
    return put(folder / "xFlickrCO", captions)


def xm3600(folder: Path) -> Path:
    """Crossmodal-3600's captions and images."""
    rows = [
        {
            "image/key": key,
            "image/locale": "en",
            "en": {"caption": [f"a {key}", f"one {key}"], "caption/tokenized": [f"a {key}", f"one {key}"]},
            "sw": {"caption": [f"la {key}"], "caption/tokenized": [f"la {key}"]},
        }
        for key in ("000411001ff7dd4f", "000775f4c8b8b5e6")
    ]
    images = {f"images/{row['image/key']}.jpg": jpeg() for row in rows}
    return put(folder / "xm3600", {"captions.jsonl": lines(*rows), **images})


def content(data: CaptionedImages) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Ids and captions with their languages."""
    return [
        (name, [(caption.text, caption.language) for caption in captions])
        for name, captions in zip(data.ids, data.captions, strict=True)
    ]


FORMS: list[tuple[str, Callable[[Path], Path], list[tuple[str, list[tuple[str, str]]]]]] = [
    ("coco-cn", coco_cn, [(COCO[0], [("一只猫", "zh")]), (COCO[1], [("两个人在骑马", "zh"), ("夜晚的街道", "zh")])]),
    (
        "flickr30k-cn",
        flickr30k_cn,
        [("36979.jpg", [("一个男人", "zh"), ("一个人 坐着", "zh")]), ("65567.jpg", [("一只狗", "zh")])],
    ),
    ("flickr30k-cn", flickr30k_cn_base64, [("36979", [("一个男人", "zh")]), ("65567", [("狗", "zh")])]),
    (
        "muge",
        muge,
        [
            ("1076345", [("高级感托特包斜挎", "zh")]),
            ("517602", [("高级感托特包斜挎", "zh"), ("红色裙子", "zh")]),
            ("99", []),
        ],
    ),
    (
        "xflickrco",
        xflickrco,
        [("1007129816", [("ein Mann", "de"), ("一个人", "zh")]), ("42", [("Hund", "de"), ("狗", "zh")])],
    ),
    (
        "xm3600",
        xm3600,
        [
            (key, [(f"a {key}", "en"), (f"one {key}", "en"), (f"la {key}", "sw")])
            for key in ("000411001ff7dd4f", "000775f4c8b8b5e6")
        ],
    ),
]
IDS = [make.__name__ for _, make, _ in FORMS]


@pytest.mark.parametrize(("name", "make", "expected"), FORMS, ids=IDS)
def test_each_form_is_read_as_it_is_distributed(name: str, make: Any, expected: Any, tmp_path: Path) -> None:
    """A folder of each form gives its images and captions, whether its name stands in front or not."""
    folder = make(tmp_path)
    assert content(open_dataset(f"{name}:{folder}")) == expected
    assert content(open_dataset(folder)) == expected


@pytest.mark.parametrize(("name", "make", "expected"), FORMS, ids=IDS)
def test_the_images_are_found(name: str, make: Any, expected: Any, tmp_path: Path) -> None:
    """Every image can be decoded."""
    for image in open_dataset(f"{name}:{make(tmp_path)}").images:
        content = image if isinstance(image, bytes) else Path(str(image)).read_bytes()
        assert Image.open(io.BytesIO(content)).size == (16, 16)


def test_a_base64_image_is_the_one_of_its_id(tmp_path: Path) -> None:
    """An image of a TSV is byte for byte the one that was written under its id, in a sample too."""
    data = open_dataset(f"muge:{muge(tmp_path)}")
    assert [data.images[place] for place in range(3)] == [jpeg(int(name)) for name in data.ids]
    sample = open_dataset(f"muge:{muge(tmp_path)}", limit=2, seed=3)
    assert [sample.images[place] for place in range(2)] == [jpeg(int(name)) for name in sample.ids]


def test_a_query_of_several_images_is_one_query(tmp_path: Path) -> None:
    """MUGE's query with two images is asked once, and belongs to both."""
    texts = open_dataset(f"muge:{muge(tmp_path)}").captions_in("zh")
    assert texts.texts == ["高级感托特包斜挎", "红色裙子"]
    assert texts.pairs is not None
    assert texts.pairs.tolist() == [[0, 0], [0, 1], [1, 1]]


def test_the_first_captions_alone_can_be_taken(tmp_path: Path) -> None:
    """The split `first` of Crossmodal-3600 has one caption an image and language."""
    data = open_dataset(f"xm3600:{xm3600(tmp_path)}", split="first")
    assert [text for _, said in content(data) for text, _ in said] == [
        f"{word} {key}" for key in ("000411001ff7dd4f", "000775f4c8b8b5e6") for word in ("a", "la")
    ]


@pytest.mark.parametrize(("name", "make", "expected"), FORMS, ids=IDS)
def test_another_size_than_the_published_is_noted(name: str, make: Any, expected: Any, tmp_path: Path) -> None:
    """A tiny folder is not taken for the published test set, and its note gives the published size."""
    data = open_dataset(f"{name}:{make(tmp_path)}")
    if name == "muge":  # published without its size
        assert (data.test_set, data.note) == ("muge", None)
        return
    assert data.test_set is None
    assert "published" in str(data.note)


def test_the_published_size_makes_a_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set with the published numbers of images and captions is the test set, a sample of it is not."""
    monkeypatch.setitem(published_sizes.TEST_SETS, "coco-cn", Size(2, 3))
    folder = coco_cn(tmp_path)
    assert open_dataset(f"coco-cn:{folder}").test_set == "coco-cn"
    sample = open_dataset(f"coco-cn:{folder}", limit=1)
    assert (sample.test_set, sample.note) == (None, None)


def test_karpathys_test_splits_are_test_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's file of Karpathy with images in val2014/ gives the test set `coco`."""
    monkeypatch.setitem(published_sizes.TEST_SETS, "coco", Size(1, 2))
    entry = {
        "filepath": "val2014",
        "filename": f"{COCO[0]}.jpg",
        "split": "test",
        "sentences": [{"raw": "a"}, {"raw": "b"}],
    }
    files = {"dataset_coco.json": json.dumps({"images": [entry]}), f"val2014/{COCO[0]}.jpg": jpeg()}
    folder = put(tmp_path, files)  # type: ignore[arg-type]
    assert open_dataset(f"karpathy:{folder / 'dataset_coco.json'}", split="test").test_set == "coco"


WRONG: list[tuple[str, str, dict[str, str], str]] = [
    ("coco-cn", "no captions", {"imageid.human-written-caption.txt": ""}, "caption"),
    ("coco-cn", "no list", {"coco-cn_test.txt": "COCO_val2014_000000000999\n"}, "COCO_val2014_000000000999"),
    ("coco-cn", "no tab", {"imageid.human-written-caption.txt": "COCO_val2014_1#0 a\n"}, "line 1"),
    ("muge", "broken JSON", {"valid_texts.jsonl": '{"text_id": 1,'}, "JSON"),
    ("muge", "no answers", {"valid_texts.jsonl": lines({"text_id": 1, "text": "a", "image_ids": []})}, "image_ids"),
    ("muge", "another image", {"valid_texts.jsonl": lines({"text_id": 1, "text": "a", "image_ids": [5]})}, "5"),
    ("muge", "no text", {"valid_texts.jsonl": lines({"text_id": 1, "image_ids": [99]})}, "'text'"),
    ("muge", "no base64", {"valid_imgs.tsv": "99\n"}, "base64"),
    ("muge", "twice", {"valid_imgs.tsv": tsv(99, 99)}, "line 2"),
    ("xflickrco", "no sentences", {"annotations/de/test.jsonl": lines({"id": 1, "img_path": "a.jpg"})}, "sentences"),
    ("xm3600", "no key", {"captions.jsonl": lines({"en": {"caption": ["a"]}})}, "image/key"),
    ("xm3600", "a number", {"captions.jsonl": lines({"image/key": "k", "en": {"caption": [1]}})}, "caption"),
]
MAKE = {name: make for name, make, _ in reversed(FORMS)}


@pytest.mark.parametrize(
    ("name", "files", "word"), [(n, f, w) for n, _, f, w in WRONG], ids=[w for _, w, _, _ in WRONG]
)
def test_a_broken_file_is_named(name: str, files: dict[str, str], word: str, tmp_path: Path) -> None:
    """What is wrong in a file raises InputError that names the file and the place."""
    folder = put(MAKE[name](tmp_path), files)  # type: ignore[arg-type]
    with pytest.raises(InputError) as raised:
        open_dataset(f"{name}:{folder}")
    assert word in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("name", list(MAKE))
def test_a_missing_image_is_named(name: str, tmp_path: Path) -> None:
    """A missing image file is an error that names it; so is a split that the data set lacks, and a missing folder."""
    folder = MAKE[name](tmp_path)
    with pytest.raises(InputError, match="nosuch"):
        open_dataset(f"{name}:{folder}", split="nosuch")
    with pytest.raises(InputError, match="folder"):
        open_dataset(f"{name}:{folder}/none")
    if name != "muge":
        victim = next(tmp_path.rglob("*.jpg"))
        victim.unlink()
        with pytest.raises(InputError, match=victim.stem):
            open_dataset(f"{name}:{folder}")


def test_pairs_rank_as_a_sort_does() -> None:
    """Ranks and average precisions with shared captions are those of a sort of all scores."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(count, 8)).astype(np.float32) for count in (40, 25))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    relevant = rng.random((25, 40)) < 0.08
    relevant[np.arange(25), rng.integers(0, 40, 25)] = True
    found = rank_pairs(images, texts, np.argwhere(relevant))
    scores = texts @ images.T
    for direction, right, rows in (
        (Direction.TEXT_TO_IMAGE, relevant, scores),
        (Direction.IMAGE_TO_TEXT, relevant.T, scores.T),
    ):
        ranks, precisions = [], []
        for mine, row in zip(right, rows, strict=True):
            places = np.flatnonzero(mine[np.argsort(-row)]) + 1
            if len(places):
                ranks.append(places[0])
                precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
        assert found[direction].first_ranks.tolist() == ranks
        assert np.allclose(found[direction].average_precisions, precisions, atol=1e-12)
