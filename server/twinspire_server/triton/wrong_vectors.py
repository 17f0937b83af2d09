"""Wrong vectors: what can be wrong with a model's answers, what it probably means, and what follows.

Imports nothing heavy, for the command line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from twinspire._arguments import as_member
from twinspire.errors import InputError


class Fault(StrEnum):
    """What is wrong with a model's answers."""

    REFUSED = "refused"
    INACCURATE = "inaccurate"
    EXCHANGED = "exchanged"
    CHANGED = "changed"
    PREPROCESSING = "preprocessing"


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What the probes showed of one model: the smallest cosine, and the bound below which it is wrong.

    `cosine` is NaN where an answer is not finite or was refused, None where the server did not answer in time, which
    shows nothing. `fault` is None where nothing is wrong; `detail` says more for people to read, `position`
    is that of the probe.
    """

    model: str
    version: int
    bound: float
    cosine: float | None = None
    fault: Fault | None = None
    detail: str = ""
    position: int | None = None

    @property
    def ok(self) -> bool:
        """Whether no answer was wrong."""
        return self.fault is None

    @property
    def is_answered(self) -> bool:
        """Whether the server answered all probes."""
        return self.cosine is not None

    def __str__(self) -> str:
        name = f"{self.model} version {self.version}"
        if self.cosine is None:
            return f"{name}: the probes were not answered"
        problem = "" if self.fault is None else f", {self.fault}: {self.detail}"
        return f"{name}: cosine {self.cosine:.6f} to its probes, at least {self.bound:.6f} expected{problem}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON document; a cosine that is not a number is null."""
        has_cosine = self.cosine is not None and math.isfinite(self.cosine)
        return {**asdict(self), "cosine": self.cosine if has_cosine else None, "ok": self.ok}


_CAUSES = {
    Fault.REFUSED: "Probably its engine or its runtime is damaged, or a bad request stops the others of its batch",
    Fault.INACCURATE: "Probably its engine is damaged, of another checkpoint or of another precision, or this "
    "machine's processor, provider or memory computes wrong",
    Fault.EXCHANGED: "Callers get the vectors of others: probably model.py or the server mixes up the rows of a batch",
    Fault.CHANGED: "Probably the engine's weights were damaged in memory after the start",
    Fault.PREPROCESSING: "Probably its tokenizer is another one, or images are decoded, resized or cropped "
    "otherwise than for the index",
}
_REMEDY = (
    "Do not use what it gave since {last}. Restart the server; where that does not help, build the repository again "
    "from its bundle (`twinspire build`), and on another machine"
)
_DOCUMENTATION = "docs/guides/wrong-vectors.md"


class OnWrong(StrEnum):
    """What follows when vectors are wrong, beside the alarm: nothing, one restart, or the end of the server."""

    ALARM = "alarm"
    RESTART = "restart"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """How often the probes are sent, how long they are sent again under overload, and what follows a fault.

    The default interval leaves 10 s of a minute for the probes themselves. Raises InputError for numbers that are not
    positive and unknown names.
    """

    interval_s: float = 50.0
    timeout_s: float = 20.0
    on_wrong: OnWrong = OnWrong.ALARM

    def __post_init__(self) -> None:
        for name in ("interval_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)!r}: expected a positive number of seconds", option=name)
        object.__setattr__(self, "on_wrong", as_member(self.on_wrong, OnWrong, "on_wrong"))


def alarm(result: ProbeResult, *, right_at: str) -> str:
    """Describe a fault: the model, its cosine and bound, what it probably means and what to do.

    `right_at` is when the model's vectors were last known to be right.
    """
    cosine = "no number" if result.cosine is None else f"{result.cosine:.6f}"
    return (
        f"WRONG VECTORS: {result.model} (version {result.version}, {result.fault}): cosine {cosine}, bound "
        f"{result.bound:.6f}: {result.detail}. {_CAUSES[result.fault or Fault.INACCURATE]}. "
        f"{_REMEDY.format(last=right_at)}. See {_DOCUMENTATION}"
    )
