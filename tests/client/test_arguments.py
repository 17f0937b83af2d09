"""What every public function does with one thing where a list is meant, with names of enums, and with odd texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire import Client, Index, Searcher
from twinspire.bundle import Padding, Precision, RecommendedRuntime, TextSettings, Tower
from twinspire.errors import BundleError, InputError
from twinspire.index import Item, ItemKind, VectorType
from twinspire.ingest import Captions, add_images, add_texts, find_images
from twinspire.search import (
    Boost,
    Calibration,
    Classifier,
    Filter,
    FusionWeights,
    Label,
    Mode,
    Query,
    Synonyms,
    Templates,
)
from twinspire.stores.text_query import TextQuery
from twinspire.towers import InferencePrecision, LocalTowers, OpenVinoOptions

SURROGATES = ("\ud800", "a\udcff b", "\udfff\ud800")
HUGE = 10**5000  # more digits than Python turns into text


@pytest.fixture
def client(tiny: Any) -> Iterator[Client]:
    """Open the tiny bundle in this process."""
    with Client.local(tiny.bundle, precision="fp32", provider="cpu") as opened:
        yield opened


@pytest.fixture
def index(tmp_path: Path, client: Client) -> Iterator[Index]:
    """Make an index of three texts."""
    texts = ["a red cat", "a blue dog", "the large boat"]
    items = [Item(f"/t#{number}", "text", caption=text, metadata={"n": number}) for number, text in enumerate(texts)]
    with Index.create(tmp_path / "index", space=client.space, dim=client.dim) as made:
        made.add(client.encode_texts(texts), items, space=client.space)
        yield made


ONE_THING = ("abc", b"abc", bytearray(b"abc"), Path("abc"), 3, None)


@pytest.mark.parametrize("one", ONE_THING, ids=lambda one: type(one).__name__)
def test_one_thing_is_not_taken_for_a_list(index: Index, client: Client, one: Any) -> None:
    """A str, bytes, a path or a number in place of a list is an InputError, wherever a list is meant."""
    searcher = Searcher(client, index)
    classifier = Classifier(client, ["cat"])
    vectors = np.zeros((0, client.dim), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: client.encode_texts(one),
        lambda: client.tokenize(one),
        lambda: client.encode_images(one),
        lambda: client.preprocess(one),
        lambda: index.add(vectors, one, space=client.space),
        lambda: index.remove(one),
        lambda: index.get(one),
        lambda: index.vectors(one),
        lambda: index.matching(one, Filter.parse("n = 1")),
        lambda: index.known_hashes(one),
        lambda: searcher.search("cat", boosts=one),
        lambda: searcher.search("cat", pins=one),
        lambda: Searcher(client, index, stop_words=one),
        lambda: Classifier(client, one),
        lambda: classifier.classify(one),
        lambda: classifier.classify_or_skip(one),
        lambda: Templates(one),
        lambda: Synonyms({("car",): one}),
        lambda: Calibration.fit(one, one),
        lambda: add_images(index, client, one),
        lambda: add_texts(index, client, one),
        lambda: find_images(one),
        lambda: Captions({"a.jpg": one}, folder=Path()),
    ]
    if one is not None:  # None stands for all towers
        calls.append(lambda: LocalTowers(client.bundle, towers=one))
    for call in calls:
        with pytest.raises(InputError):
            call()


def test_an_item_alone_and_a_filter_alone_are_no_lists(index: Index, client: Client) -> None:
    """What is not iterable is refused as clearly."""
    item = Item("/x", "text")
    with pytest.raises(InputError, match="list"):
        index.add(client.encode_texts(["a"]), item, space=client.space)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list"):
        Searcher(client, index).search("cat", pins=Filter.parse("n = 1"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list"):
        Searcher(client, index).search("cat", boosts=Boost.parse("n = 1:2"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="boost"):
        Searcher(client, index).search("cat", boosts=[Filter.parse("n = 1")])  # type: ignore[list-item]


def test_names_stand_for_members_of_enums(tmp_path: Path, index: Index, client: Client) -> None:
    """A kind, mode, dtype, precision, provider, tower and padding may be given by name."""
    assert Item("/x", "image").kind is ItemKind.IMAGE
    query = client.encode_texts(["a red cat"])
    for kind in ("text", ItemKind.TEXT):
        (hits,) = index.search(query, k=3, space=client.space, kind=kind)
        assert hits[0].id == 0
        assert len(index.search_text(TextQuery.any_of("cat"), kind=kind)) == 1
        assert index.known_hashes(["x"], kind=kind) == set()
        answer = Searcher(client, index).search("red cat", kind=kind, mode="hybrid")
        assert answer.mode is Mode.HYBRID
    assert index.count(kind="text", where="id exists") == 3
    with Index.create(tmp_path / "half", space=client.space, dim=client.dim, dtype="float16") as half:
        assert half.dtype is VectorType.FLOAT16
    assert client.bundle.engine("text", "fp32") == client.bundle.engine(Tower.TEXT, Precision.FP32)
    assert client.bundle.precisions("image") == client.bundle.precisions(Tower.IMAGE)
    towers = LocalTowers(client.bundle, precision="int8", provider="cpu", towers=["text"])
    assert towers.runtime.precision is Precision.INT8
    towers.close()
    assert TextSettings(context_length=8, pad_id=0, eos_id=1, padding="max_length").padding is Padding.MAX_LENGTH
    assert OpenVinoOptions(inference_precision="bf16").inference_precision is InferencePrecision.BF16


def test_an_unknown_name_is_an_error_that_lists_the_choices(tmp_path: Path, index: Index, client: Client) -> None:
    """Whichever enum it is of, and of whatever type."""
    query = client.encode_texts(["cat"])
    for wrong in ("picture", "", 3, None, ["image"], Mode.HYBRID):
        calls: list[tuple[str, Callable[[], object]]] = [
            ("image", lambda wrong=wrong: Item("/x", wrong)),
            ("hybrid", lambda wrong=wrong: Searcher(client, index).search("cat", mode=f"{wrong}!")),
            ("float16", lambda wrong=wrong: Index.create(tmp_path / "no", space="s", dim=2, dtype=wrong)),
            ("fp16", lambda wrong=wrong: client.bundle.engine("text", wrong)),
            ("text", lambda wrong=wrong: client.bundle.precisions(wrong)),
            ("int8", lambda wrong=wrong: LocalTowers(client.bundle, precision=wrong)),
            ("cuda", lambda wrong=wrong: LocalTowers(client.bundle, provider=wrong)),
            ("image", lambda wrong=wrong: LocalTowers(client.bundle, towers=[wrong])),
            ("trim", lambda wrong=wrong: TextSettings(context_length=8, pad_id=0, eos_id=1, padding=wrong)),
            ("bf16", lambda wrong=wrong: OpenVinoOptions(inference_precision=wrong)),
            ("text", lambda wrong=wrong: index.known_hashes([], kind=wrong)),
        ]
        if wrong is not None:
            calls.append(("text", lambda wrong=wrong: index.search(query, space=client.space, kind=wrong)))
        for choice, call in calls:
            with pytest.raises(InputError, match=choice):
                call()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("text", SURROGATES, ids=ascii)
def test_lone_surrogates_are_refused_or_found_nowhere(tmp_path: Path, index: Index, client: Client, text: str) -> None:
    """UTF-8 cannot hold them: no call raises UnicodeEncodeError."""
    searcher = Searcher(client, index)
    refused: list[Callable[[], object]] = [
        lambda: Query.text(text),
        lambda: Query.parse(text),
        lambda: Query.parse(f'"{text}" + "b"'),
        lambda: Query.term(text),
        lambda: searcher.search(text),
        lambda: searcher.search("cat", where=f"a = '{text}'"),
        lambda: searcher.search("cat", where=f"`{text}` = 1"),
        lambda: searcher.search("cat", where=text),
        lambda: searcher.search("cat", boosts=[text]),
        lambda: searcher.search("cat", pins=[text]),
        lambda: searcher.search("cat", mode=text),
        lambda: searcher.search(Query.image(f"/{text}.jpg")),
        lambda: Searcher(client, index, stop_words=frozenset([text])),
        lambda: index.search_text(TextQuery(phrases=((text,),))),
        lambda: index.count_text(TextQuery(phrases=((text,),)), at_most=3),
        lambda: index.known_hashes([text]),
        lambda: client.encode_texts([text]),
        lambda: client.encode_images([f"/{text}.jpg"]),
        lambda: Label(text),
        lambda: Classifier(client, ["cat", text]),
        lambda: Templates((f"{text} {{}}",)),
        lambda: Synonyms({(text,): (("car",),)}),
        lambda: Synonyms({("car",): ((text,),)}),
        lambda: Templates.read(tmp_path / text),
        lambda: Synonyms.read(tmp_path / text),
        lambda: Item(text, "text"),
        lambda: Client.local(f"/{text}"),
        lambda: Item("/x", "text", caption=text),
        lambda: Item("/x", "text", metadata={text: 1}),
        lambda: Index.create(tmp_path / "no", space=text, dim=2),
        lambda: find_images([f"/{text}.jpg"]),
        lambda: add_texts(index, client, [f"/{text}.txt"]),
        lambda: Captions.read(Path(f"/{text}.csv")),
    ]
    for call in refused:
        with pytest.raises((InputError, BundleError)) as caught:
            call()
        str(caught.value).encode(errors="backslashreplace")
    assert index.find(uri=text) == index.find(content_hash=text) == index.find(under=text) == []
    assert isinstance(str(Query.image(f"/{text}.jpg")), str)
    assert isinstance(repr(Query.image(f"/{text}.jpg")), str)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(HUGE, id="huge"),
        pytest.param(-HUGE, id="-huge"),
        2**63,
        -(2**63) - 1,
        float("nan"),
        float("inf"),
        -float("inf"),
    ],
)
def test_numbers_of_any_size_are_used_or_refused(index: Index, client: Client, number: Any) -> None:
    """A number beyond int64 or a float is an InputError, or means what it says; never another error."""
    searcher = Searcher(client, index)
    calls: list[Callable[[], object]] = [
        lambda: Query.text("cat", number),
        lambda: number * Query.text("cat"),
        lambda: Boost("n = 1", number),  # type: ignore[arg-type]
        lambda: searcher.search("cat", offset=number),
        lambda: searcher.search("cat", min_score=number),
        lambda: searcher.search("cat", diversify=number),
        lambda: searcher.search("cat", effort=number),
        lambda: searcher.search("cat", where=f"n < {number if abs(number) != HUGE else '1' + '0' * 5000}"),
        lambda: searcher.search("cat", number),
        lambda: index.search(client.encode_texts(["cat"]), k=number, space=client.space),
        lambda: index.search_text(TextQuery.any_of("cat"), k=number),
        lambda: index.sample_ids(number),
        lambda: index.get([number]),
        lambda: index.remove([number]),
        lambda: Label("cat", number),
        lambda: FusionWeights(number),
        lambda: Calibration(number, number),
        lambda: Item("/x", "text", metadata={"n": number}),
        lambda: list(index.items(batch=number)),
        lambda: RecommendedRuntime(**dict.fromkeys(RecommendedRuntime.__dataclass_fields__, number)),
    ]
    for call in calls:
        with suppress(InputError):
            call()
    assert len(index) == 3
    with pytest.raises(InputError):
        index.get([number])


def test_metadata_with_an_endless_number_names_the_cause() -> None:
    """The message is short, and advises nothing that concerns Python alone."""
    with pytest.raises(InputError, match="digits") as caught:
        Item("/x", "text", metadata={"n": HUGE})
    assert "sys." not in str(caught.value)


def test_k_beyond_64_bits_is_everything(index: Index, client: Client) -> None:
    """There are never more hits than items."""
    query = client.encode_texts(["a red cat"])
    for k in (3, 2**31, 2**63, HUGE):
        assert len(index.search(query, k=k, space=client.space)[0]) == 3
        assert len(index.search_text(TextQuery.any_of("cat dog"), k=k)) == 2
        assert len(Searcher(client, index).search("cat", k).hits) == 3
        assert index.sample_ids(k) == [0, 1, 2]


@pytest.mark.parametrize("bad", ["a\0b", "\0"])
def test_nul_is_refused_where_sqlite_would_end_a_text(index: Index, bad: str) -> None:
    """An item with NUL could not be filtered by; a query for words would be cut."""
    calls: list[Callable[[], object]] = [
        lambda: Item(bad, "text"),
        lambda: Item("/x", "text", caption=bad),
        lambda: Item("/x", "text", content_hash=bad),
        lambda: Item("/x", "text", metadata={"a": [{"b": bad}]}),
        lambda: Item("/x", "text", metadata={bad: 1}),
        lambda: index.update(0, caption=bad),
        lambda: index.search_text(TextQuery(phrases=((f"cat{bad}",),))),
    ]
    for call in calls:
        with pytest.raises(InputError, match="NUL"):
            call()
    assert Item("/x", "text", metadata={"a": "\\u0000"}).metadata == {"a": "\\u0000"}
    assert index.get([0])[0].caption == "a red cat"


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", 3, None, ["a"], b""], ids=ascii)
def test_what_is_no_path_of_an_index_is_refused(path: Any) -> None:
    """To open and to make one."""
    for call in (
        lambda: Index.open(path),
        lambda: Index.create(path, space="s", dim=2),
        lambda: Index.open_or_create(path, space="s", dim=2),
    ):
        with pytest.raises(InputError, match="path"):
            call()


def test_a_query_with_nul_is_a_text_like_any_other(index: Index, client: Client) -> None:
    """It separates words."""
    answer = Searcher(client, index).search("cat\0dog", mode="keyword")
    assert sorted(hit.id for hit in answer.hits) == [0, 1]
    assert Searcher(client, index).search("cat\0dog", mode="hybrid", where="n != 'x\0'").hits == ()


def test_ids_that_come_twice_count_once(index: Index) -> None:
    """Removing the same id several times, also far apart in a long list, removes it once and says so."""
    many = [0, *range(10, 1500), 0, 1, 1]
    assert index.remove(many) == 2
    assert [item.id for item in index.items()] == [2]
    assert index.remove([2, 2]) == 1
    assert index.remove([2]) == 0
    assert index.verify().ok
