"""An index remembers the bundle that made it: `--bundle` is needed only when that has moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Ran, run_twinspire
from twinspire import Bundle, sample_bundle
from twinspire.cli.bundles import reference_to
from twinspire.cli.client_options import ClientOptions, open_client
from twinspire.errors import BundleError, SpaceMismatchError
from twinspire.index import BundleReference, Index

Run = Callable[..., Ran]
TINY_SPACE, OTHER_SPACE = "0" * 64, f"{1:064x}"


@pytest.fixture
def run(
    tmp_path: Path, make_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run `twinspire` in a folder with two images, the bundle `tiny`, its like `same` and `other` of another space."""
    make_tiny("tiny")
    make_tiny("same")
    make_tiny("other", seed=1)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate("ab"):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, *arguments)

    return run_main


def done(ran: Ran) -> Ran:
    """Check that a command worked."""
    assert ran.status == 0, ran.err
    return ran


def refused(ran: Ran, *words: str) -> None:
    """Check for status 2 and one error with these words, and with no space's digits."""
    assert (ran.status, ran.out, ran.err.count("error:")) == (2, "", 1)
    for word in words:
        assert word in ran.err, ran.err
    assert TINY_SPACE[:12] not in ran.err
    assert OTHER_SPACE[:12] not in ran.err


def remembered(index: str = "idx") -> BundleReference | None:
    """Return the bundle that an index remembers."""
    with Index.open(index) as opened:
        return opened.bundle


def test_the_bundle_is_needed_once(run: Run, tmp_path: Path) -> None:
    """What `add -b` made, later searches and adds open by themselves, from any folder; stats name it."""
    done(run("index", "add", "idx", "photos/a.png", "-b", "tiny"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    done(run("index", "add", "idx", "photos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "photos")
        assert len(done(run("search", "../idx", "red cat")).out.splitlines()) == 2
    assert "tiny" in done(run("index", "stats", "idx")).out
    assert json.loads(run("index", "stats", "idx", "--json").out)["bundle"]["path"] == str(tmp_path / "tiny")
    assert len(done(run("search", "idx", "red cat", "--precision", "int8")).out.splitlines()) == 2


def test_the_sample_has_no_path(run: Run) -> None:
    """An index of the sample remembers it without its place, which an update moves."""
    done(run("index", "add", "idx", "photos"))
    assert remembered() == BundleReference(Bundle.open(sample_bundle()).name, None)
    done(run("search", "idx", "red"))
    refused(run("search", "idx", "red", "-b", "tiny"), "sample", "tiny", "--bundle")


def test_a_moved_bundle_is_named_and_updated(run: Run, tmp_path: Path) -> None:
    """Without --bundle the error says name, place and option; a search with it changes nothing, an add does."""
    done(run("index", "add", "idx", "photos/a.png", "-b", "tiny"))
    (tmp_path / "tiny").rename(tmp_path / "moved")
    for command in (
        ("search", "idx", "red cat"),
        ("index", "add", "idx", "photos"),
        ("index", "watch", "idx", "photos"),
    ):
        refused(run(*command), "tiny", str(tmp_path / "tiny"), "--bundle")
    refused(run("index", "sync", "idx", "photos"), "tiny", "--bundle")
    done(run("search", "idx", "red cat", "-b", "moved"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    done(run("index", "add", "idx", "photos", "-b", "moved"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "moved"))
    done(run("search", "idx", "red cat"))


def test_another_bundle_of_the_space_is_for_once(run: Run, tmp_path: Path) -> None:
    """Where the remembered bundle is still there, --bundle of the same space is used and not remembered."""
    done(run("index", "add", "idx", "photos/a.png", "-b", "tiny"))
    done(run("index", "add", "idx", "photos", "-b", "same"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    shutil.rmtree(tmp_path / "tiny")
    shutil.copytree(tmp_path / "other", tmp_path / "tiny")  # another bundle in its place
    refused(run("search", "idx", "red cat"), "space", "--bundle")
    done(run("index", "add", "idx", "photos", "-b", "same"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "same"))


def test_refusals_name_bundles(run: Run, tmp_path: Path) -> None:
    """A bundle of another space: index, both bundles and their places, no hashes; nothing is encoded or changed."""
    done(run("index", "add", "idx", "photos", "-b", "tiny"))
    for command in (("search", "idx", "red"), ("index", "add", "idx", "photos"), ("index", "watch", "idx", "photos")):
        words = (str(tmp_path / "idx"), str(tmp_path / "tiny"), "other", "space")
        refused(run(*command, "-b", "other"), *words)
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    (tmp_path / "queries.txt").write_text("red cat\n")
    refused(run("index", "tune", "idx", "--queries", "queries.txt", "-b", "other"), "space")


def test_an_index_made_by_sync_remembers_too(run: Run, tmp_path: Path) -> None:
    """`index sync` makes and follows an index as `add` does; a dry run changes nothing."""
    done(run("index", "sync", "idx", "photos", "-b", "tiny"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    (tmp_path / "tiny").rename(tmp_path / "moved")
    done(run("index", "sync", "idx", "photos", "-b", "moved", "--dry-run"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    done(run("index", "sync", "idx", "photos", "-b", "moved"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "moved"))


def test_an_index_without_a_bundle_learns_it(run: Run, tmp_path: Path) -> None:
    """One that Python made remembers none: the sample does not fit, --bundle does, and an add notes it."""
    Index.create("idx", space=TINY_SPACE, dim=12).close()
    refused(run("index", "add", "idx", "photos"), "scenes", "--bundle")
    done(run("index", "add", "idx", "photos", "-b", "tiny"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "tiny"))
    done(run("search", "idx", "red cat"))


def test_a_damaged_bundle_is_not_called_moved(run: Run, tmp_path: Path) -> None:
    """Where the manifest is there, the error is the bundle's own."""
    done(run("index", "add", "idx", "photos", "-b", "tiny"))
    (tmp_path / "tiny" / "tokenizer.json").unlink()
    refused(run("search", "idx", "red cat"), "tokenizer.json")


def test_links_keep_their_name(run: Run, tmp_path: Path) -> None:
    """A link to a bundle is remembered as the link, so that it can be set to a newer one; one not in UTF-8 is not."""
    (tmp_path / "current").symlink_to("tiny")
    done(run("index", "add", "idx", "photos", "-b", "current"))
    assert remembered() == BundleReference("tiny", str(tmp_path / "current"))
    (tmp_path / "odd\udcff").symlink_to("tiny")
    assert reference_to(Bundle.open(tmp_path / "odd\udcff")) is None


def test_the_errors_have_types_of_their_own(run: Run, tmp_path: Path) -> None:
    """`open_client` raises `BundleError` for a bundle that is gone and `SpaceMismatchError` for one that differs."""
    done(run("index", "add", "idx", "photos", "-b", "tiny"))
    with Index.open("idx") as index:
        with pytest.raises(SpaceMismatchError):
            open_client(ClientOptions(bundle=tmp_path / "other"), index)
        with open_client(ClientOptions(), index) as client:
            assert client.bundle.path == tmp_path / "tiny"
        shutil.rmtree(tmp_path / "tiny")
        with pytest.raises(BundleError):
            open_client(ClientOptions(), index)
        with pytest.raises(SpaceMismatchError, match="tiny"):
            index.check_space(OTHER_SPACE)
