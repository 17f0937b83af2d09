"""How every search shows its hits: a list, lines for a pipe, --json, --csv and --sheet, all of the same hits."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from twinspire.cli.csv_cells import csv_cell
from twinspire.cli.shared import check_destination, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.index import ItemKind

_CSV_HELP = (
    "Print a table of comma-separated values instead, metadata keys as columns; a text that a spreadsheet would run as "
    "a formula starts with an apostrophe."
)
CsvOption = Annotated[bool, typer.Option("--csv", help=_CSV_HELP)]
SheetOption = Annotated[Path | None, typer.Option("--sheet", help="Write the hits as pictures to this PNG.")]

CSV_COLUMNS = ("rank", "score", "probability", "uri", "id", "kind", "caption", "parts")
"""Columns of every CSV of hits; behind them stands one for each metadata key that a hit has."""
_SCORE_DIGITS = 6
_RANKING = frozenset({"vector", "words", "vector rank", "words rank", "fused"})
"""Parts of a score that every hit has: a terminal does not repeat them."""
_CAPTION_WIDTH = 72


class ShownHit(Protocol):
    """What is shown of a hit; one may also have `parts` (name to number) and a `probability` (0 to 1, or None)."""

    @property
    def id(self) -> int:
        """The item's id."""

    @property
    def uri(self) -> str:
        """Where the item is."""

    @property
    def score(self) -> float:
        """Higher is better."""

    @property
    def kind(self) -> ItemKind:
        """Image or text."""

    @property
    def caption(self) -> str | None:
        """What is said about it; of a text the text itself."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """A JSON object."""


@dataclass(frozen=True, slots=True)
class Results:
    """One search and its hits, best first.

    `title` is the query in words, `query` the same for --json; `searched` is how many items there were, `image` the
    query where it is one image, and `more` goes into the JSON document beside the query (mode, filter, ...). Ranks
    are counted from `offset` + 1.
    """

    index: Path
    title: str
    query: Mapping[str, Any]
    k: int
    searched: int
    hits: Sequence[ShownHit]
    picture: Path | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    offset: int = 0

    def ranked(self) -> Iterator[tuple[int, ShownHit]]:
        """Give the hits with their ranks."""
        return enumerate(self.hits, start=self.offset + 1)


def check_output(*, as_json: bool = False, as_csv: bool = False, sheet: Path | None = None) -> None:
    """Refuse what cannot be written, before anything is loaded. Raises `InputError`."""
    if as_json and as_csv:
        raise InputError("--json and --csv both came: expected one of them, both go to standard output")
    if sheet is not None:
        check_destination(sheet, "the contact sheet", suffix=".png")


def show(results: Results, *, as_json: bool = False, as_csv: bool = False, sheet: Path | None = None) -> None:
    """Write the sheet where one is asked for, and print the hits in one form.

    On a terminal that is a list to read, in a pipe lines of score, tab, uri. Raises `InputError` where the sheet
    cannot be written.
    """
    if sheet is not None:
        _write_sheet(results, sheet)
    if as_json:
        print_json(document_of(results))
    elif as_csv:
        _print_csv(results)
    else:
        _print_hits(results)
        if sheet is not None:
            typer.echo(f"contact sheet: {printable(sheet)}", err=True)


def document_of(results: Results) -> dict[str, Any]:
    """Return what --json prints."""
    return {
        "schema_version": 1,
        "index": printable(results.index.absolute()),
        "query": dict(results.query),
        **results.more,
        "k": results.k,
        "hits": [_hit_document(rank, hit) for rank, hit in results.ranked()],
    }


def _hit_document(rank: int, hit: ShownHit) -> dict[str, Any]:
    document = {
        "rank": rank,
        "score": round(hit.score, _SCORE_DIGITS),
        "uri": hit.uri,
        "id": hit.id,
        "kind": hit.kind.value,
        "caption": hit.caption,
        "metadata": dict(hit.metadata),
    }
    if (probability := _probability(hit)) is not None:
        document["probability"] = round(probability, _SCORE_DIGITS)
    if parts := _parts(hit):
        document["parts"] = {name: round(value, _SCORE_DIGITS) for name, value in parts.items()}
    return document


def _print_csv(results: Results) -> None:
    """Print RFC 4180 with a header, in UTF-8 whatever the terminal's encoding; objects stand in their cells as JSON."""
    from twinspire.stores.items import metadata_columns

    columns = metadata_columns((key for hit in results.hits for key in hit.metadata), CSV_COLUMNS)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, (*CSV_COLUMNS, *columns.values()), restval="", lineterminator="\r\n")
    writer.writerow({name: csv_cell(name) for name in writer.fieldnames})
    for rank, hit in results.ranked():
        row = _hit_document(rank, hit)
        row |= {columns[key]: value for key, value in row.pop("metadata").items()}
        writer.writerow({name: csv_cell(value) for name, value in row.items()})
    sys.stdout.flush()
    typer.echo(table.getvalue().encode(), nl=False)


def _print_hits(results: Results) -> None:
    from rich.console import Console
    from rich.text import Text

    # The terminal wraps long paths itself, so that they can be copied whole.
    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not stdout.is_terminal:
        for hit in results.hits:
            typer.echo(f"{hit.score:.4f}\t{printable(hit.uri)}")
        return
    of = f"  best of {results.searched:,}" if results.hits else f"  no hits among {results.searched:,}"
    stdout.print(Text.assemble((printable(results.title), "bold"), (of, "dim")))
    for rank, hit in results.ranked():
        stdout.print(Text.assemble((f"{rank:>3}  ", "dim"), (f"{hit.score:.4f}", "cyan"), "  ", *_described(hit)))
        rules = "  ".join(f"{name} {value:.4g}" for name, value in _parts(hit).items() if name not in _RANKING)
        if rules:
            stdout.print(Text(f"{'':13}{printable(rules)}", "dim"))


def _described(hit: ShownHit) -> list[str | tuple[str, str]]:
    """Return the image's path, or the text and where it stands, and what else is known of the hit."""
    folder, slash, name = shortened(hit.uri).rpartition("/")
    described: list[str | tuple[str, str]]
    if words := text_of(hit):
        described = [printable(words), (f"  {folder}{slash}{name}", "dim")]
    else:
        described = [(folder + slash, "dim"), name]
        if hit.caption:
            described.append((f"  {printable(_first_line(hit.caption))}", "dim"))
    if (probability := _probability(hit)) is not None:
        described.append((f"  p {probability:.2f}", "cyan"))
    return described


def text_of(hit: ShownHit) -> str | None:
    """Return the words of a text; None for an image, and for a text that the index does not hold."""
    return hit.caption if hit.kind.value == "text" else None


def _first_line(caption: str) -> str:
    line, _, more = caption.strip().partition("\n")
    return f"{line[:_CAPTION_WIDTH]} …" if more or len(line) > _CAPTION_WIDTH else line


def _parts(hit: ShownHit) -> Mapping[str, float]:
    parts: Mapping[str, float] = getattr(hit, "parts", {})
    return parts


def _probability(hit: ShownHit) -> float | None:
    probability: float | None = getattr(hit, "probability", None)
    return probability


def _write_sheet(results: Results, sheet: Path) -> None:
    from twinspire.contact_sheet import SheetRow, contact_sheet, missing_font_note

    hits = [(text_of(hit) or Path(hit.uri), hit.score) for hit in results.hits]
    missing = contact_sheet([SheetRow(results.title, hits, picture=results.picture)], sheet)
    if missing:
        typer.echo(missing_font_note(missing), err=True)
