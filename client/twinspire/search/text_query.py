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
_MOST_TERMS = 64  # of a query; a store has its own limit, and what comes later hardly counts
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003134f]")

_ENGLISH = """
a about above all an and any are as at be been but by can could do does for from had has have he her his how i if image
images in into is it its me my near no not of on or our photo photos picture pictures she show so some that the their
them there these they this those to under up was we were what when where which who will with you your
"""
# Words of two characters are dropped as pairs; of the single ones only what is hardly ever part of a word.
_CHINESE = """
的 了 吗 呢 吧 啊 一个 一只 一张 一些 一幅 这个 那个 这些 那些 我们 你们 他们 什么 怎么 没有 以及 还有 图片 照片 图像
有个 里有 是一 有一 在一
"""
ENGLISH_STOP_WORDS = frozenset(_ENGLISH.split())
CHINESE_STOP_WORDS = frozenset(_CHINESE.split())
STOP_WORDS = ENGLISH_STOP_WORDS | CHINESE_STOP_WORDS


@dataclass(frozen=True, slots=True)
class Wording:
    """A text taken apart: `phrases` stood in double quotes, `rest` is what is left."""

    rest: str
    phrases: tuple[str, ...]


def wording_of(text: str) -> Wording:
    """Take the phrases in " ", “ ”, 「 」, 『 』 or « » out of a text. A quote without another is a character."""
    phrases = tuple(next(group for group in found.groups() if group is not None) for found in _QUOTED.finditer(text))
    return Wording(" ".join(_QUOTED.sub(" ", text).split()), tuple(phrase for phrase in phrases if phrase.strip()))


@dataclass(frozen=True)
class Synonyms:
    """Words that stand for others: by the tokens of a word or phrase, those of what is looked for beside it.

    Raises `InputError` for words that are no str or have lone surrogates, and for one where a list is expected.
    """

    groups: Mapping[tuple[str, ...], tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.groups, Mapping):
            raise InputError(f"synonyms are a mapping of words to lists of words, got {shown(self.groups)}")
        checked = {
            _checked_words(source): tuple(_checked_words(target) for target in as_list(targets, "synonyms"))
            for source, targets in self.groups.items()
        }
        object.__setattr__(self, "groups", checked)

    @classmethod
    def read(cls, path: str | Path) -> Synonyms:
        """Read a file of groups, one a line: `car, automobile, 汽车` for each other, `tv => television` one way.

        Empty lines and what follows a # are passed over. Raises `InputError`, with the line, for what is no group.
        """
        found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for number, line in read_lines(path, "the synonyms"):
            left, arrow, right = line.partition("=>")
            sources = _entries(left)
            targets = _entries(right) if arrow else sources
            if not all([*sources, *targets]) or len({*sources, *targets}) < 2:
                raise InputError(
                    f"{path}, line {number}: {line!r} is no group of synonyms: expected words with commas between "
                    "them, such as car, automobile; or one way: tv => television"
                )
            for source in sources:
                known = found.setdefault(source, [])
                known += [target for target in targets if target != source and target not in known]
        return cls({source: tuple(targets) for source, targets in found.items()})

    def spans(self, words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ...]]:
        """Give, for each word or known phrase of several, its tokens and those of its synonyms; the longest counts."""
        longest = max(map(len, self.groups), default=1)
        place = 0
        while place < len(words):
            for length in range(min(longest, len(words) - place), 0, -1):
                span = tuple(words[place : place + length])
                if span in self.groups or length == 1:
                    yield span, *self.groups.get(span, ())
                    place += length
                    break


def required(wording: Wording) -> TextQuery | None:
    """Return the query that all phrases, word for word, are there; None without phrases."""
    phrases = tuple(tuple(words) for phrase in wording.phrases if (words := tokens(phrase)))
    return TextQuery(phrases=phrases) if phrases else None


