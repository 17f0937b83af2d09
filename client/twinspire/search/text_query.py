"""The keyword query of a text: quoted phrases, stop words, synonyms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twinspire._arguments import as_list, require_text, shown
from twinspire.errors import InputError
from twinspire.search.text_files import read_lines
from twinspire.stores.text_query import TextPhrase, TextQuery, TextTerm, tokens

_QUOTED = re.compile(r"\"([^\"]*)\"|“([^”]*)”|「([^」]*)」|『([^』]*)』|«([^»]*)»")
_MAX_TERMS = 64  # of a query: a store has its own limit, and later words hardly matter
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003134f]")

_ENGLISH = """
a about above all an and any are as at be been but by can could do does for from had has have he her his how i if image
images in into is it its me my near no not of on or our photo photos picture pictures she show so some that the their
them there these they this those to under up was we were what when where which who will with you your
"""
# Stop words of two characters are compared with pairs; a single character is one only if it is hardly ever part of a
# longer word.
_CHINESE = """
的 了 吗 呢 吧 啊 一个 一只 一张 一些 一幅 这个 那个 这些 那些 我们 你们 他们 什么 怎么 没有 以及 还有 图片 照片 图像
有个 里有 是一 有一 在一
"""
ENGLISH_STOP_WORDS = frozenset(_ENGLISH.split())
CHINESE_STOP_WORDS = frozenset(_CHINESE.split())
STOP_WORDS = ENGLISH_STOP_WORDS | CHINESE_STOP_WORDS


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A text with its quoted phrases set apart: `phrases` were in quotes, `rest` is what is left."""

    rest: str
    phrases: tuple[str, ...]


def parse_phrases(text: str) -> ParsedText:
    """Set the phrases in " ", “ ”, 「 」, 『 』 or « » apart. A quote without a closing one is a character."""
    phrases = tuple(next(group for group in match.groups() if group is not None) for match in _QUOTED.finditer(text))
    return ParsedText(" ".join(_QUOTED.sub(" ", text).split()), tuple(phrase for phrase in phrases if phrase.strip()))


@dataclass(frozen=True)
class Synonyms:
    """Synonyms for keyword search: the tokens of a word or phrase, and those of the alternatives to search for as well.

    Raises `InputError` for anything but lists of words.
    """

    groups: Mapping[tuple[str, ...], tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.groups, Mapping):
            raise InputError(f"synonyms: expected a mapping of words to lists of words, got {shown(self.groups)}")
        checked = {
            _checked_words(source): tuple(_checked_words(target) for target in as_list(targets, "synonyms"))
            for source, targets in self.groups.items()
        }
        object.__setattr__(self, "groups", checked)

    @classmethod
    def read(cls, path: str | Path) -> Synonyms:
        """Read a file with a group a line: `car, automobile, 汽车`, each for the others; `tv => television` one way.

        Empty lines and what follows a # are ignored. Raises `InputError` with the line.
        """
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for number, line in read_lines(path, "the synonyms"):
            left, arrow, right = line.partition("=>")
            sources = _entries(left)
            targets = _entries(right) if arrow else sources
            if not all([*sources, *targets]) or len({*sources, *targets}) < 2:
                raise InputError(
                    f"{path}, line {number}: {line!r} is not a group of synonyms: expected words separated by commas, "
                    "such as: car, automobile; or one way: tv => television",
                    path=path,
                    line=number,
                )
            for source in sources:
                known = groups.setdefault(source, [])
                known += [target for target in targets if target != source and target not in known]
        return cls({source: tuple(targets) for source, targets in groups.items()})

    def spans(self, words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ...]]:
        """Split `words` into single words and the longest known phrases; yield each with its synonyms."""
        longest = max(map(len, self.groups), default=1)
        start = 0
        while start < len(words):
            for length in range(min(longest, len(words) - start), 0, -1):
                span = tuple(words[start : start + length])
                if span in self.groups or length == 1:
                    yield span, *self.groups.get(span, ())
                    start += length
                    break


def phrase_query(text: ParsedText) -> TextQuery | None:
    """Return the query for items that have all quoted phrases; None without phrases."""
    phrases = tuple(tuple(words) for phrase in text.phrases if (words := tokens(phrase)))
    return TextQuery(phrases=phrases) if phrases else None


