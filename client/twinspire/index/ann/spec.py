"""Index specs: the parsed form of strings such as `pca256,ivf,pq64` and `hnsw,sq8,m=32`.

A spec string is a list of words with commas between: optionally `pcaN`, which projects vectors to N dimensions, then
the family, then how vectors are coded (`sq8`, `pqM`, `pqMx4`), then options. A coded or projected index finds
candidates only; they are rescored from the vector file, so that all scores are exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twinspire.errors import InputError
from twinspire.index.ann.codes import CODES, Code
from twinspire.index.ann.family import IndexFamily, registered_families

AUTO = "auto"
"""What is given in place of a spec to have one chosen by the number of vectors and the free memory."""
_PCA_RESCORE_FACTOR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """What an index is built as. `options` are those that were given. Raises `InputError` for what does not fit."""

    family: type[IndexFamily]
    pca: int | None = None
    code: Code | None = None
    options: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        family = self.family
        if self.pca is not None and (self.pca < 1 or not family.takes_pca):
            projected = ", ".join(name for name, known in registered_families().items() if known.takes_pca)
            raise InputError(f"pca{self.pca} before {family.name}: expected pcaN, N from 1 up, before {projected}")
        if self.code is not None and not isinstance(self.code, family.codes):
            able = [f"{name},{code.form}" for name, known in registered_families().items() for code in known.codes]
            raise InputError(f"{family.name} cannot hold {self.code} codes: expected such as {', '.join(able)}")
        for name, value in self.options:
            option = family.options.get(name)
            if option is None:
                raise InputError(
                    f"{family.name} has no option {name}: expected one of {', '.join(family.options) or 'none'}"
                )
            if value < option.minimum or (option.maximum is not None and value > option.maximum):
                range_ = f"from {option.minimum} " + ("up" if option.maximum is None else f"to {option.maximum}")
                raise InputError(f"{family.name}: the option {name} must be a whole number {range_}, got {value}")

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Return the spec that `text` names. Raises `InputError`, which lists examples, for an unknown one."""
        words = [word.strip().lower() for word in text.split(",")]
        pca = None
        if found := re.fullmatch(r"pca(\d+)", words[0]):
            pca, words = int(found[1]), words[1:]
        family = registered_families().get(words[0]) if words else None
        if family is None:
            raise InputError(f"unknown index spec {text!r}: {_expected()}")
        code: Code | None = None
        options: dict[str, int] = {}
        for word in words[1:]:
            parsed = next((made for made in (known.parse(word) for known in CODES) if made is not None), None)
            option = re.fullmatch(r"(\w+)=(\d+)", word)
            if parsed is not None and code is None:
                code = parsed
            elif option is not None and option[1] not in options and _is_option(option[1]):
                options[option[1]] = int(option[2])
            else:
                raise InputError(
                    f"unknown part {word!r} in the index spec {text!r}: {_expected()}, "
                    "and options such as nlist=1024, m=32, ef_construction=200"
                )
        ordered = tuple(sorted(options.items(), key=lambda item: [*family.options, item[0]].index(item[0])))
        return cls(family=family, pca=pca, code=code, options=ordered)

    def __str__(self) -> str:
        words = [f"pca{self.pca}"] if self.pca is not None else []
        words.append(self.family.name)
        if self.code is not None:
            words.append(str(self.code))
        return ",".join([*words, *(f"{name}={value}" for name, value in self.options)])

    def option(self, name: str) -> int:
        """Return an option, or its default."""
        value = dict(self.options).get(name, self.family.options[name].default)
        assert value is not None, f"{name} has no default"
        return value

    @property
    def is_exact(self) -> bool:
        """Whether it is exact search over the vector file itself, with nothing to build."""
        return self.family.is_exact(self)

    @property
    def is_lossy(self) -> bool:
        """Whether the index's scores are approximate, so that candidates are rescored."""
        return self.default_rescore_factor > 1

    @property
    def default_rescore_factor(self) -> int:
        """Number of candidates that are rescored per result by default; more for coarser codes, 1: none are."""
        coded = 1 if self.code is None else self.code.rescore_factor
        return max(self.family.rescore_factor, coded, 1 if self.pca is None else _PCA_RESCORE_FACTOR)

    def check(self, dim: int) -> None:
        """Raise `InputError` where vectors of `dim` numbers cannot be held so."""
        if self.pca is not None and self.pca >= dim:
            raise InputError(
                f"{self}: expected a projection to fewer than the vectors' {dim} dimensions, got pca{self.pca}"
            )
        if self.code is not None:
            self.code.check(self.width(dim))

    def require_vectors(self, count: int) -> None:
        """Raise `InputError` where `count` vectors are too few to train it."""
        trained = 1 if self.code is None else self.code.minimum_vectors
        minimum = max(trained, self.pca or 1, self.family.list_count(self, count) or 1)
        if count < minimum:
            raise InputError(
                f"an index {self} needs at least {minimum} vectors to be trained, got {count}: "
                "search exactly (flat) until there are more"
            )

    def width(self, dim: int) -> int:
        """Return the number of dimensions after the projection."""
        return dim if self.pca is None else self.pca

    def vector_bytes(self, dim: int) -> int:
        """Return the bytes that the index holds of a vector of `dim` numbers."""
        return 4 * self.width(dim) if self.code is None else self.code.bytes_of(self.width(dim))


def parse_choice(text: str) -> IndexSpec | None:
    """Return the spec that `text` names, None for `auto`. Raises `InputError` for an unknown one."""
    return None if text.strip().lower() == AUTO else IndexSpec.parse(text)


def _is_option(name: str) -> bool:
    return any(name in family.options for family in registered_families().values())


def _expected() -> str:
    examples = [text for family in registered_families().values() for text in family.examples or (family.name,)]
    return f"expected a spec such as {', '.join(examples)} (or auto, to build an index)"
