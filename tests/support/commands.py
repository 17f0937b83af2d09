"""`twinspire` run in this process."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import pytest

from twinspire.cli import main


class Ran(NamedTuple):
    """What a command did: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)

    @property
    def names(self) -> list[str]:
        """The file names of the hits, from the lines that a pipe gets."""
        return [line.split("\t")[1].rpartition("/")[2] for line in self.out.splitlines()]


def run_twinspire(capture: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run `twinspire` with these arguments until it exits."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    sys.stdout.flush()
    return Ran(int(ended.value.code or 0), *capture.readouterr())
