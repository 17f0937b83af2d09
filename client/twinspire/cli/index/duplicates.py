"""`twinspire index duplicates`: groups of near-equal pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.index.shared import ProgressBar, StoreArgument, counted, print_index_json
from twinspire.cli.shared import (
    EXIT_SOME_FAILED,
    SHEET_SUFFIXES,
    JsonOption,
    check_destination,
    printable,
    shortened,
    size_of,
)
from twinspire.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinspire.duplicates import DuplicateGroup, DuplicateImage, DuplicateReport

_SHEET_GROUPS = 60
_SHEET_IMAGES = 10  # of a group
_SHOWN_UNREADABLE = 20


def duplicates(
    index: StoreArgument,
    threshold: Annotated[
        float | None, typer.Option(help="Minimum cosine of two pictures' vectors, 0 to 1; default 0.6.")
    ] = None,
    min_correlation: Annotated[
        float | None, typer.Option(help="Minimum correlation of their pixels, 0 to 1; default 0.84.")
    ] = None,
    max_megapixels: Annotated[
        float | None, typer.Option(help="Do not decode larger pictures, by their header; default 64.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write the groups as pictures to this PNG or JPEG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show groups of near-equal pictures: re-encoded, scaled, cropped or recoloured copies. Nothing is deleted.

    Candidates are found by vector and compared by the pixels of their files. The best of a group has the most pixels;
    every other one is near-equal to it. On a terminal the groups are a list to read, in a pipe lines of group, best or
    copy, cosine, correlation and path, with tabs between. Ends with status 3 where files could not be read: these
    pictures are compared by vector alone, from a cosine of 0.98 on, and named.
    """
    from twinspire.duplicates import DEFAULT_MIN_CORRELATION, DEFAULT_THRESHOLD, find_duplicates
    from twinspire.images import ImageLimits
    from twinspire.stores import open_index

    if sheet is not None:
        check_destination(sheet, "the contact sheet", suffixes=SHEET_SUFFIXES)
    if max_megapixels is not None and not 1e-6 <= max_megapixels <= 1e6:
        raise InputError(
            f"--max-megapixels {max_megapixels:g}: expected millions of pixels, above 0", option="--max-megapixels"
        )
    limits = ImageLimits(max_pixels=round(max_megapixels * 1e6)) if max_megapixels is not None else None
    with open_index(index) as store, _Progress() as progress:
        report = find_duplicates(
            store,
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
            min_correlation=DEFAULT_MIN_CORRELATION if min_correlation is None else min_correlation,
            limits=limits,
            on_progress=progress.update,
        )
    if sheet is not None:
        _write_sheet(report, sheet)
    if as_json:
        print_index_json(index, report.to_dict())
    else:
        _print_groups(report)
        _print_summary(report, sheet)
    if report.unreadable:
        _print_unreadable(report)
        raise typer.Exit(EXIT_SOME_FAILED)


class _Progress:
    """A progress bar for each stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: ProgressBar | None = None

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, ProgressBar(stage)
        self._bar.update(done, total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _print_groups(report: DuplicateReport) -> None:
    from rich.console import Console

    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    show: Callable[[int, DuplicateGroup], None] = _print_lines
    if stdout.is_terminal:
        show = _print_list
    for number, group in enumerate(report.groups, start=1):
        show(number, group)


def _print_lines(number: int, group: DuplicateGroup) -> None:
    for image in group:
        role = "best" if image is group.best else "copy"
        correlation = "-" if image.correlation is None else f"{image.correlation:.3f}"
        typer.echo(f"{number}\t{role}\t{image.similarity:.3f}\t{correlation}\t{printable(image.uri)}")


def _print_list(number: int, group: DuplicateGroup) -> None:
    from rich.console import Console
    from rich.text import Text

    stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    stdout.print(Text(f"{number}. {_title(group)}", "bold"))
    for image in group:
        is_best = image is group.best
        compared = "best" if is_best else f"cosine {image.similarity:.3f}"
        if not is_best:
            compared += "  by vector" if image.correlation is None else f"  pixels {image.correlation:.3f}"
        stdout.print(
            Text.assemble((f"   {compared:<28}", "cyan"), (f"{_size(image):<24}", "dim"), shortened(image.uri))
        )


def _title(group: DuplicateGroup) -> str:
    return f"{len(group)} near-equal pictures" + ("" if group.is_checked else ", compared by vector alone in part")


def _size(image: DuplicateImage) -> str:
    if image.width is None or image.size_bytes is None:
        return "file not read"
    return f"{image.width} x {image.height}  {size_of(image.size_bytes)}"


def _print_summary(report: DuplicateReport, sheet: Path | None) -> None:
    if not report.groups:
        typer.echo(f"no near-equal pictures among {report.images:,}", err=True)
        return
    groups = f"{len(report.groups):,} group{'' if len(report.groups) == 1 else 's'}"
    copies = f"{report.redundant:,} cop{'y' if report.redundant == 1 else 'ies'}"
    typer.echo(f"{groups} with {copies} of better ones among {report.images:,} pictures; nothing is deleted", err=True)
    if sheet is not None:
        typer.echo(f"contact sheet: {printable(sheet)}", err=True)


def _print_unreadable(report: DuplicateReport) -> None:
    for image in report.unreadable[:_SHOWN_UNREADABLE]:
        typer.echo(f"compared by vector alone: {shortened(image.uri)}: {printable(image.problem)}", err=True)
    more = len(report.unreadable) - _SHOWN_UNREADABLE
    if more > 0:
        typer.echo(f"and {counted(more)} more, which --json names", err=True)


def _write_sheet(report: DuplicateReport, sheet: Path) -> None:
    from twinspire.contact_sheet import SheetRow, contact_sheet, missing_font_note

    if not report.groups:
        typer.echo(f"note: no contact sheet is written to {printable(sheet)}, as there are no groups", err=True)
        return
    rows = []
    for number, group in enumerate(report.groups[:_SHEET_GROUPS], start=1):
        title = f"{number}. {_title(group)}"
        if len(group) > _SHEET_IMAGES:
            title += f", the nearest {_SHEET_IMAGES}"
        rows.append(SheetRow(title, [(Path(image.uri), image.similarity) for image in [*group][:_SHEET_IMAGES]]))
    missing = contact_sheet(rows, sheet)
    if missing:
        typer.echo(missing_font_note(missing), err=True)
    if len(report.groups) > _SHEET_GROUPS:
        shown = f"the first {_SHEET_GROUPS} of {len(report.groups):,} groups"
        typer.echo(f"note: the contact sheet shows {shown}", err=True)
