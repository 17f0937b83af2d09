"""Filters: moments, types that never fit, numbers and texts of any size; iteration over what is kept; opening."""

from __future__ import annotations

import operator
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.arrays import random_vectors
from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError
from twinspire.index import BundleReference, Index, Item, ItemKind, VectorType
from twinspire.index.filter_sql import compiled
from twinspire.stores.filters.filter import Filter
from twinspire.stores.items import metadata_as_json

SPACE = "6" * 64
DIM = 4
unit = partial(random_vectors, dim=DIM)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Index]]:
    """Make an index of items with these metadata: `make([{...}, ...])`."""
    made: list[Index] = []

    def index(metadata: list[dict[str, Any]], kind: str = "image") -> Index:
        created = Index.create(tmp_path / f"index{len(made)}", space=SPACE, dim=DIM)
        made.append(created)
        items = [Item(f"/{number}.jpg", kind, f"c{number}", each) for number, each in enumerate(metadata)]
        created.add(unit(len(items)), items, space=SPACE)
        return created

    yield index
    for each in made:
        each.close()


def kept(index: Index, where: str) -> list[int]:
    """Return the ids that a filter keeps."""
    return [item.id for item in index.items(where=where)]


# ------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("modified >= 2024-05-01", [1, 2, 3, 4]),
        ("modified >= '2024-05-01'", [1, 2, 3, 4]),
        ("modified < 2024-05-01", [0]),
        ("modified >= 2024-05-01T08:00Z", [1, 2, 3]),
        ('modified >= "2024-05-01T10:00:00+02:00"', [1, 2, 3]),
        ("modified >= 2024-05-01T10:00:00+02:00 and modified < 2024-05-01 08:00:01", [1, 2, 3]),
        ("modified = 2024-05-01T08:00:00Z", [1, 2]),
        ("modified in (2024-05-01 08:00, '2023-01-01')", [0, 1, 2]),
        ("modified != 2024-05-01T08:00", [0, 3, 4]),
        ("not modified = 2024-05-01T08:00", [0, 3, 4]),
        ("modified > 1714550400", [3]),
        ("modified = 1714550400", [1, 2]),
        ("modified like '2024-%'", [1, 4]),
        ("modified = true", []),
        ("metadata.modified >= 2024-05-01 and modified exists", [1, 2, 3, 4]),
    ],
)
def test_modified_compares_as_a_moment(make: Callable[..., Index], where: str, ids: list[int]) -> None:
    """ISO 8601 with any offset, with quotes or without, or seconds; stored as ISO text or as seconds."""
    stored = ["2023-01-01", "2024-05-01T10:00:00+02:00", 1714550400, 1714550400.5, "2024-05-01T06:00:00.250000Z"]
    index = make([{"modified": each} for each in stored] + [{"modified": "now"}, {"modified": None}, {}])
    assert kept(index, where) == ids


def test_added_and_changed_take_the_same_forms(make: Callable[..., Index]) -> None:
    """The columns that the index keeps itself compare with ISO 8601 and seconds as well."""
    index = make([{}])
    day = (datetime.now(UTC) - timedelta(days=1)).date()
    for column in ("added_at", "changed_at"):
        zone = timezone(timedelta(hours=-3))
        later = (datetime.now(zone) + timedelta(minutes=5)).isoformat(timespec="seconds")
        for text in (f"{day}", f"'{day}'", "2024-05-01T10:00:00+02:00", "1714550400"):
            assert kept(index, f"{column} >= {text}") == [0]
        assert kept(index, f"{column} > {later}") == []
        assert kept(index, f"{column} < {later}") == [0]


def test_a_time_without_quotes_compares_dates_of_any_key(make: Callable[..., Index]) -> None:
    """Of other keys only texts that are dates are compared with it; quoted, it is a text like any other."""
    index = make([{"taken": each} for each in ("2024-05-01T09:00:00+02:00", "2024-04-30", "yesterday", 2024, None)])
    assert kept(index, "taken >= 2024-05-01") == [0]
    assert kept(index, "taken = 2024-05-01T07:00") == [0]
    assert kept(index, "taken <= 2024-05-01") == [1]
    assert kept(index, "taken >= '2024-05-01'") == [0, 2]
    assert kept(index, "taken in (2024-04-30, 2024)") == [1, 3]


@pytest.mark.parametrize(
    "where",
    [
        "modified >= 'yesterday'",
        "modified >= 2024-13-01",
        "added_at = '2024-02-30'",
        "modified = 1e300",
        "modified = '0001-01-01T00:00+23:00'",
        "uri = 2024-05-01",
        "id = 2024-05-01",
        "taken contains 2024-05-01",
        "taken like 2024-05-01",
        "taken in (2024-05-01, '2024-05-02')",
    ],
)
def test_what_is_no_time_is_refused(where: str) -> None:
    """The error shows the place."""
    with pytest.raises(InputError, match=r"\^") as caught:
        Filter.parse(where)
    assert where in str(caught.value)