def expression(
    wording: Wording,
    *,
    synonyms: Synonyms | None = None,
    stop_words: frozenset[str] = STOP_WORDS,
    is_common: Callable[[TextQuery], bool] | None = None,
) -> TextQuery | None:
    """Return the keyword query of a text: its phrases must be there, any of its other words counts.

    Stop words are left out unless there is nothing else, and so are terms of which `is_common` says so. None where
    there is no word at all.
    """
    must = required(wording)
    words = tokens(wording.rest)
    telling = [word for word in words if not _is_stop_word(word, stop_words)]
    if not telling and must is None:
        telling = words
    terms: dict[TextTerm, None] = {}
    for span in (synonyms or Synonyms()).spans(telling):
        term = _term(span)
        if len(terms) < _MOST_TERMS and not (is_common and is_common(TextQuery(should=(term,)))):
            terms[term] = None
    return TextQuery(should=tuple(terms), phrases=must.phrases if must else ()) if terms or must else None


def rare(
    wording: Wording,
    is_rare: Callable[[TextQuery], bool],
    *,
    synonyms: Synonyms | None = None,
    stop_words: frozenset[str] = STOP_WORDS,
) -> TextQuery | None:
    """Return the query of those words of a text of which `is_rare` says so: an item must have one of them.

    Rare words are names and numbers, what models know least, and what tells items apart best. Of Chinese the index
    holds pairs, many of which are rare only because they stand across two words. So a pair counts where it is a whole
    run, and otherwise only several in a row do, as one phrase. None where no word is rare.
    """
    words = tokens(wording.rest)[:_MOST_TERMS]
    groups = (synonyms or Synonyms()).groups
    found: dict[TextTerm, None] = {}
    place = 0
    while place < len(words):
        chain = [words[place]]
        while place + len(chain) < len(words) and _overlap(chain[-1], words[place + len(chain)]):
            chain.append(words[place + len(chain)])
        place += len(chain)
        if _HAN.match(chain[0]) is None or len(chain) == 1:
            terms = [_term([(chain[0],), *groups.get((chain[0],), ())])] if chain[0] not in stop_words else []
        else:
            marks = [not _is_stop_word(pair, stop_words) and is_rare(TextQuery(phrases=((pair,),))) for pair in chain]
            terms = [(tuple(some),) for some in _in_a_row(chain, marks)]
        found |= dict.fromkeys(term for term in terms if is_rare(TextQuery(should=(term,))))
    if not found:
        return None
    must = required(wording)
    alternatives = tuple(phrase for term in found for phrase in term)
    return TextQuery(must=(alternatives,), phrases=must.phrases if must else ())


def _term(alternatives: Sequence[TextPhrase]) -> TextTerm:
    """Return the alternatives with their singulars and plurals."""
    return tuple(dict.fromkeys(form for alternative in alternatives for form in _forms(alternative)))


def _overlap(pair: str, following: str) -> bool:
    """Tell whether two pairs are of one run of Chinese."""
    return len(pair) == len(following) == 2 and pair[1] == following[0] and _HAN.match(pair) is not None


def _in_a_row(pairs: Sequence[str], marks: Sequence[bool]) -> list[list[str]]:
    """Return the marked pairs that stand beside another one, as they stand together."""
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
    # A pair with a particle in it is no word: 色的, 的车.
    return _HAN.match(word) is not None and any(character in stop_words for character in word)


def _forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a word of English letters in singular and plural, anything else as it is."""
    (*before, last) = words
    if not (last.isascii() and last.isalpha()) or len(last) < 3 or last.endswith(("ss", "us", "is")):
        return [words]
    other = last[:-1] if last.endswith("s") else f"{last}s"
    return [words, (*before, other)]


def _checked_words(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(require_text(word, "a synonym's word") for word in as_list(words, "words"))


def _entries(text: str) -> list[tuple[str, ...]]:
    return [tuple(tokens(entry)) for entry in re.split(r"[,，、]", text)]
