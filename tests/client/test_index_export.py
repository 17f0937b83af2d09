"""An index as Parquet and as .npy beside JSON lines: what was added comes back, whole or not at all."""

from __future__ import annotations

import builtins
import json
import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

from twinspire.cli import main
from twinspire.errors import InputError, MissingDependencyError
from twinspire.index import Index, Item, ItemKind, VectorType, export, export_parquet, item_pages, parts
from twinspire.index.connections import CatalogueChangedError
from twinspire.index.export import export_index
from twinspire.stores.filters.filter import Filter

SPACE = "5" * 64
METADATA: list[dict[str, Any]] = [
    {"year": 2020, "price": 9.5, "sold": True, "camera": "X", "mixed": 1, "tags": ["a", "红"], "big": 2**53 + 1},
    {"year": 2021, "price": 10, "sold": None, "mixed": "one", "kind": "own", "big": -(2**62)},
    {"price": 1e300, "huge": 2**70, "": "empty", "metadata.kind": "deep", "embedding": "taken", "nothing": None},
    {},
]


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return (rows, dim) float32, L2-normalised."""
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path: Path) -> Any:
    """Open an index of three images and a text with all sorts of metadata; the second item was removed again."""
    items = [
        Item(f"/photos/{number}.png", ItemKind.IMAGE, caption=f'a "{number}"\n红', metadata=metadata)
        for number, metadata in enumerate(METADATA[:3])
    ]
    items.insert(1, Item("/photos/gone.png", ItemKind.IMAGE))
    items.append(Item("lines.txt#1", ItemKind.TEXT, caption=None, metadata=METADATA[3], content_hash="ab" * 16))
    with Index.create(tmp_path / "idx", space=SPACE, dim=6) as made:
        added = made.add(unit(5, 6), items, space=SPACE).added
        made.remove([added[1]])
        yield made


def ids_of(index: Any) -> list[int]:
    """Return every id, in order."""
    found: list[int] = index.sample_ids(len(index))
    return found


def test_npy_and_lines_hold_what_was_added(index: Any, tmp_path: Path) -> None:
    """Row by row the vectors, items and ISO times of the index, bit for bit."""
    report = export_index(index, tmp_path / "out.npy")
    assert [file.name for file in report.files] == ["out.npy", "out.items.jsonl"]
    matrix = np.load(tmp_path / "out.npy")
    assert (matrix.dtype, matrix.shape, report.items) == (np.float32, (4, 6), 4)
    np.testing.assert_array_equal(matrix, index.vectors(ids_of(index)))
    lines = [json.loads(line) for line in (tmp_path / "out.items.jsonl").read_text(encoding="utf-8").splitlines()]
    for line, item in zip(lines, index.get(ids_of(index)), strict=True):
        assert (line["id"], line["uri"], line["kind"], line["caption"]) == (
            item.id,
            item.uri,
            item.kind.value,
            item.caption,
        )
        assert (line["metadata"], line["content_hash"]) == (item.metadata, item.content_hash)
        told = datetime.fromisoformat(line["added_at"])
        assert told.tzinfo == UTC
        assert math.isclose(told.timestamp(), item.added_at, abs_tol=1e-6)


def test_parquet_holds_what_was_added(index: Any, tmp_path: Path) -> None:
    """Fixed columns, embeddings as fixed-size float32 lists, UTC times, and every metadata value by its key."""
    export_index(index, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    items = index.get(ids_of(index))
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 6)
    embeddings = np.stack(table["embedding"].to_numpy())
    np.testing.assert_array_equal(embeddings, index.vectors([item.id for item in items]))
    for name in ("id", "uri", "caption", "content_hash"):
        assert table[name].to_pylist() == [getattr(item, name) for item in items]
    assert table["kind"].to_pylist() == [item.kind.value for item in items]
    assert table.schema.field("added_at").type == pyarrow.timestamp("us", tz="UTC")
    for told, item in zip(table["changed_at"].to_pylist(), items, strict=True):
        assert math.isclose(told.timestamp(), item.changed_at, abs_tol=1e-6)
    assert table.schema.metadata[b"twinspire.space"] == SPACE.encode()


def test_metadata_columns_have_the_type_of_their_values(index: Any, tmp_path: Path) -> None:
    """One type: that type; whole numbers and fractions: float64; several, lists, too large: JSON; taken names apart."""
    export_index(index, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    expected = {"year": "int64", "big": "int64", "price": "double", "sold": "bool", "camera": "string", "": "string"}
    assert {name: types[name] for name in expected} == expected
    columns = {key: key for metadata in METADATA for key in metadata}
    columns |= {"kind": "metadata.kind", "embedding": "metadata.embedding", "metadata.kind": "metadata.metadata.kind"}
    as_json = {name for name in columns.values() if b"twinspire.encoding" in (table.schema.field(name).metadata or {})}
    assert as_json == {"mixed", "tags", "huge"}
    for row, metadata in zip(table.to_pylist(), METADATA, strict=True):
        for key, column in columns.items():
            told = row[column]
            value = json.loads(told) if column in as_json and told is not None else told
            assert value == metadata.get(key), key


def test_too_many_keys_become_one_column(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the most columns the whole object is JSON in `metadata`."""
    monkeypatch.setattr(export_parquet, "MAX_COLUMNS", 5)
    export_index(index, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert "year" not in table.column_names
    assert [json.loads(told) for told in table["metadata"].to_pylist()] == METADATA


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("dtype", list(VectorType))
def test_pages_and_empty_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: VectorType) -> None:
    """Many pages give the same as one, float16 comes as float32, and nothing at all is a file without rows."""
    monkeypatch.setattr(item_pages, "_PAGE_ITEMS", 7)
    steps: list[tuple[int, int]] = []
    with Index.create(tmp_path / "idx", space=SPACE, dim=3, dtype=dtype) as made:
        export_index(made, tmp_path / name)
        assert read(tmp_path / name).shape == (0, 3)
        made.add(unit(50, 3), [Item(f"{n}", ItemKind.TEXT, metadata={"n": n}) for n in range(50)], space=SPACE)
        export_index(made, tmp_path / name, on_progress=lambda *step: steps.append(step))
        np.testing.assert_array_equal(read(tmp_path / name), made.vectors(ids_of(made)))
        export_index(made, tmp_path / name, where=Filter.parse("n >= 40"))
        np.testing.assert_array_equal(read(tmp_path / name), made.vectors(ids_of(made)[40:]))
    assert steps == [*((done, 50) for done in range(7, 50, 7)), (50, 50)]


