"""What a business adds to relevance: items that a filter keeps gain, lose, or stand first."""

from __future__ import annotations

from dataclasses import dataclass

from twinspire._arguments import is_finite, require_text, shown
from twinspire.errors import InputError
from twinspire.stores.filters.filter import Filter


@dataclass(frozen=True, slots=True)
class Boost:
    """What the score of items that `where` keeps gains; a weight below 0 demotes. Raises `InputError` for no number."""

    where: Filter
    weight: float

    def __post_init__(self) -> None:
        if isinstance(self.where, str):
            object.__setattr__(self, "where", Filter.parse(self.where))
        if not isinstance(self.where, Filter):
            raise InputError(f"a boost needs a Filter or its text, got {shown(self.where)}")
        if not is_finite(self.weight) or self.weight == 0:
            raise InputError(f"the weight of a boost is a number other than 0, got {shown(self.weight)}")

    @classmethod
    def parse(cls, text: str) -> Boost:
        """Read `in_stock = true:0.1`: a filter, a colon, a weight. Raises `InputError`."""
        condition, colon, weight = require_text(text, "a boost").rpartition(":")
        try:
            number = float(weight) if colon else None
        except ValueError:
            number = None
        if number is None or not condition.strip():
            raise InputError(
                f"the boost {text!r}: expected a filter, a colon and what the score gains, such as "
                '"in_stock = true:0.1"; a weight below 0 demotes'
            )
        return cls(Filter.parse(condition), number)

    @property
    def name(self) -> str:
        """How it is called among a hit's score parts."""
        return f"boost {self.where.text.strip()}"


def both(*filters: Filter | None) -> Filter | None:
    """Return a filter that keeps what all of these keep."""
    given = [each for each in filters if each is not None]
    return Filter.all_of(*given) if given else None
