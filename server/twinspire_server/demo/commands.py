"""`twinspire demo`."""

from __future__ import annotations

import json
import shlex
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire._arguments import file_errors
from twinspire.errors import InputError, MissingDependencyError
from twinspire_eval.smoke import smoke_option
from twinspire_server.demo import DemoRuntime

if TYPE_CHECKING:
    from rich.console import Console

    from twinspire_server.demo import DemoReport

SHOWN = 3
"""How many hits of a query are printed; the contact sheet and the JSON have more."""


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the demo: new, empty or of an earlier demo.")
    ] = Path("demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the results to this file, as one JSON document.")
    ] = None,
    runtime: Annotated[
        DemoRuntime, typer.Option(help="Encode in a Triton server or in this process; auto prefers Triton.")
    ] = DemoRuntime.AUTO,
    images: Annotated[int, typer.Option(min=1, help="Number of images to generate.")] = 500,
    open_page: Annotated[
        bool,
        typer.Option("--open", help="Then start the gateway and open its search page in the browser, until Ctrl-C."),
    ] = False,
    _smoke: Annotated[bool, smoke_option(images=40)] = False,
) -> None:
    """Generate images, index them, search them with texts, and measure recall and speed.

    Ends with the command that shows the index in a browser; --open runs it.
    """
    from rich.console import Console
    from rich.progress import Progress

    from twinspire import sample_bundle
    from twinspire_server.demo.run import run_demo

    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file} is a folder: expected the name of a file to write", path=json_file)
    tasks = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        report = run_demo(out, bundle=sample_bundle(), images=images, runtime=runtime, on_progress=show)
    _print(report, Console())
    if json_file is not None:
        document = json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n"
        with file_errors(f"cannot write {json_file}", json_file):
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(document, encoding="utf-8")
    index = out / "index"
    typer.echo(f"search it in a browser: twinspire gateway --index {shlex.quote(str(index))}")
    if open_page:
        _open_page(index)


def _open_page(index: Path) -> None:
    """Serve the page of the demo's index on a free port, and show it in the browser, until Ctrl-C."""
    try:
        from twinspire_server.gateway.running import run
        from twinspire_server.gateway.settings import GatewaySettings
    except ImportError as error:
        raise MissingDependencyError(error.name or "fastapi", "gateway", "demo --open") from error

    def show(url: str) -> None:
        typer.echo(f"gateway at {url}")
        webbrowser.open(url)

    run(GatewaySettings(index=str(index)), host="127.0.0.1", port=0, announce=show, announce_metrics=typer.echo)


def _print(report: DemoReport, console: Console) -> None:
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
        console.print(f"mean batch size on the server, of single images: {report.mean_batch_size:.1f}", soft_wrap=True)
    if report.fallback is not None:
        console.print(f"encoded in this process, since Triton could not be started: {report.fallback}", soft_wrap=True)
    console.print(
        f"{report.images} images indexed at {report.images_per_s:.0f} images/s, file to durable index, "
        f"with {report.engine}",
        soft_wrap=True,
    )
    console.print(f"contact sheet: {report.sheet}", soft_wrap=True)
    if report.unwritable:
        typer.echo(missing_font_note(report.unwritable), err=True)
