"""The tables of the catalogue."""

from __future__ import annotations

SCHEMA_VERSION = 3
SEVERAL_VECTORS_VERSION = 4
"""Schema of an index with several vectors an item: schema 3 and the column `vectors_per_item`."""
APPLICATION_ID = 0x74777370  # "twsp": tells a catalogue from any other SQLite file

ITEM_COLUMNS = "id, row, kind, uri, caption, metadata, content_hash, added_at, changed_at, checksum"
HEADER_COLUMNS = "schema_version, identity, tables, space, dim, dtype, bundle_name, bundle_path, writers"
COMMIT_COLUMNS = "generation, vectors_file, committed, checksum, next_id, placed, contents, dead, items, images"
SNAPSHOT_COLUMNS = "name, kind, rows, checksum, effort, reach"

SCHEMA = """
CREATE TABLE catalogue (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    schema_version INTEGER NOT NULL,
    identity       INTEGER NOT NULL, -- random: tells the index from another one in the same folder
    tables         INTEGER NOT NULL, -- CRC-32 of the definitions of all tables
    space          TEXT    NOT NULL,
    dim            INTEGER NOT NULL,
    dtype          TEXT    NOT NULL, -- of the vectors: float32 or float16
    bundle_name    TEXT,             -- the bundle that made the embeddings; NULL: unknown
    bundle_path    TEXT,             -- its folder, absolute; NULL: the sample that comes with the package
    writers        INTEGER NOT NULL, -- how often the index was opened for writing, see `Catalogue.recover`
    generation     INTEGER NOT NULL, -- counts the changes: add, remove, update, compact
    vectors_file   TEXT    NOT NULL, -- name of the current vector file; any other is stale
    committed      INTEGER NOT NULL, -- number of its committed rows; the rest is a torn tail
    checksum       INTEGER NOT NULL, -- running CRC-32 of their bytes
    next_id        INTEGER NOT NULL, -- ids below it have been given to items
    placed         INTEGER NOT NULL, -- sum over all items of row and id, see `digests`
    contents       INTEGER NOT NULL, -- sum over all items of their contents
    dead           INTEGER NOT NULL, -- sum over all rows of `dead`
    items          INTEGER NOT NULL, -- number of items
    images         INTEGER NOT NULL, -- number of items of kind image
    row_checksum   INTEGER NOT NULL  -- CRC-32 of the columns above, without the first
);
CREATE TABLE items (
    id           INTEGER PRIMARY KEY,     -- never reused
    row          INTEGER NOT NULL UNIQUE, -- the row of its vector in the vector file, from 0; changes
    kind         TEXT NOT NULL CHECK (kind IN ('image', 'text', 'audio')),
    uri          TEXT NOT NULL,
    caption      TEXT,
    metadata     TEXT NOT NULL,           -- a JSON object
    content_hash TEXT,                    -- NULL: never a duplicate
    added_at     REAL NOT NULL,           -- Unix time, seconds
    changed_at   REAL NOT NULL,
    checksum     INTEGER NOT NULL         -- of the columns above, see `digests`
);
CREATE INDEX items_by_uri ON items (uri);
CREATE INDEX items_by_content ON items (content_hash, kind);
CREATE TABLE dead (
    row        INTEGER PRIMARY KEY, -- of the vector file, without an item
    generation INTEGER NOT NULL     -- of the change that made it dead
);
CREATE INDEX dead_by_generation ON dead (generation);
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "unicode61 remove_diacritics 2"); -- rowid: the item's id
CREATE TABLE snapshots (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    name         TEXT    NOT NULL, -- of the file; empty: to be rebuilt
    kind         TEXT    NOT NULL,
    rows         INTEGER NOT NULL, -- first rows of the vector file that it covers
    checksum     INTEGER NOT NULL, -- CRC-32 of the file
    effort       INTEGER,          -- of a search: nprobe or efSearch; NULL: the default
    reach        INTEGER,          -- rescore_factor of a search; NULL: the default
    row_checksum INTEGER NOT NULL  -- CRC-32 of the columns above, without the first
);
"""

_LAST_COLUMN = "    row_checksum   INTEGER NOT NULL  -- CRC-32 of the columns above, without the first\n"
_VECTORS_PER_ITEM = "    vectors_per_item INTEGER NOT NULL, -- in a row of the vector file\n"


def schema_of(vectors_per_item: int) -> str:
    """Return the SQL that makes the tables of an empty index. Of one vector an item they are those of schema 3."""
    return SCHEMA if vectors_per_item == 1 else SCHEMA.replace(_LAST_COLUMN, _VECTORS_PER_ITEM + _LAST_COLUMN)


def catalogue_table(vectors_per_item: int) -> str:
    """Return the SQL that makes the table `catalogue` alone."""
    statement = schema_of(vectors_per_item).strip().partition(";\n")[0]
    assert statement.startswith("CREATE TABLE catalogue"), statement
    return statement
