"""`twinspire demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.errors import InputError
from twinspire_eval.smoke import smoke_option
from twinspire_server.demo.settings import DemoRuntime

if TYPE_CHECKING:
    from rich.console import Console

    from twinspire_server.demo import DemoReport

SHOWN = 3
"""How many hits a query gets on the terminal; the contact sheet and the JSON have more."""


def register(app: typer.Typer) -> None:
    """Add `demo` to `app`."""
    app.command()(demo)


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The demo's folder: new, empty or an earlier demo's.")
    ] = Path("demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures as one JSON document.")
    ] = None,
    runtime: Annotated[
        DemoRuntime, typer.Option(help="A Triton server, this process, or whichever can be started.")
    ] = DemoRuntime.AUTO,
    images: Annotated[int, typer.Option(min=1, help="How many pictures are drawn.")] = 500,
    _smoke: Annotated[bool, smoke_option(images=40)] = False,
) -> None:
    """Draw images, index them, find them in words, and measure how well."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire import sample_bundle
    from twinspire_server.demo.run import run_demo

    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file} is a folder: expected the name of a file to write")
    tasks = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        report = run_demo(out, bundle=sample_bundle(), images=images, runtime=runtime, on_progress=tell)
    _print(report, Console())
    if json_file is not None:
        document = json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n"
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(document, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {json_file}: {error.strerror or error}") from error


def _print(report: DemoReport, console: Console) -> None:
    """Print the answers and the figures as tables."""
    from rich.table import Table
    from rich.text import Text

    from twinspire.contact_sheet import missing_font_note

    answers = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    answers.add_column("query", overflow="fold")
    answers.add_column("best hits (file score)", no_wrap=True)
    for answer in report.answers:
        hits = (Text.assemble(Path(hit.uri).stem, (f" {hit.score:.2f}", "cyan")) for hit in answer.hits[:SHOWN])
        answers.add_row(answer.query, Text("  ").join(hits))
    figures = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("recall", "R@1", "R@5", "R@10"):
        figures.add_column(title)
    for language, both in report.recall.items():
        for way, recall in (("text to image", both.text_to_image), ("image to text", both.image_to_text)):
            figures.add_row(f"{language}  {way}", *(f"{value:.3f}" for value in (recall.r1, recall.r5, recall.r10)))
    console.print(answers)
    console.print()
    console.print(figures)
    console.print()
    if report.mean_batch_size is not None:
        console.print(f"the server made batches of {report.mean_batch_size:.1f} of single pictures", soft_wrap=True)
    if report.fallback is not None:
        console.print(f"in this process, since no Triton could be started: {report.fallback}", soft_wrap=True)
    console.print(
        f"{report.images} pictures indexed at {report.images_per_s:.0f} images/s, file to durable index, "
        f"with {report.engine}",
        soft_wrap=True,
    )
    console.print(f"contact sheet: {report.sheet}", soft_wrap=True)
    if report.unwritable:
        typer.echo(missing_font_note(report.unwritable), err=True)
