"""Zero-shot classification and moderation, in Python and as `twinspire classify`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.arrays import unit
from support.commands import Ran, run_twinspire
from support.fakes import FakeClient
from twinspire.errors import InputError
from twinspire.search import Classifier, Label, Templates, read_labels


@pytest.fixture
def orange(tmp_path: Path) -> Path:
    """Draw an image that is red and somewhat green."""
    Image.new("RGB", (8, 8), (200, 100, 0)).save(tmp_path / "orange.png")
    return tmp_path / "orange.png"


def test_probabilities_are_the_softmax_over_labels(orange: Path) -> None:
    """Without a bias scores are inner products, the largest first, and probabilities their softmax times the scale."""
    (found,) = Classifier(FakeClient(), ["green", "blue", "red"]).classify([orange])
    scores = np.array([200, 100, 0]) / np.hypot(200, 100)
    powers = np.exp(10 * scores)
    assert [each.label for each in found.scores] == ["red", "green", "blue"]
    np.testing.assert_allclose([each.score for each in found.scores], scores, atol=1e-6)
    np.testing.assert_allclose([each.probability or 0 for each in found.scores], powers / powers.sum(), atol=1e-6)
    assert found.best.label == "red"
    assert found.flagged == ()


def test_with_a_bias_each_label_stands_alone(orange: Path) -> None:
    """The probability is the logistic function of scale and bias, whatever the other labels are."""
    (found,) = Classifier(FakeClient(logit_bias=-3.0), ["red"]).classify([orange])
    assert found.best.probability == pytest.approx(1 / (1 + np.exp(3 - 10 * found.best.score)))
    (alone,) = Classifier(FakeClient(), ["red"]).classify([orange])
    assert alone.best.probability is None


def test_a_threshold_flags(orange: Path) -> None:
    """A label is flagged from its threshold on; one without is neither flagged nor not."""
    labels = [Label("red", 0.8), Label("green", 0.5), Label("blue")]
    (found,) = Classifier(FakeClient(), labels).classify([orange])
    assert [each.flagged for each in found.scores] == [True, False, None]
    assert [each.label for each in found.flagged] == ["red"]


def test_templates_average(orange: Path) -> None:
    """A label's vector is the normalised mean of those of its sentences."""
    (found,) = Classifier(FakeClient(), ["green"], templates=Templates(("{}", "red {}"))).classify([orange])
    label = unit([unit([[0, 1, 0]])[0] + unit([[1, 1, 0]])[0]])[0]
    assert found.best.score == pytest.approx(float(unit([[200, 100, 0]])[0] @ label), abs=1e-6)


def test_labels_are_read_with_thresholds_and_remarks(tmp_path: Path) -> None:
    """A label a line, a threshold behind a bar, remarks passed over."""
    path = tmp_path / "labels.txt"
    path.write_text("# moderation\na knife | 0.25\n\nC# code\n红色的车 | -0.1 # red\n", encoding="utf-8")
    assert read_labels(path) == [Label("a knife", 0.25), Label("C# code"), Label("红色的车", -0.1)]


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        (b"a | x", 1, "threshold"),
        (b"a\nb | 7", 2, "threshold"),
        (b"a | nan", 1, "nan"),
        (b"a\na | 0.1", 2, "repeated"),
        (b" | 0.1", 1, "label"),
        (b"# nothing", None, "empty"),
        (b"a\n\xff", None, "UTF-8"),
    ],
)
def test_a_bad_labels_file_is_refused(tmp_path: Path, content: bytes, line: int | None, word: str) -> None:
    """The error names the file, the line and what was expected."""
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_labels(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)


def test_a_classifier_needs_different_labels() -> None:
    """None, or one twice, is an error."""
    with pytest.raises(InputError, match="labels"):
        Classifier(FakeClient(), [])
    with pytest.raises(InputError, match="red"):
        Classifier(FakeClient(), ["red", Label("red", 0.1)])


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Run `twinspire classify` in a folder of its own."""

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, "classify", *arguments)

    monkeypatch.setattr("twinspire.cli.classify.open_client", lambda *_: FakeClient())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("red | 0.8\ngreen\nblue | 0.9\n")
    return run_main


def test_every_form_says_the_same(run: Callable[..., Ran], orange: Path) -> None:
    """Lines in a pipe, JSON and CSV agree; --top shortens the lines alone."""
    lines = [line.split("\t") for line in run(orange, "-l", "labels.txt").out.splitlines()]
    assert [line[:3] for line in lines] == [
        [str(orange), "red", "0.8944"],
        [str(orange), "green", "0.4472"],
        [str(orange), "blue", "0.0000"],
    ]
    assert [line[4] for line in lines] == ["flagged", "", ""]
    assert len(run(orange, "-l", "labels.txt", "--top", 1).out.splitlines()) == 1
    (image,) = json.loads(run(orange, "-l", "labels.txt", "--json").out)["images"]
    assert image["path"] == str(orange)
    assert image["flagged"] == ["red"]
    assert [(each["label"], each["flagged"]) for each in image["labels"]] == [
        ("red", True), ("green", None), ("blue", False),
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(run(orange, "-l", "labels.txt", "--csv").out, newline="")))
    assert [(row["label"], row["flagged"]) for row in rows] == [("red", "true"), ("green", ""), ("blue", "false")]
    assert [float(row["score"]) for row in rows] == [each["score"] for each in image["labels"]]


def test_what_fails_is_told_and_the_rest_goes_on(run: Callable[..., Ran], orange: Path, tmp_path: Path) -> None:
    """A file that is no image is on standard error and the status is 3; where all fail it is 2."""
    (tmp_path / "bad.png").write_text("x")
    ran = run(tmp_path, "-l", "labels.txt")
    assert ran.status == 3
    assert "bad.png" in ran.err
    assert str(orange) in ran.out
    assert run("bad.png", "-l", "labels.txt").status == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.png", "-l", "labels.txt"], "nowhere.png"),
        (["orange.png", "-l", "nowhere.txt"], "nowhere.txt"),
        (["orange.png", "-l", "labels.txt", "--top", "0"], "--top"),
        (["orange.png", "-l", "labels.txt", "--json", "--csv"], "--csv"),
        (["orange.png", "-l", "labels.txt", "--templates", "labels.txt"], "template"),
    ],
)
def test_classify_refuses_what_it_cannot_do(
    run: Callable[..., Ran], orange: Path, arguments: list[str], says: str
) -> None:
    """Status 2 and one message."""
    ran = run(*arguments)
    assert ran.status == 2
    assert says in ran.err.replace("\n", " ")
    assert ran.out == ""
