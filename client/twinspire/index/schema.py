"""The tables of the catalogue."""

from __future__ import annotations

SCHEMA_VERSION = 2
APPLICATION_ID = 0x74777370  # "twsp": tells a catalogue from any other SQLite file

SCHEMA = """
CREATE TABLE catalogue (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    schema_version INTEGER NOT NULL,
    space          TEXT    NOT NULL,
    dim            INTEGER NOT NULL,
    dtype          TEXT    NOT NULL, -- of the vectors: float32 or float16
    generation     INTEGER NOT NULL, -- counts the changes: add, remove, update, compact
    vectors_file   TEXT    NOT NULL, -- the name of the vector file that counts; any other is left over
    committed      INTEGER NOT NULL, -- rows of it that count; the rest is a torn tail
    checksum       INTEGER NOT NULL, -- running CRC-32 of their bytes
    next_id        INTEGER NOT NULL, -- ids below are, or were, an item's
    writers        INTEGER NOT NULL  -- how often the index was opened for writing, see `Catalogue.settle`
);
CREATE TABLE items (
    id           INTEGER PRIMARY KEY,     -- for ever
    row          INTEGER NOT NULL UNIQUE, -- the place of its vector in the vector file, from 0; changes
    kind         TEXT NOT NULL CHECK (kind IN ('image', 'text')),
    uri          TEXT NOT NULL,
    caption      TEXT,
    metadata     TEXT NOT NULL,           -- a JSON object
    content_hash TEXT,                    -- NULL: never taken for a duplicate
    added_at     REAL NOT NULL,           -- Unix time, seconds
    changed_at   REAL NOT NULL,
    UNIQUE (kind, content_hash)
);
CREATE INDEX items_by_uri ON items (uri);
CREATE TABLE dead (
    row        INTEGER PRIMARY KEY, -- of the vector file, no item's any more
    generation INTEGER NOT NULL     -- the change after which it was dead
);
CREATE INDEX dead_by_generation ON dead (generation);
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "unicode61 remove_diacritics 2"); -- rowid: the item's id
CREATE TABLE snapshots (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    name     TEXT    NOT NULL, -- of the file; empty: to be built anew
    kind     TEXT    NOT NULL,
    rows     INTEGER NOT NULL, -- of the vector file, from the first, that it covers
    checksum INTEGER NOT NULL, -- CRC-32 of the file
    effort   INTEGER,          -- of a search: lists looked at, or breadth in a graph; NULL: the usual
    reach    INTEGER           -- candidates scored again for each result; NULL: the usual
);
"""
