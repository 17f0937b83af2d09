"""Records: written, read back, and refused."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire.errors import InputError
from twinspire_eval.machine import this_machine
from twinspire_eval.records import SCHEMA_VERSION, Record, git_commit, series, versions


@dataclass(frozen=True)
class Timing:
    """A result as an instrument has it."""

    latency_ms: float
    counts: tuple[int, ...]


class Colour(StrEnum):
    """A parameter as a setting has it."""

    RED = "red"


def _record(**changes: Any) -> Record:
    arguments: dict[str, Any] = {"kind": "latency", "parameters": {"batch": [1, 8]}, "results": {"x_ms": 1.5}}
    return Record(**arguments | changes)


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Saving and loading gives an equal record, and leaves one file."""
    record = _record(subject={"bundle": "sample 猫"}, results={"x_ms": None, "rows": [{"a": 1}, {"b": 0.1}]})
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_says_where_it_comes_from() -> None:
    """Made here and now it has this machine, the installed versions and a time in UTC."""
    document = _record().to_json()
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["hardware"]["cores"] == this_machine().cores
    assert document["versions"]["numpy"] == version("numpy")
    assert document["created"].endswith("+00:00")
    assert list(document)[-1] == "results"


def test_results_are_kept_as_plain_json() -> None:
    """Dataclasses, arrays, NumPy's numbers, tuples and enum members become what JSON knows."""
    results = {"timing": Timing(np.float64(2.5), (1, 2)), "raw": np.arange(3), "n": np.int64(4), "colour": Colour.RED}
    record = _record(results=results)
    assert record.results == {
        "timing": {"latency_ms": 2.5, "counts": [1, 2]},
        "raw": [0, 1, 2],
        "n": 4,
        "colour": "red",
    }
    assert json.loads(json.dumps(record.to_json())) == record.to_json()


def test_samples_stand_on_one_line(tmp_path: Path) -> None:
    """A thousand samples are one line of the file, strings that look like lists are left alone, and all comes back."""
    samples = [0.5, -1e-7, *range(1000)]
    record = _record(results={"x_ms": series(samples, "p50"), "text": "[\n 1,\n 2\n]", "names": ["a", "b"], "none": []})
    record.save(tmp_path / "record.json")
    lines = (tmp_path / "record.json").read_text(encoding="utf-8").splitlines()
    assert any(line.strip().startswith('"samples": [0.5, -1e-07, 0.0, 1.0,') for line in lines)
    assert len(lines) < 60
    assert Record.load(tmp_path / "record.json") == record


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"results\.a\.b\[1\]"),
        ({"a": np.array([np.inf])}, r"results\.a\[0\]"),
        ({"a": {1: 2}}, r"results\.a\b"),
        ({"a": Path("x")}, "PosixPath"),
    ],
)
def test_what_json_does_not_know_is_refused(results: dict[str, Any], message: str) -> None:
    """The error names the place."""
    with pytest.raises(InputError, match=message):
        _record(results=results)


def test_an_unknown_schema_version_is_an_error(tmp_path: Path) -> None:
    """A record of a later version is refused before anything else of it is looked at."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "all": "different"}), encoding="utf-8")
    with pytest.raises(InputError, match=rf" {SCHEMA_VERSION + 1}\b"):
        Record.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '"schema_version"', '{"schema_version": 1}'])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.json"):
        Record.load(path)


def test_a_record_with_other_fields_is_refused(tmp_path: Path) -> None:
    """A missing field and an unknown one are named, of the hardware too."""
    path = tmp_path / "record.json"
    document = _record().to_json()
    path.write_text(json.dumps({**document, "extra": 1}), encoding="utf-8")
    with pytest.raises(InputError, match="extra"):
        Record.load(path)
    del document["hardware"]["gpu"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match="gpu"):
        Record.load(path)


def test_a_missing_file_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    """Loading and saving name the path that cannot be used, and saving leaves nothing behind."""
    with pytest.raises(InputError, match=r"missing\.json"):
        Record.load(tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"nowhere/record\.json"):
        _record().save(tmp_path / "nowhere" / "record.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json"):
        _record().save(tmp_path / "folder.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_a_kind_is_needed() -> None:
    """A record without a kind could be compared with anything."""
    with pytest.raises(InputError, match="kind"):
        _record(kind="")


def test_a_series_keeps_samples_and_statistics() -> None:
    """The statistics are of the samples; of no samples they are None."""
    samples = [3.0, 1.0, 2.0]
    assert series(samples, "median", "mean") == {"median": 2.0, "mean": 2.0, "samples": samples}
    assert series([], "p50", "p99") == {"p50": None, "p99": None, "samples": []}
    with pytest.raises(InputError, match="best"):
        series(samples, "best")
    with pytest.raises(InputError, match="none"):
        series(samples)


def test_what_is_not_installed_has_no_version() -> None:
    """Both builds of onnxruntime are never there together: at least one is null."""
    found = versions()
    assert None in (found["onnxruntime"], found["onnxruntime-gpu"])
    assert found["twinspire"] == version("twinspire")


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    """No repository and an untracked file give None, a tracked one its commit, a changed one is marked dirty."""
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text("", encoding="utf-8")
    assert git_commit(file) is None
    _git(tmp_path, "init", "-q")
    assert git_commit(file) is None
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(file) == commit
    (tmp_path / "untracked.txt").write_text("", encoding="utf-8")
    assert git_commit(file) == commit
    file.write_text("changed", encoding="utf-8")
    assert git_commit(file) == f"{commit}-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without git gives None, no error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
