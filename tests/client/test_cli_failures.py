"""How failures of the operating system are told: which file, which operation, and the exit status."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twinspire.cli import app as root
from twinspire.cli import main
from twinspire.cli.os_errors import describe

FULL = Path("/dev/full")


def _twinspire(cwd: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinspire", *arguments]
    return subprocess.run(command, cwd=cwd, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def _raised(action: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its description is what is looked at
        action()
    return caught.value


def test_an_unexpected_error_names_operation_and_file(tmp_path: Path) -> None:
    """Opening, listing, renaming, looking up: by the call that failed, with both names of a rename."""
    gone, file = tmp_path / "gone", tmp_path / "file"
    file.write_text("x")
    for action, words in (
        (gone.read_bytes, ["open", str(gone)]),
        (lambda: os.scandir(gone), ["list", str(gone)]),
        (lambda: list(os.scandir(file)), ["list", str(file)]),
        (lambda: os.rename(gone, file), ["rename", str(gone), str(file)]),  # noqa: PTH104
        (gone.stat, ["look", str(gone)]),
        (lambda: (file / "below").mkdir(), ["folder", str(file / "below")]),
        (lambda: (tmp_path / "a\nb").read_text(), ["open", "a\\nb"]),
    ):
        error = _raised(action)
        told = describe(error)
        assert all(word in told for word in [*words, error.strerror]), told
        assert "\n" not in told


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_an_error_without_a_file_name_says_where_it_was_raised() -> None:
    """A write names no file: the operation and the place in the program come instead, also at the end of a block."""

    def fill_and_flush() -> None:
        with FULL.open("w") as file:
            file.write("x")
            file.flush()

    def fill() -> None:
        with FULL.open("w") as file:
            file.write("x")

    for action in (fill_and_flush, fill):
        told = describe(_raised(action))
        assert "write" in told
        assert action.__name__ in told
        assert Path(__file__).name in told


def test_an_error_of_another_file_is_not_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stray OSError, a broken pipe of another descriptor among them, is told with its file and status 2."""
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret")),
        BrokenPipeError(errno.EPIPE, "Broken pipe", str(tmp_path / "secret")),
    ):

        def fail(raised: OSError = error) -> None:
            raise raised

        monkeypatch.setattr(root, "application", lambda fail=fail: lambda *_, **__: fail())
        with pytest.raises(SystemExit) as ended:
            main([])
        err = capfd.readouterr().err
        assert ended.value.code == root.EXIT_ERROR
        assert str(tmp_path / "secret") in err
        assert "output" not in err


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["index", "stats", "idx", "--json"]])
def test_a_full_disk_behind_standard_output_is_told_as_that(tmp_path: Path, arguments: list[str]) -> None:
    """Whatever prints, the message says that the output cannot be written; status 2, no traceback, nothing twice."""
    from twinspire.index import Index

    Index.create(tmp_path / "idx", space="5" * 64, dim=3).close()
    with FULL.open("w") as full:
        ran = _twinspire(tmp_path, *arguments, stdout=full)
    assert ran.returncode == root.EXIT_ERROR
    assert ran.stderr.count("error:") == 1
    assert "output" in ran.stderr
    assert "No space left" in ran.stderr


def test_a_reader_that_has_gone_is_no_error_to_tell(tmp_path: Path) -> None:
    """Where the output is a pipe that nobody reads, the command ends with status 2 and says nothing."""
    read, write = os.pipe()
    os.close(read)
    try:
        ran = _twinspire(tmp_path, "--version", stdout=write)
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (root.EXIT_ERROR, "")


def test_a_closed_standard_output_is_no_traceback(tmp_path: Path) -> None:
    """With `>&-` there is nothing to write to; the command ends without a traceback."""
    ran = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m twinspire --version >&-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ran.stderr
