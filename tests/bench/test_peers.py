"""`twinspire bench peers` with toy peers: what is measured, flagged, and left out with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.peers import IMAGES, write_catalogue, write_photographs
from twinspire.cli.app import application
from twinspire_eval.records import Record

pytestmark = pytest.mark.slow  # all are of one run
TOYS = {
    "junk": ("embedding", "junk"),
    "other-images": ("embedding", "other images"),
    "other-length": ("embedding", "other length"),
    "not-finite": ("embedding", "not finite"),
    "not-opened": ("embedding", "not opened"),
    "crash": ("embedding", "crash"),
    "crash-later": ("embedding", "crash in the second round"),
    "full-disk": ("embedding", "full disk"),
    "right": ("embedding", "right"),
    "exact": ("store", "exact"),
    "no-filter": ("store", "no filter"),
    "ignores-filters": ("store", "ignores filters"),
    "half": ("store", "half of the hits"),
}


def toy_catalogue(file: Path) -> Path:
    """Write the catalogue of the toys, which run in this environment."""
    peers = {
        name: {
            "kind": kind,
            "adapter": str(Path(__file__).with_name(f"toy_{kind}_peer.py")),
            "options": {"behaviour": behaviour},
        }
        for name, (kind, behaviour) in TOYS.items()
    }
    return write_catalogue(file, peers)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, one of which cannot be read, without captions."""
    folder = write_photographs(tmp_path_factory.mktemp("photographs"))
    (folder / "damaged.png").write_bytes(b"no image")
    return folder


class Outcome:
    """A run of all toys: its record, its output, and how long it took."""

    def __init__(self, tiny: Any, photographs: Path, work: Path) -> None:
        self.environments = work / "environments"
        arguments = ["--data", photographs, "-b", tiny.bundle.path, "--catalogue", toy_catalogue(work / "toys.toml")]
        arguments += [
            "--peers",
            ",".join(TOYS),
            "--environments",
            work / "environments",
            "--json",
            work / "record.json",
        ]
        arguments += ["--rounds", 2, "--k", 3]
        self.result = CliRunner().invoke(application(), ["bench", "peers", *map(str, arguments)])
        assert self.result.exit_code == 0, self.result.output
        self.record = Record.load(work / "record.json")
        self.embedding, self.store = self.record.results["embedding"], self.record.results["store"]
        self.reasons: dict[str, str] = self.record.results["not_measured"]


@pytest.fixture(scope="module")
def outcome(tiny: Any, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run the command once with every toy."""
    return Outcome(tiny, photographs, tmp_path_factory.mktemp("peers"))


def line_of(outcome: Outcome, name: str) -> str:
    """Return the line of the tables, or of the list of those not measured, that is of a peer."""
    return next(line for line in outcome.result.stdout.splitlines() if line.split() and line.split()[0] == name)


def test_every_peer_has_a_row_or_a_reason(outcome: Outcome) -> None:
    """Peers after a failed one are measured, and twinspire itself is a row of each kind."""
    assert set(outcome.embedding) == {
        "twinspire",
        "right",
        "junk",
        "other-images",
        "other-length",
        "not-finite",
    }
    assert set(outcome.store) == {"twinspire-index", "exact", "no-filter", "ignores-filters", "half"}
    assert set(outcome.reasons) == {"not-opened", "crash", "crash-later", "full-disk"}


def test_rows_hold_every_round(outcome: Outcome) -> None:
    """A peer has a sample a round; twinspire has those of its own rounds and of every peer's beside it."""
    row = outcome.embedding["right"]
    assert len(row["images_per_s"]["samples"]) == 2
    assert len(row["text_ms"]["samples"]) == 2 * outcome.record.parameters["texts"]
    assert len(outcome.embedding["twinspire"]["images_per_s"]["samples"]) == 2 + 2 * 5
    assert row["twinspire_times_as_fast"]["images"]["value"] > 0
    assert row["cosine_to_fp32"]["image"]["min"] == pytest.approx(1, abs=1e-5)
    assert row["other_vectors"] == {}


def test_what_a_peer_prints_disturbs_nothing(outcome: Outcome) -> None:
    """A peer that prints on standard output is measured as the others are."""
    assert outcome.embedding["junk"]["images_per_s"]["median"] > 0
    assert outcome.embedding["junk"]["other_vectors"] == {}


@pytest.mark.parametrize(
    ("name", "word"), [("other-images", "cosine"), ("other-length", "11"), ("not-finite", "finite")]
)
def test_other_vectors_are_flagged_and_not_compared(outcome: Outcome, name: str, word: str) -> None:
    """Vectors of other images, of another length or not finite have no ratio; the texts, which are right, have one."""
    row = outcome.embedding[name]
    assert word in row["other_vectors"]["image"]
    assert row["twinspire_times_as_fast"]["images"] is None
    assert row["twinspire_times_as_fast"]["texts"] is not None
    assert "other vectors" in line_of(outcome, name)
    assert "other vectors" not in line_of(outcome, "right")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not-opened", ["ValueError", "no such model"]),
        ("crash", ["status 7", "memory"]),
        ("crash-later", ["status 8"]),
        ("full-disk", ["No space left"]),
    ],
)
def test_a_failed_peer_is_listed_with_its_reason(outcome: Outcome, name: str, words: list[str]) -> None:
    """The record and the output say what happened."""
    assert all(word in outcome.reasons[name] for word in words)
    assert outcome.reasons[name] in " ".join(outcome.result.stdout.split())


def test_nothing_is_left_in_the_work_folder(outcome: Outcome) -> None:
    """Files of peers are removed, also of those that failed."""
    assert list(outcome.environments.iterdir()) == []


def test_stores_are_compared_with_exact_search(outcome: Outcome) -> None:
    """Recall is 1 for exact stores, a share for one that returns every other hit, and null without filters."""
    recalls = {name: (row["recall"], row["filtered_recall"]) for name, row in outcome.store.items()}
    assert recalls["twinspire-index"] == recalls["exact"] == (1, 1)
    assert recalls["no-filter"] == (1, None)
    assert recalls["half"][0] == pytest.approx(2 / 3)
    assert recalls["ignores-filters"][0] == 1
    assert recalls["ignores-filters"][1] < 1
    assert outcome.store["no-filter"]["filtered_ms"] is None
    assert outcome.store["exact"]["filtering"] == "by a mask"
    assert "none: a toy" in outcome.result.stdout
    assert "keeps items in memory" in outcome.result.stdout
    assert all(row["found_ms"]["median"] > 0 and row["added_per_s"]["median"] > 0 for row in outcome.store.values())


def test_images_that_cannot_be_read_are_left_out(outcome: Outcome) -> None:
    """All peers get the others; the record and the progress say so."""
    assert outcome.record.parameters["images"] == IMAGES
    assert outcome.record.parameters["images_left_out"] == 1
    assert "damaged.png" in outcome.result.stderr


def test_without_captions_built_in_texts_are_queries(outcome: Outcome) -> None:
    """The record and the output say that the texts are not the user's."""
    assert outcome.record.parameters["texts_from"] == "built-in texts"
    assert "built-in texts" in outcome.result.stdout
