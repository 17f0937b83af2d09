"""`twinspire bench index` without `--work`: its files live in a temporary folder, for as long as they are read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from twinspire.cli import main
from twinspire_eval.records import Record

TINY = ["--size", "300", "--dim", "8", "--queries", "7", "--threads", "1", "--adds", "32", "--spec", "flat"]


def test_a_temporary_folder_lasts_until_the_record_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--work` a record is written, and nothing is left in the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(SystemExit) as ended:
        main(["bench", "index", *TINY, "--peer", "none", "--json", str(tmp_path / "record.json")])
    assert not ended.value.code
    found = Record.load(tmp_path / "record.json").results["distributions"]
    assert list(found) == ["clusters", "power-law", "spectrum"]
    assert [one["queries"] for one in found.values()] == [7, 7, 7]
    assert not list(folder.iterdir())
