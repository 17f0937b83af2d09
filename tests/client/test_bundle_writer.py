"""A bundle is written whole or not at all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.errors import BundleError

OWN_ENGINES = {
    (Tower.IMAGE, Precision.FP32): ("image.fp32.onnx", None),
    (Tower.TEXT, Precision.FP32): ("text.fp32.onnx", None),
}


def fill(writer: BundleWriter, source: Bundle) -> None:
    """Put the files of an fp32 bundle."""
    for name in ("tokenizer.json", "probes.npz", "image.fp32.onnx", "text.fp32.onnx"):
        writer.put_file(name, source.path / name)


def write(destination: Path, source: Bundle, change: Callable[[BundleWriter], object] = lambda writer: None) -> Bundle:
    """Write an fp32 bundle of another's files; `change` meddles before the commit."""
    with BundleWriter(destination) as writer:
        fill(writer, source)
        change(writer)
        return writer.commit(source.manifest.draft(), OWN_ENGINES)


def test_commit(tiny: Any, tmp_path: Path) -> None:
    """A committed bundle can be opened, and nothing else is left beside it."""
    written = write(tmp_path / "new", tiny.bundle)
    assert Bundle.open(tmp_path / "new").manifest == written.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_further_files_belong_to_the_bundle(tiny: Any, tmp_path: Path) -> None:
    """A file beside the engines is recorded and checked like the others."""
    write(tmp_path / "new", tiny.bundle, lambda writer: writer.path("image.fp32.onnx.data").write_bytes(b"weights"))
    (tmp_path / "new" / "image.fp32.onnx.data").write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"image\.fp32\.onnx\.data"):
        Bundle.open(tmp_path / "new")


def test_leaving_without_commit(tiny: Any, tmp_path: Path) -> None:
    """Leaving the block without commit leaves nothing."""
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer, tiny.bundle)
    assert not list(tmp_path.iterdir())