def keyword_query(
    text: ParsedText,
    *,
    synonyms: Synonyms | None = None,
    stop_words: frozenset[str] = STOP_WORDS,
    is_common: Callable[[TextQuery], bool] | None = None,
) -> TextQuery | None:
    """Return the keyword query of a text: items must have its phrases, and any of its other words adds to the score.

    Terms that `is_common` returns true of are left out, and stop words unless there is nothing else. None where the
    text has no word.
    """
    must = phrase_query(text)
    words = tokens(text.rest)
    kept = [word for word in words if not _is_stop_word(word, stop_words)]
    if not kept and must is None:
        kept = words
    terms: dict[TextTerm, None] = {}
    for span in (synonyms or Synonyms()).spans(kept):
        term = _term(span)
        if len(terms) < _MAX_TERMS and not (is_common and is_common(TextQuery(should=(term,)))):
            terms[term] = None
    return TextQuery(should=tuple(terms), phrases=must.phrases if must else ()) if terms or must else None


def rare_query(
    text: ParsedText,
    is_rare: Callable[[TextQuery], bool],
    *,
    synonyms: Synonyms | None = None,
    stop_words: frozenset[str] = STOP_WORDS,
) -> TextQuery | None:
    """Return the query for items with any of the rare words of a text, those that `is_rare` returns true of.

    Rare words are names and numbers, which models know worst and which distinguish items best. Chinese is indexed in
    pairs of characters, many of which are rare only because they span two words: a pair counts on its own where it is
    a whole run of Chinese, else only several rare pairs in a row do, as one phrase. None where no word is rare.
    """
    words = tokens(text.rest)[:_MAX_TERMS]
    groups = (synonyms or Synonyms()).groups
    rare: dict[TextTerm, None] = {}
    start = 0
    while start < len(words):
        run = [words[start]]
        while start + len(run) < len(words) and _overlap(run[-1], words[start + len(run)]):
            run.append(words[start + len(run)])
        start += len(run)
        if _HAN.match(run[0]) is None or len(run) == 1:
            terms = [_term([(run[0],), *groups.get((run[0],), ())])] if run[0] not in stop_words else []
        else:
            marks = [not _is_stop_word(pair, stop_words) and is_rare(TextQuery(phrases=((pair,),))) for pair in run]
            terms = [(tuple(pairs),) for pairs in _marked_rows(run, marks)]
        rare |= dict.fromkeys(term for term in terms if is_rare(TextQuery(should=(term,))))
    if not rare:
        return None
    must = phrase_query(text)
    alternatives = tuple(phrase for term in rare for phrase in term)
    return TextQuery(must=(alternatives,), phrases=must.phrases if must else ())


def _term(alternatives: Sequence[TextPhrase]) -> TextTerm:
    """Return the term of these alternatives, each in singular and plural."""
    return tuple(dict.fromkeys(form for alternative in alternatives for form in _forms(alternative)))


def _overlap(pair: str, following: str) -> bool:
    """Return whether two pairs of characters follow each other in one run of Chinese."""
    return len(pair) == len(following) == 2 and pair[1] == following[0] and _HAN.match(pair) is not None


def _marked_rows(pairs: Sequence[str], marks: Sequence[bool]) -> list[list[str]]:
    """Return the rows of two marked pairs or more that follow each other."""
    rows: list[list[str]] = [[]]
    for pair, mark in zip(pairs, marks, strict=True):
        if mark:
            rows[-1].append(pair)
        elif rows[-1]:
            rows.append([])
    return [row for row in rows if len(row) > 1]


def _is_stop_word(word: str, stop_words: frozenset[str]) -> bool:
    if word in stop_words:
        return True
    # A pair that has a particle in it is not a word: 色的, 的车.
    return _HAN.match(word) is not None and any(character in stop_words for character in word)


def _forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a phrase whose last word is English in singular and plural, any other as it is."""
    (*before, last) = words
    if not (last.isascii() and last.isalpha()) or len(last) < 3 or last.endswith(("ss", "us", "is")):
        return [words]
    other = last[:-1] if last.endswith("s") else f"{last}s"
    return [words, (*before, other)]


def _checked_words(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(require_text(word, "a synonym's word") for word in as_list(words, "words"))


def _entries(text: str) -> list[tuple[str, ...]]:
    return [tuple(tokens(entry)) for entry in re.split(r"[,，、]", text)]
