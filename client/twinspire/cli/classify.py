"""`twinspire classify`: sort images into labels that are only words."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.csv_cells import csv_cell
from twinspire.cli.index.shared import print_skipped
from twinspire.cli.output import CsvOption
from twinspire.cli.search import TemplatesOption
from twinspire.cli.shared import EXIT_SOME_FAILED, JsonOption, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.search import Classification, Classifier, LabelScore

_BATCH = 256


@with_client_options
def classify(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them.", show_default=False)
    ],
    labels: Annotated[
        Path, typer.Option("--labels", "-l", help="A label a line; to moderate, with a threshold: a knife | 0.25.")
    ],
    top: Annotated[int, typer.Option("--top", "-k", help="How many labels of each picture to show.")] = 3,
    templates: TemplatesOption = None,
    *,
    options: ClientOptions,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Say which labels fit images, without training: the labels are read as queries.

    A label with a threshold is judged by itself and flagged from that score on; flagged labels are always shown. In a
    pipe the output is lines of path, label, score, probability and `flagged`, separated by tabs. Ends with status 3
    where some images failed and the others were classified.
    """
    if top < 1:
        raise InputError(f"--top is the number of labels to show, 1 or more, got {top}")
    if as_json and as_csv:
        raise InputError("--json and --csv both came: expected one of them, both go to standard output")
    from twinspire.ingest import find_images
    from twinspire.search import Classifier, Templates, read_labels

    known = read_labels(labels)
    said = Templates.read(templates) if templates is not None else None
    files = find_images(images, on_error="skip")
    with open_client(options) as client:
        classifier = Classifier(client, known, templates=said)
        found, failed = _classified(classifier, files)
    failed = [*files.failed, *failed]
    if as_json:
        print_json(_document(labels, found, failed))
    elif as_csv:
        _print_csv(found)
    else:
        _print(found, top)
    print_skipped(files.skipped)
    for path, cause in failed:
        typer.echo(f"failed {shortened(str(path))}: {printable(cause)}", err=True)
    if not found:
        raise InputError(f"none of the {len(files)} pictures could be read")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _classified(
    classifier: Classifier, files: Sequence[Path]
) -> tuple[list[tuple[Path, Classification]], list[tuple[Path, str]]]:
    found: list[tuple[Path, Classification]] = []
    failed: list[tuple[Path, str]] = []
    for start in range(0, len(files), _BATCH):
        some = files[start : start + _BATCH]
        classified, errors = classifier.classify_or_skip(some)
        bad = {error.position for error in errors}
        failed += [(some[error.position], error.cause) for error in errors]
        good = [path for place, path in enumerate(some) if place not in bad]
        found += zip(good, classified, strict=True)
    return found, failed


def _document(
    labels: Path, found: Sequence[tuple[Path, Classification]], failed: Sequence[tuple[Path, str]]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "labels": printable(labels.absolute()),
        "images": [
            {
                "path": printable(path),
                "labels": [_label(judged) for judged in classification.judged],
                "flagged": [judged.label for judged in classification.flagged],
            }
            for path, classification in found
        ],
        "failed": [{"path": printable(path), "cause": cause} for path, cause in failed],
    }


def _label(judged: LabelScore) -> dict[str, Any]:
    probability = judged.probability
    return {
        "label": judged.label,
        "score": round(judged.score, 6),
        "probability": round(probability, 6) if probability is not None else None,
        "flagged": judged.flagged,
    }


def _print_csv(found: Sequence[tuple[Path, Classification]]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\r\n")
    writer.writerow(["path", "label", "score", "probability", "flagged"])
    for path, classification in found:
        for judged in classification.judged:
            row = _label(judged)
            flagged = "" if judged.flagged is None else str(judged.flagged).lower()
            probability = "" if row["probability"] is None else row["probability"]
            writer.writerow([csv_cell(printable(path)), csv_cell(judged.label), row["score"], probability, flagged])
    sys.stdout.flush()
    typer.echo(table.getvalue().encode(), nl=False)


def _print(found: Sequence[tuple[Path, Classification]], top: int) -> None:
    from rich.console import Console
    from rich.text import Text

    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for path, classification in found:
        if not stdout.is_terminal:
            for judged in _chosen(classification, top):
                share = f"{judged.probability:.4f}" if judged.probability is not None else ""
                flag = "flagged" if judged.flagged else ""
                typer.echo(f"{printable(path)}\t{printable(judged.label)}\t{judged.score:.4f}\t{share}\t{flag}")
            continue
        folder, slash, name = shortened(str(path)).rpartition("/")
        stdout.print(Text.assemble((folder + slash, "dim"), (name, "bold")))
        for judged in _chosen(classification, top):
            share = f"  p {judged.probability:.3f}" if judged.probability is not None else ""
            line = Text.assemble(("  ", ""), (f"{judged.score:7.4f}", "cyan"), (f"{share}  ", "dim"))
            line.append(printable(judged.label), style="bold red" if judged.flagged else "")
            stdout.print(line + Text("  flagged", "red") if judged.flagged else line)


def _chosen(classification: Classification, top: int) -> Iterator[LabelScore]:
    for place, judged in enumerate(classification.judged):
        if place < top or judged.flagged:
            yield judged