def test_error_inside(tiny: Any, tmp_path: Path) -> None:
    """An error inside the block passes through and leaves nothing."""
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "new", tiny.bundle, lambda writer: 1 / 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "dangling"])
def test_destination_exists(tmp_path: Path, kind: str) -> None:
    """Whatever stands at the destination is refused before any work and stays as it is."""
    destination = tmp_path / "new"
    if kind == "file":
        destination.write_text("mine")
    elif kind == "dangling":
        destination.symlink_to("nowhere")
    else:
        destination.mkdir()
        if kind == "folder":
            (destination / "mine").write_text("mine")
    with pytest.raises(BundleError, match=r"\bexists\b"), BundleWriter(destination):
        pytest.fail("the block was entered")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_destination_appears_meanwhile(tiny: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination that another process makes at the last moment is not overwritten."""
    destination, rename = tmp_path / "new", Path.rename

    def appear(path: Path, target: Path) -> None:
        if kind == "folder":
            target.mkdir()
            (target / "theirs").write_text("theirs")
        else:
            target.write_text("theirs")
        rename(path, target)

    monkeypatch.setattr(Path, "rename", appear)
    with pytest.raises(BundleError, match=r"\bwritten\b"):
        write(destination, tiny.bundle)
    theirs = destination / "theirs" if kind == "folder" else destination
    assert theirs.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_no_parent(tmp_path: Path) -> None:
    """A destination in a folder that does not exist is a BundleError, and the folder is not made."""
    with pytest.raises(BundleError, match=r"\bfolder\b"), BundleWriter(tmp_path / "no" / "new"):
        pytest.fail("the block was entered")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["tokenizer.json", "probes.npz", "text.fp32.onnx"])
def test_missing_file(tiny: Any, tmp_path: Path, missing: str) -> None:
    """A file that the bundle must have and that was not put is a BundleError, and nothing is left."""
    with pytest.raises(BundleError, match=re.escape(missing)):
        write(tmp_path / "new", tiny.bundle, lambda writer: writer.path(missing).unlink())
    assert not list(tmp_path.iterdir())


def test_missing_tower(tiny: Any, tmp_path: Path) -> None:
    """A bundle without an engine for each tower is not written."""
    engines = {(Tower.IMAGE, Precision.FP32): ("image.fp32.onnx", None)}
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer, tiny.bundle)
        with pytest.raises(BundleError, match="text tower"):
            writer.commit(tiny.bundle.manifest.draft(), engines)
    assert not list(tmp_path.iterdir())


def test_probes_of_another_model(tiny: Any, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Probes of another image size or dimension than the manifest's are not written."""
    other = make_tiny("other", size=8).bundle
    with pytest.raises(BundleError, match=r"8, 8"):
        write(tmp_path / "new", tiny.bundle, lambda writer: writer.put_file("probes.npz", other.path / "probes.npz"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".x", "bundle.json", "a\0b"])
def test_bad_file_names(tmp_path: Path, name: str) -> None:
    """A file name that is no plain name, or the manifest's own, is a BundleError."""
    with BundleWriter(tmp_path / "new") as writer, pytest.raises(BundleError):
        writer.path(name)


def test_folder_among_the_files(tiny: Any, tmp_path: Path) -> None:
    """A folder inside the bundle is a BundleError."""
    with pytest.raises(BundleError, match=r"\bmore\b"):
        write(tmp_path / "new", tiny.bundle, lambda writer: writer.path("more").mkdir())


def test_put_file_that_is_not_there(tmp_path: Path) -> None:
    """Putting a file that does not exist is a BundleError that names it."""
    with BundleWriter(tmp_path / "new") as writer, pytest.raises(BundleError, match=r"nothing\.onnx"):
        writer.put_file("a.onnx", tmp_path / "nothing.onnx")


class TestBase:
    """A bundle made from another one."""

    def test_takes_over_files_engines_and_certificates(self, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
        """What is not replaced is the base's: the same files on the disk, the same records."""
        base = make_tiny("base", precisions=(Precision.FP32,)).bundle
        with BundleWriter(tmp_path / "new", base=base) as writer:
            writer.path("image.int8.onnx").write_bytes(b"int8")
            new = writer.commit(base.manifest.draft(), {(Tower.IMAGE, Precision.INT8): ("image.int8.onnx", None)})
        assert Bundle.open(new.path).precisions(Tower.IMAGE) == (Precision.FP32, Precision.INT8)
        assert new.manifest.engines[Tower.TEXT] == base.manifest.engines[Tower.TEXT]
        assert new.space == base.space
        for name in ("tokenizer.json", "image.fp32.onnx"):
            assert (new.path / name).samefile(base.path / name)

    def test_replacing_a_file_leaves_the_base_alone(self, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
        """Writing to a name that the base has too does not write through the hard link."""
        base = make_tiny("base").bundle
        with BundleWriter(tmp_path / "new", base=base) as writer:
            writer.path("image.int8.onnx").write_bytes(b"new")
            assert writer.path("image.int8.onnx").read_bytes() == b"new", "asking again let the file go"
            writer.commit(base.manifest.draft(), {(Tower.IMAGE, Precision.INT8): ("image.int8.onnx", None)})
        Bundle.open(base.path)
        new = Bundle.open(tmp_path / "new")
        assert new.engine(Tower.IMAGE, Precision.INT8).read_bytes() == b"new"

    def test_replaced_engines_file_is_left_out(self, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
        """The base's file of an engine that was replaced by another file is not in the new bundle."""
        base = make_tiny("base").bundle
        with BundleWriter(tmp_path / "new", base=base) as writer:
            writer.path("better.onnx").write_bytes(b"new")
            new = writer.commit(base.manifest.draft(), {(Tower.IMAGE, Precision.INT8): ("better.onnx", None)})
        assert "image.int8.onnx" not in {path.name for path in new.path.iterdir()}
        Bundle.open(base.path)
        Bundle.open(new.path)

    def test_copies_where_links_fail(
        self, make_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a file system without hard links the files are copied."""

        def fail(source: object, target: object) -> None:
            raise OSError("no links here")

        base = make_tiny("base").bundle
        monkeypatch.setattr(os, "link", fail)
        with BundleWriter(tmp_path / "new", base=base) as writer:
            new = writer.commit(base.manifest.draft(), {})
        assert not (new.path / "tokenizer.json").samefile(base.path / "tokenizer.json")
        assert Bundle.open(new.path).manifest == base.manifest

    @pytest.mark.parametrize("failing", ["never", "at once", "in the middle", "silently", "unknown"])
    def test_copies_where_links_are_not_wanted(
        self, make_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        """Without links every file is a whole copy, whether the kernel can copy or not."""
        base = make_tiny("base").bundle
        in_kernel = os.copy_file_range

        def copy(source: int, target: int, count: int) -> int:
            if failing == "silently":
                return 0
            if failing == "at once" or os.lseek(target, 0, os.SEEK_CUR) > 0:
                raise OSError(18, "Invalid cross-device link")
            return in_kernel(source, target, min(count, 100))

        if failing == "unknown":
            monkeypatch.delattr(os, "copy_file_range")
        elif failing != "never":
            monkeypatch.setattr(os, "copy_file_range", copy)
        with BundleWriter(tmp_path / "new", base=base, links=False) as writer:
            new = writer.commit(base.manifest.draft(), {})
        for name in base.manifest.all_files():
            assert not (new.path / name).samefile(base.path / name)
        assert Bundle.open(new.path).manifest == base.manifest

    def test_damage_to_the_base_is_not_sealed(self, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
        """A base's file that changed since it was opened is not given a new, fitting checksum."""
        base = make_tiny("base").bundle
        base.tokenizer_path.write_text("{}")
        with pytest.raises(BundleError, match=r"\bchanged\b"), BundleWriter(tmp_path / "new", base=base) as writer:
            writer.commit(base.manifest.draft(), {})
        assert not (tmp_path / "new").exists()

    def test_base_without_a_file(self, make_tiny: Callable[..., Any], tmp_path: Path) -> None:
        """A base that lost a file is a BundleError when the block is entered, and nothing is left."""
        base = make_tiny("base").bundle
        base.tokenizer_path.unlink()
        with pytest.raises(BundleError, match=r"tokenizer\.json"), BundleWriter(tmp_path / "new", base=base):
            pytest.fail("the block was entered")
        assert [path.name for path in tmp_path.iterdir()] == ["base"]


KILLED = """
import os, signal, sys
from pathlib import Path
from twinspire.bundle import Bundle, BundleWriter
source, destination, moment = Bundle.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the rename":
    Path.rename = die
if moment == "while syncing":
    os.fsync = die
with BundleWriter(destination, base=source) as writer:
    if moment == "while writing":
        die()
    writer.commit(source.manifest.draft(), {})
"""


@pytest.mark.parametrize("moment", ["while writing", "while syncing", "before the rename"])
def test_kill(tiny: Any, tmp_path: Path, moment: str) -> None:
    """A process that is killed while it writes leaves nothing with the destination's name."""
    client = Path(__file__).parents[2] / "client"
    command = [sys.executable, "-c", KILLED, str(tiny.bundle.path), str(tmp_path / "new"), moment]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(client)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    assert all(path.name.startswith(".new.") for path in tmp_path.iterdir())
    with BundleWriter(tmp_path / "new", base=tiny.bundle) as writer:
        writer.commit(tiny.bundle.manifest.draft(), {})  # what was left behind is in nobody's way
