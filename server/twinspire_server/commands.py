"""The commands that this package adds to `twinspire`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from twinspire_server.demo import DemoReport


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.command()(demo)


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The demo's folder: new, empty or an earlier demo's.")
    ] = Path("demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures as one JSON document.")
    ] = None,
) -> None:
    """Draw 500 pictures, index them, find them in words, and measure how well."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire import sample_bundle
    from twinspire_server.demo import run_demo

    tasks = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        report = run_demo(out, bundle=sample_bundle(), on_progress=tell)
    _print(report, Console())
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _print(report: DemoReport, console: Console) -> None:
    """Print the answers and the figures as tables."""
    from rich.table import Table

    from twinspire.sheet import missing_font_note

    answers = Table("query", "hits (score)", title="Answers", title_justify="left", box=None, pad_edge=False)
    for answer in report.answers:
        hits = "  ".join(f"{Path(hit.uri).name} [dim]{hit.score:.3f}[/dim]" for hit in answer.hits[:3])
        answers.add_row(answer.query, hits)
    console.print(answers)
    console.print()
    figures = Table("recall", "R@1", "R@5", "R@10", title="Figures", title_justify="left", box=None, pad_edge=False)
    for language, both in report.recall.items():
        for way, recall in (("text to image", both.text_to_image), ("image to text", both.image_to_text)):
            figures.add_row(f"{language}  {way}", *(f"{value:.3f}" for value in (recall.r1, recall.r5, recall.r10)))
    console.print(figures)
    console.print()
    console.print(
        f"{report.images} pictures indexed at {report.images_per_s:.0f} images/s, runtime {report.runtime}, "
        f"each query among all of them"
    )
    console.print(f"contact sheet: {report.sheet}")
    if report.unwritable:
        console.print(missing_font_note(report.unwritable))
