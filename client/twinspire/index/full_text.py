"""Keyword queries compiled to expressions of SQLite's FTS5 (https://sqlite.org/fts5.html#full_text_query_syntax)."""

from __future__ import annotations

from twinspire.stores.text_query import TextPhrase, TextQuery, TextTerm, is_prefix


def fts5_expression(query: TextQuery) -> str:
    """Return the FTS5 expression of a query that is not empty. Everything in it is quoted: a word is never syntax."""
    required = " AND ".join([*map(_phrase, query.phrases), *(f"({_any_of(term)})" for term in query.must)])
    optional = " OR ".join(map(_any_of, query.should))
    if not required or not optional:
        return required or optional
    # An item without any of the optional words matches too; BM25 counts all phrases of an expression.
    return f"({required}) AND ({optional} OR ({required}))"


def _any_of(term: TextTerm) -> str:
    return " OR ".join(map(_phrase, term))


def _phrase(words: TextPhrase) -> str:
    quoted = '"' + " ".join(words).replace('"', '""') + '"'
    return f"{quoted}*" if is_prefix(words[-1]) else quoted