_RELATIONS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
_MOMENTS = st.builds(
    lambda seconds, hours: datetime.fromtimestamp(seconds / 1000, timezone(timedelta(hours=hours))),
    st.integers(0, 4) | st.integers(-(10**12), 10**12),
    st.integers(-12, 14),
)


def kept_of(metadata: list[dict[str, Any]], where: str) -> list[int]:
    """Return the places of what a filter keeps, by SQLite alone."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE items (id, metadata)")
        rows = [(number, metadata_as_json(each)) for number, each in enumerate(metadata)]
        connection.executemany("INSERT INTO items VALUES (?, ?)", rows)
        sql, parameters = compiled(Filter.parse(where))
        query = f"SELECT id FROM items WHERE {sql} ORDER BY id"
        return [number for (number,) in connection.execute(query, parameters)]


@settings(max_examples=200, deadline=None)
@given(st.lists(_MOMENTS, min_size=1, max_size=8), _MOMENTS, st.sampled_from(sorted(_RELATIONS)), st.booleans())
def test_moments_compare_as_in_python(stored: list[datetime], asked: datetime, relation: str, quoted: bool) -> None:
    """A filter keeps what Python's comparison of aware datetimes keeps, to the millisecond."""
    expected = [number for number, each in enumerate(stored) if _RELATIONS[relation](each, asked)]
    literal = f"'{asked.isoformat()}'" if quoted else asked.isoformat()
    assert kept_of([{"modified": each.isoformat()} for each in stored], f"modified {relation} {literal}") == expected
    seconds = [{"modified": each.timestamp()} for each in stored]
    assert kept_of(seconds, f"modified {relation} {literal}") == expected


# -------------------------------------------------------------------------------------- types, numbers and texts


def test_a_filter_that_can_keep_nothing_is_explained(make: Callable[..., Index]) -> None:
    """Keys that no item has and comparisons with a type that never occurs are named, each once."""
    index = make([{"year": 2020, "price": "12", "tags": ["a"], "sold": True, "none": None}, {"year": 2021.5}, {}])
    cases = {
        'year >= "2020"': ["year", "number", "2020"],
        "price = 12": ["price", "text", "'12'"],
        "tags = 'a'": ["tags", "list"],
        "sold = 'yes'": ["sold", "true"],
        "year like '20%'": ["year", "number"],
        "year contains '20'": ["year", "list"],
        "none = 'x'": ["none", "null"],
        "year > 2024-05-01": ["year", "number"],
        "year in ('2020', '2021')": ["year", "number"],
        "kind = 'image' and (year = '1' and price = 1)": ["year", "price"],
    }
    for where, words in cases.items():
        assert kept(index, where) == []
        said = " ".join(index.explain_filter(where))
        for word in words:
            assert word in said, (where, said)
    (note,) = index.explain_filter("yaer = 1 or colour exists or yaer = 2")
    assert (note.count("yaer"), note.count("colour")) == (1, 1)
    for where in ("year = 1", "year in ('x', 1)", "tags contains 'b'", "price contains 'x'", "year is null", "id = 9"):
        assert index.explain_filter(where) == []
    with pytest.raises(InputError):
        index.explain_filter(None)  # type: ignore[arg-type]


_NUMBERS = (
    st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, -(10**300), 0.5, 1e300])
    | st.floats(allow_nan=False, allow_infinity=False)
)


def _as_compared(number: float) -> float:
    """Whole numbers beyond 64 bits compare as floats."""
    return number if isinstance(number, float) or -(2**63) <= number < 2**63 else float(number)


@settings(max_examples=300, deadline=None)
@example([2.6687880542291848e-303], 2.6687880542291848e-303, "!=")
@example([123456789012345678901234567890], 123456789012345678901234567890, "=")
@given(st.lists(_NUMBERS, min_size=1, max_size=8), _NUMBERS, st.sampled_from(sorted(_RELATIONS)))
def test_numbers_of_any_size_compare_as_in_python(stored: list[float], asked: float, relation: str) -> None:
    """A filter keeps what Python's comparison keeps."""
    expected = [
        number for number, each in enumerate(stored) if _RELATIONS[relation](_as_compared(each), _as_compared(asked))
    ]
    assert kept_of([{"n": each} for each in stored], f"n {relation} {asked}") == expected


def test_patterns_beyond_sqlites_limit_are_refused(make: Callable[..., Index]) -> None:
    """Up to 50,000 bytes they work; above the error names the limit."""
    index = make([{"a": "x" * 60_000}, {"a": "é" * 25_000}])
    assert kept(index, f"a like '{'x' * 49_999}%'") == [0]
    assert kept(index, f"a contains '{'x' * 49_998}'") == [0]
    assert kept(index, f"a like '{'é' * 25_000}'") == [1]
    assert kept(index, f"a like '{'%x' * 20_000}%'") == [0]
    for condition in (
        f"a like '{'x' * 50_001}'",
        f"a like '{'é' * 25_001}'",
        f"a contains '{'x' * 49_999}'",
        f"not a contains '{'%' * 25_000}'",
        f"caption not like '{'x' * 50_001}'",
    ):
        with pytest.raises(InputError, match="50,000"):
            index.items(where=condition)


