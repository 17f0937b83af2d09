"""`twinspire classify`: zero-shot classification of images and sounds by labels in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire._arguments import as_whole
from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.index.shared import print_skipped
from twinspire.cli.output import CsvOption, check_output, print_csv, rounded
from twinspire.cli.search import TemplatesOption
from twinspire.cli.shared import EXIT_SOME_FAILED, JsonOption, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.ingest.kinds import FileKinds
    from twinspire.search import Classification, Classifier, LabelScore

_BATCH = 256
_KEYS = {"image": "images", "audio": "sounds"}


@with_client_options
def classify(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Image or sound files, or folders of them.", show_default=False),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            "-l",
            help="Text file with one label on each line; for moderation with a threshold: a knife | 0.25.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", "-k", help="Number of labels to show for each file.")] = 3,
    templates: TemplatesOption = None,
    *,
    options: ClientOptions,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Classify images, or sounds, by labels in plain words, without training.

    A label with a threshold is flagged where its score reaches it; flagged labels are always shown. In a pipe the
    output is lines of path, label, score, probability and `flagged`, separated by tabs. Ends with status 3 if some
    files failed and the others were classified.
    """
    as_whole(top, "--top", minimum=1)
    check_output(as_json=as_json, as_csv=as_csv)
    from twinspire.ingest import find_files
    from twinspire.ingest.discovery import no_files
    from twinspire.ingest.kinds import FILE_KINDS, FileKinds
    from twinspire.search import Classifier, Templates, read_labels

    known = read_labels(labels)
    prompts = Templates.read(templates) if templates is not None else None
    found = find_files(images, kinds=FILE_KINDS, on_error="skip")
    with open_client(options) as client:
        kinds = FileKinds.of(client)
        files = found.only(kinds.limits)
        if not files and not files.failed:
            raise no_files(None, kinds.limits, files.skipped)
        classified, failed = _classified(Classifier(client, known, templates=prompts), files, kinds)
    failed = [*files.failed, *failed]
    if as_json:
        print_json(_document(labels, classified, failed, kinds))
    elif as_csv:
        rows = ({"path": printable(path), **row} for path, found in classified for row in map(_score, found.scores))
        print_csv(("path", "label", "score", "probability", "flagged"), rows)
    else:
        _print(classified, top)
    print_skipped(files.skipped)
    for path, cause in failed:
        typer.echo(f"failed {shortened(str(path))}: {printable(cause)}", err=True)
    if not classified:
        raise InputError(f"none of the {len(files)} files could be read")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _classified(
    classifier: Classifier, files: Sequence[Path], kinds: FileKinds
) -> tuple[list[tuple[Path, Classification]], list[tuple[Path, str]]]:
    classified: list[tuple[Path, Classification]] = []
    failed: list[tuple[Path, str]] = []
    for kind in kinds.limits:
        own = [path for path in files if kinds.of_file(path) is kind]
        classify = classifier.classify_audio_or_skip if kind == "audio" else classifier.classify_or_skip
        for start in range(0, len(own), _BATCH):
            batch = own[start : start + _BATCH]
            classifications, errors = classify(batch)
            bad = {error.position for error in errors}
            failed += [(batch[error.position], error.cause) for error in errors]
            good = [path for position, path in enumerate(batch) if position not in bad]
            classified += zip(good, classifications, strict=True)
    return classified, failed


def _document(
    labels: Path,
    classified: Sequence[tuple[Path, Classification]],
    failed: Sequence[tuple[Path, str]],
    kinds: FileKinds,
) -> dict[str, Any]:
    entries: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds.limits}
    for path, found in classified:
        entries[kinds.of_file(path)].append(
            {
                "path": printable(path),
                "labels": [_score(score) for score in found.scores],
                "flagged": [score.label for score in found.flagged],
            }
        )
    return {
        "schema_version": 1,
        "labels": printable(labels.absolute()),
        **{_KEYS[kind]: listed for kind, listed in entries.items()},
        "failed": [{"path": printable(path), "cause": cause} for path, cause in failed],
    }


def _score(score: LabelScore) -> dict[str, Any]:
    rounding = {"score": rounded(score.score), "probability": rounded(score.probability)}
    return dataclasses.asdict(score) | rounding


def _print(classified: Sequence[tuple[Path, Classification]], top: int) -> None:
    from rich.console import Console
    from rich.text import Text

    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for path, found in classified:
        scores = [score for position, score in enumerate(found.scores) if position < top or score.flagged]
        if not stdout.is_terminal:
            for score in scores:
                probability = f"{score.probability:.4f}" if score.probability is not None else ""
                flag = "flagged" if score.flagged else ""
                typer.echo(f"{printable(path)}\t{printable(score.label)}\t{score.score:.4f}\t{probability}\t{flag}")
            continue
        folder, slash, name = shortened(str(path)).rpartition("/")
        stdout.print(Text.assemble((folder + slash, "dim"), (name, "bold")))
        for score in scores:
            probability = f"  p {score.probability:.3f}" if score.probability is not None else ""
            line = Text.assemble(("  ", ""), (f"{score.score:7.4f}", "cyan"), (f"{probability}  ", "dim"))
            line.append(printable(score.label), style="bold red" if score.flagged else "")
            stdout.print(line + Text("  flagged", "red") if score.flagged else line)
