"""`twinspire search`: words or a picture find pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import BundleOption, JsonOption, open_client, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.index import Hit


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Look for pictures like this one.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write the hits as pictures to this PNG.")] = None,
) -> None:
    """Find pictures by TEXT or by --image.

    On a terminal the hits come as a list to read, in a pipe as lines of score, tab, path.
    """
    _check(text, image, k, sheet)
    from twinspire.index import Index

    with Index.open(index) as opened:
        size = len(opened)
        if size == 0:
            raise InputError(f"the index {index} is empty: add pictures with `twinspire index add`")
        with open_client(bundle) as client:
            opened.check_space(client.space)
            query = client.encode_images([image]) if image is not None else client.encode_text([text or ""])  # (1, D)
            (hits,) = opened.search(query, k=k, space=client.space)
    if sheet is not None:
        _write_sheet(sheet, text, image, hits)
    if as_json:
        print_json(_document(index, text, image, k, hits))
        return
    _print_hits(text if text is not None else printable(image or ""), hits, size=size)
    if sheet is not None:
        typer.echo(f"contact sheet: {printable(sheet)}", err=True)


def _check(text: str | None, image: Path | None, k: int, sheet: Path | None) -> None:
    """Refuse what cannot work before anything is loaded."""
    if (text is None) == (image is None):
        came = "neither came" if text is None else "both came"
        raise InputError(f"a search needs either TEXT or --image FILE, {came}")
    if text is not None and not text.strip():
        raise InputError("the query is empty: expected words to look for")
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"the query is not UTF-8: {printable(text)}")
    if k < 1:
        raise InputError(f"-k is the number of hits, 1 or more, got {k}")
    if image is not None and not image.is_file():
        raise InputError(f"there is no picture file {image}")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise InputError(f"the contact sheet is a PNG: expected a name that ends in .png, got {sheet}")
    if sheet is not None and (not sheet.absolute().parent.is_dir() or sheet.is_dir()):
        raise InputError(f"the contact sheet cannot be written to {sheet}: its folder is missing or it is one")


def _document(index: Path, text: str | None, image: Path | None, k: int, hits: Sequence[Hit]) -> dict[str, object]:
    return {
        "schema_version": 1,
        "index": printable(index.absolute()),
        "query": {"text": text} if image is None else {"image": printable(image.absolute())},
        "k": k,
        "hits": [
            {
                "rank": rank,
                "score": round(hit.score, 6),
                "uri": hit.uri,
                "id": hit.id,
                "kind": hit.kind.value,
                "caption": hit.caption,
                "metadata": dict(hit.metadata),
            }
            for rank, hit in enumerate(hits, start=1)
        ],
    }


def _write_sheet(sheet: Path, text: str | None, image: Path | None, hits: Sequence[Hit]) -> None:
    from twinspire.sheet import SheetRow, contact_sheet, missing_font_note

    title = text if text is not None else printable(image.name if image is not None else "")
    missing = contact_sheet([SheetRow(title, [(Path(hit.uri), hit.score) for hit in hits], picture=image)], sheet)
    if missing:
        typer.echo(missing_font_note(missing), err=True)


def _print_hits(query: str, hits: Sequence[Hit], *, size: int) -> None:
    from rich.console import Console
    from rich.text import Text

    # The terminal wraps long paths itself, so that they can be copied whole.
    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not stdout.is_terminal:
        for hit in hits:
            typer.echo(f"{hit.score:.4f}\t{printable(hit.uri)}")
        return
    stdout.print(Text.assemble((printable(query), "bold"), (f"  best of {size:,}", "dim")))
    for rank, hit in enumerate(hits, start=1):
        folder, slash, name = shortened(hit.uri).rpartition("/")
        stdout.print(
            Text.assemble((f"{rank:>3}  ", "dim"), (f"{hit.score:.4f}", "cyan"), "  ", (folder + slash, "dim"), name)
        )