# ------------------------------------------------------------------------------------------------------ iteration


def test_iteration_gives_all_items_in_order(make: Callable[..., Index]) -> None:
    """Of a kind, of a filter, of both, whatever the batch; `iter` gives all."""
    index = make([{"n": number} for number in range(25)])
    texts = [Item(f"#{number}", "text", metadata={"n": number}) for number in range(5)]
    index.add(unit(5), texts, space=SPACE)
    for batch in (1, 7, 1000, 10**9):
        assert [item.id for item in index.items(batch=batch)] == list(range(30))
    assert list(index) == list(index.items()) == index.get(range(30))
    assert [item.id for item in index.items(kind="text")] == list(range(25, 30))
    assert [item.id for item in index.items(kind=ItemKind.IMAGE, where=Filter.parse("n >= 20"), batch=2)] == [
        *range(20, 25)
    ]
    assert [item.id for item in index.items(kind="text", where="n > 3")] == [29]
    assert list(index.items(where="n > 99")) == []
    for wrong in ({"batch": 0}, {"kind": "photo"}, {"where": "n >"}, {"where": 3}):
        with pytest.raises(InputError):
            index.items(**wrong)  # type: ignore[arg-type]


def test_iteration_sees_one_committed_state(make: Callable[..., Index]) -> None:
    """What is added, changed, removed and compacted meanwhile is not seen, of a reader and of the writer itself."""
    index = make([{"n": number} for number in range(20)])
    with Index.open(index.path) as reader:
        running = [each.items(batch=3) for each in (index, reader)]
        first = [next(each) for each in running]
        index.remove([5, 19])
        index.update(7, metadata={"n": -1})
        index.add(unit(1), [Item("/new", "text")], space=SPACE)
        index.compact()
        for one, rest in zip(first, running, strict=True):
            items = [one, *rest]
            assert [item.metadata["n"] for item in items] == list(range(20))
    assert [item.id for item in index] == [n for n in range(21) if n not in (5, 19)]


def test_iteration_left_early_lets_go(make: Callable[..., Index]) -> None:
    """Closing the iterator ends its transaction; a closed index ends an iteration with an error."""
    index = make([{"n": number} for number in range(20)])
    running = index.items(batch=2)
    next(running)
    running.close()  # type: ignore[attr-defined]
    again = index.items(batch=2)
    next(again)
    index.close()
    with pytest.raises(IndexStoreError, match="closed"):
        list(again)
    with pytest.raises(IndexStoreError, match="closed"):
        index.items()


def test_iteration_holds_a_batch_in_memory(make: Callable[..., Index]) -> None:
    """Going over 4 MB of metadata in small batches takes a small part of that."""
    index = make([{"text": f"{number}" * 1000} for number in range(1000)])
    for _ in index.items(batch=10):
        pass
    tracemalloc.start()
    count = sum(1 for _ in index.items(batch=10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1000
    assert peak < 1_000_000


# --------------------------------------------------------------------------------------------- opening and showing


def test_open_or_create(tmp_path: Path) -> None:
    """The first call makes the index, the next opens it for writing; another space, dim or dtype is refused."""
    path = tmp_path / "index"
    bundle = BundleReference("clip", "/bundles/clip")
    with Index.open_or_create(path, space=SPACE, dim=DIM, dtype="float16", bundle=bundle) as made:
        assert made.bundle == bundle
        made.add(unit(2), [Item("/a", "image"), Item("/b", "image")], space=SPACE)
    with Index.open_or_create(path, space=SPACE, dim=DIM) as opened:
        assert (len(opened), opened.dtype) == (2, VectorType.FLOAT16)
        opened.remove([0])
    with pytest.raises(SpaceMismatchError):
        Index.open_or_create(path, space="7" * 64, dim=DIM)
    for wrong in ({"dim": 5}, {"dtype": "float32"}, {"dtype": "int8"}, {"dim": True}):
        with pytest.raises(InputError):
            Index.open_or_create(path, **({"space": SPACE, "dim": DIM} | wrong))  # type: ignore[arg-type]
    Index.open_or_create(path, space=SPACE, dim=DIM, dtype=VectorType.FLOAT16).close()  # nobody holds it
    (tmp_path / "empty").mkdir()
    Index.open_or_create(tmp_path / "empty", space=SPACE, dim=DIM).close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    for taken in (tmp_path / "other", tmp_path / "other" / "photo.jpg", tmp_path / "no" / "where"):
        with pytest.raises(IndexStoreError):
            Index.open_or_create(taken, space=SPACE, dim=DIM)


def test_an_index_shows_what_it_is(make: Callable[..., Index]) -> None:
    """Its repr has folder, size and access, and never raises."""
    index = make([{}, {}])
    assert str(index.path) in repr(index)
    assert "2 items" in repr(index)
    assert "write" in repr(index)
    with Index.open(index.path) as reader:
        assert "read" in repr(reader)
        (index.path / "catalogue.sqlite").rename(index.path / "gone")
    index.close()
    assert "closed" in repr(index)
