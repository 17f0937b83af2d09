"""Output of `twinspire search`: a list, lines for a pipe, --json, --csv and --sheet, all of the same hits."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.shared import SHEET_SUFFIXES, check_destination, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.search import SearchHit, SearchRequest, SearchResponse

_CSV_HELP = (
    "Print a table of comma-separated values instead, metadata keys as columns; a text that a spreadsheet would run as "
    "a formula starts with an apostrophe."
)
CsvOption = Annotated[bool, typer.Option("--csv", help=_CSV_HELP)]
SheetOption = Annotated[Path | None, typer.Option("--sheet", help="Write the hits as pictures to this PNG or JPEG.")]

CSV_COLUMNS = ("rank", "score", "probability", "uri", "id", "kind", "caption", "parts", "similar")
"""Columns of every CSV of hits, followed by one for each metadata key that a hit has."""
_SCORE_DIGITS = 6
_RANKING_PARTS = frozenset({"vector", "keyword", "fused", "vector_rank", "keyword_rank"})
"""Score parts that every hit of a mode has: a terminal does not show them."""
_CAPTION_WIDTH = 72
# Characters that make a spreadsheet take a text for a formula, full-width forms included; OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Results:
    """A search to show: the URI of the store, the query as text, and the query image where there is one."""

    index: str
    title: str
    request: SearchRequest
    response: SearchResponse
    image: Path | None = None


def check_output(*, as_json: bool = False, as_csv: bool = False, sheet: Path | None = None) -> None:
    """Refuse what cannot be written, before anything is loaded. Raises `InputError`."""
    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other: both print to standard output", option="--csv")
    if sheet is not None:
        check_destination(sheet, "the contact sheet", suffixes=SHEET_SUFFIXES)


def show(results: Results, *, as_json: bool = False, as_csv: bool = False, sheet: Path | None = None) -> None:
    """Write the contact sheet where one is asked for, and print the hits in one form.

    On a terminal that is a list to read, in a pipe lines of score, tab, uri. Raises `InputError` where the sheet
    cannot be written.
    """
    if sheet is not None:
        _write_sheet(results, sheet)
    if as_json:
        request, response = results.request.to_dict(), results.response.to_dict()
        print_json({"index": printable(results.index), "request": request, **response})
    elif as_csv:
        _print_hits_as_csv(results.response.hits)
    else:
        _print_hits(results.title, results.response)
        if sheet is not None:
            typer.echo(f"contact sheet: {printable(sheet)}", err=True)


def print_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Print RFC 4180 with a header, in UTF-8 whatever the terminal's encoding; see `csv_cell` for the cells."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\r\n")
    writer.writerow({name: csv_cell(name) for name in columns})
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    sys.stdout.flush()
    typer.echo(table.getvalue().encode(), nl=False)


def csv_cell(value: object) -> str:
    """Return a JSON value as a cell: texts as they are, null empty, anything else as JSON.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, unless it is a number.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    is_formula = value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def rounded(number: float | None) -> float | None:
    """Return a score or probability with as many digits as a CSV shows."""
    return None if number is None else round(number, _SCORE_DIGITS)


def _print_hits_as_csv(hits: Sequence[SearchHit]) -> None:
    from twinspire.stores.items import metadata_columns

    columns = metadata_columns((key for hit in hits for key in hit.metadata), CSV_COLUMNS)
    print_csv((*CSV_COLUMNS, *columns.values()), (_csv_row(hit, columns) for hit in hits))


def _csv_row(hit: SearchHit, columns: Mapping[str, str]) -> dict[str, Any]:
    row = hit.to_dict()
    row |= {columns[key]: value for key, value in row.pop("metadata").items()}
    parts = {name: rounded(part) for name, part in hit.parts.items()}
    return row | {
        "score": rounded(hit.score),
        "probability": rounded(hit.probability),
        "parts": parts or None,
        "similar": row["similar"] or None,
    }


def _print_hits(title: str, response: SearchResponse) -> None:
    from rich.console import Console
    from rich.text import Text

    # The terminal wraps long paths itself, so that they can be copied whole.
    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not stdout.is_terminal:
        for hit in response.hits:
            typer.echo(f"{hit.score:.4f}\t{printable(hit.uri)}")
        return
    count = f"  best of {response.searched:,}" if response.hits else f"  no hits among {response.searched:,}"
    stdout.print(Text.assemble((printable(title), "bold"), (count, "dim")))
    for hit in response.hits:
        stdout.print(Text.assemble((f"{hit.rank:>3}  ", "dim"), (f"{hit.score:.4f}", "cyan"), "  ", *_described(hit)))
        rules = "  ".join(f"{name} {part:.4g}" for name, part in hit.parts.items() if name not in _RANKING_PARTS)
        if rules:
            stdout.print(Text(f"{'':13}{printable(rules)}", "dim"))


def _described(hit: SearchHit) -> list[str | tuple[str, str]]:
    """Return the path of an image or sound with its caption, or a text with where it is from, and the probability."""
    folder, slash, name = shortened(hit.uri).rpartition("/")
    described: list[str | tuple[str, str]]
    if text := _text_of(hit):
        described = [printable(text), (f"  {folder}{slash}{name}", "dim")]
    else:
        described = [(folder + slash, "dim"), name]
        if hit.kind.value == "audio":
            described.append(("  audio", "dim"))
        if hit.caption:
            described.append((f"  {printable(_first_line(hit.caption))}", "dim"))
    if hit.similar:
        described.append((f"  +{len(hit.similar):,} similar", "dim"))
    if hit.probability is not None:
        described.append((f"  p {hit.probability:.2f}", "cyan"))
    return described


def _text_of(hit: SearchHit) -> str | None:
    """Return the text of a hit that is one; None for an image, and for a text that the index does not hold."""
    return hit.caption if hit.kind.value == "text" else None


def _card_of(hit: SearchHit) -> Path | str:
    """Return what a contact sheet shows of a hit: a picture, or a text, which for a sound is its name and caption."""
    if hit.kind.value == "audio":
        return "\n".join(["sound", Path(hit.uri).name, *([hit.caption] if hit.caption else [])])
    return _text_of(hit) or Path(hit.uri)


def _first_line(caption: str) -> str:
    line, _, more = caption.strip().partition("\n")
    return f"{line[:_CAPTION_WIDTH]} …" if more or len(line) > _CAPTION_WIDTH else line


def _write_sheet(results: Results, sheet: Path) -> None:
    from twinspire.contact_sheet import SheetRow, contact_sheet, missing_font_note

    hits = [(_card_of(hit), hit.score) for hit in results.response.hits]
    missing = contact_sheet([SheetRow(results.title, hits, image=results.image)], sheet)
    if missing:
        typer.echo(missing_font_note(missing), err=True)