def read(file: Path) -> np.ndarray:
    """Return the embeddings of a file, (N, D)."""
    if file.suffix == ".npy":
        loaded: np.ndarray = np.load(file)
        return loaded
    column = pq.read_table(file)["embedding"].combine_chunks()
    flat = column.flatten() if len(column) else np.zeros(0, np.float32)
    return np.asarray(flat, np.float32).reshape(len(column), -1 if len(column) else column.type.list_size)


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_one_committed_state_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What a writer adds, removes, changes and compacts meanwhile is not in the files."""
    monkeypatch.setattr(item_pages, "_PAGE_ITEMS", 5)
    items = [Item(f"{number}", ItemKind.TEXT, metadata={"number": number}) for number in range(20)]
    with Index.create(tmp_path / "idx", space=SPACE, dim=3) as writer:
        ids = writer.add(unit(20, 3), items, space=SPACE).added
        before = writer.vectors(ids)

        def disturb(done: int, _: int) -> None:
            if done == 5:
                writer.remove(ids[:2] + ids[-2:])
                writer.update(ids[10], metadata={"number": "other"}, embedding=unit(1, 3, seed=9)[0], space=SPACE)
                writer.add(unit(3, 3, seed=8), [Item(f"new {n}", ItemKind.TEXT) for n in range(3)], space=SPACE)
                writer.compact()

        with Index.open(tmp_path / "idx") as reader:
            assert export_index(reader, tmp_path / name, on_progress=disturb).items == 20
            np.testing.assert_array_equal(read(tmp_path / name), before)
            assert export_index(reader, tmp_path / name).items == 19


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_a_failure_leaves_what_was_there(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where writing fails, here at the last sync and before, the old files stay and no other appears."""
    (tmp_path / name).write_text("old")
    (tmp_path / "out.items.jsonl").write_text("old lines")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for target, attribute in ((export.disk, "sync_file"), (export.NpyWriter, "write"), (export_parquet, "_json")):
        if (attribute == "_json" and name == "out.npy") or (attribute == "write" and name == "out.parquet"):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, full)
            with pytest.raises(InputError, match="No space left"):
                export_index(index, tmp_path / name)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_what_was_read_in_vain_is_read_again(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the catalogue changed under the reader, no file takes its place before all was read once more."""
    plain, ends = parts.Handle.reading, []

    @contextmanager
    def changing(self: Any, doing: str) -> Iterator[Any]:
        with plain(self, doing) as current:
            yield current
        ends.append((tmp_path / "out.npy").exists())
        if len(ends) == 1:
            raise CatalogueChangedError("the catalogue changed")

    monkeypatch.setattr(parts.Handle, "reading", changing)
    assert export_index(index, tmp_path / "out.npy").items == 4
    assert ends == [False, False]
    assert np.load(tmp_path / "out.npy").shape == (4, 6)


def test_what_cannot_be_written_is_refused_first(index: Any, tmp_path: Path) -> None:
    """Another suffix, a folder, a missing folder, the index's own folder: nothing appears."""
    (tmp_path / "folder.npy").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name, word in (
        ("out.csv", r"\.parquet"),
        ("out", r"\.parquet"),
        ("folder.npy", r"\sfolder"),
        ("no/out.npy", "create"),
        ("idx/out.npy", "itself"),
    ):
        with pytest.raises(InputError, match=word):
            export_index(index, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_parquet_needs_an_extra(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow the error names the extra; .npy needs none."""
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as caught:
        export_index(index, tmp_path / "out.parquet")
    assert caught.value.extra == "parquet"
    assert export_index(index, tmp_path / "out.npy").items == 4


def test_memory_does_not_grow_with_the_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the items take about the same memory of Python's and NumPy's, a fraction of the matrix."""
    monkeypatch.setattr(item_pages, "_PAGE_BYTES", 1 << 18)
    peaks = []
    with Index.create(tmp_path / "idx", space=SPACE, dim=256) as made:
        for total in (1_500, 6_000):
            count = total - len(made)
            made.add(unit(count, 256, seed=total), [Item(f"{n}", ItemKind.TEXT) for n in range(count)], space=SPACE)
            tracemalloc.start()
            export_index(made, tmp_path / "out.npy")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 6_000 * 256 * 4 / 4, peaks
    assert peaks[1] < peaks[0] + (2 << 20), peaks


def test_the_command_exports(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`twinspire index export` with a filter, as words and as JSON; errors are messages with status 2."""
    index.close()
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["index", "export", *arguments])
        return int(ended.value.code or 0), *capfd.readouterr()

    status, out, _ = run("idx", "out.npy", "--where", "year >= 2021")
    assert (status, np.load("out.npy").shape) == (0, (1, 6))
    assert "out.npy" in out
    assert "out.items.jsonl" in out
    status, out, _ = run("idx", "out.parquet", "--json")
    assert (status, json.loads(out)["items"], json.loads(out)["dim"]) == (0, 4, 6)
    for arguments in (("idx", "out.txt"), ("nope", "out.npy"), ("idx", "out.npy", "--where", "year >")):
        status, out, err = run(*arguments)
        assert (status, out, err.count("error:")) == (2, "", 1)
