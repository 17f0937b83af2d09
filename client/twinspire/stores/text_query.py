"""A keyword query, free of any store's syntax: each store compiles it to its own full-text search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

TextPhrase: TypeAlias = tuple[str, ...]
"""Words in a row, as `tokens` gives them: one word is a phrase of one."""
TextTerm: TypeAlias = tuple[TextPhrase, ...]
"""Alternatives of which any will do: a word, its plural and its synonyms."""


@dataclass(frozen=True, slots=True)
class TextQuery:
    """What a keyword search asks for.

    An item matches where it has every one of `phrases`, word by word, and of every term in `must` at least one
    alternative; where both are empty, it must have an alternative of at least one term in `should`. Whatever an item
    has of any of them counts in its score (BM25). A query without any of them matches nothing.
    """

    must: tuple[TextTerm, ...] = ()
    should: tuple[TextTerm, ...] = ()
    phrases: tuple[TextPhrase, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.must or self.should or self.phrases)
