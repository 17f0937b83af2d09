"""Checkpoint to sample bundle: `python -m twinspire_export.sample.build runs/sample -o runs/bundle`.

Exports and quantizes with the public functions, measures both precisions and writes their recall to certificates.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire_export.export import export_checkpoint
from twinspire_export.quantize import quantize_bundle
from twinspire_export.sample.figures import DATA, SampleFigures, measure, plot_training

NAME = "scenes"


def build(checkpoint: Path, destination: Path) -> dict[Precision, SampleFigures]:
    """Make the sample bundle `destination` from a trained checkpoint and return its figures."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        exported = export_checkpoint(checkpoint, Path(folder) / "fp32", name=NAME, on_step=typer.echo)
        quantized = quantize_bundle(exported, Path(folder) / "int8", on_step=typer.echo)
        figures = {}
        for precision in (Precision.FP32, Precision.INT8):
            typer.echo(f"measuring {precision} on {DATA}")
            figures[precision] = measure(quantized, precision)
        _certify(quantized, figures, destination)
    return figures


def _certify(bundle: Bundle, figures: dict[Precision, SampleFigures], destination: Path) -> None:
    """Write `bundle` again with the measured recall in its certificates."""
    engines = {}
    for tower in Tower:
        for precision, measured in figures.items():
            record = bundle.manifest.engines[tower][precision]
            assert record.certificate is not None
            recall = {"data": DATA, **{language.value: both.to_json() for language, both in measured.recall.items()}}
            engines[tower, precision] = (record.file, replace(record.certificate, recall=recall))
    with BundleWriter(destination, base=bundle) as writer:
        draft = bundle.manifest.draft()
        source = replace(draft.source, checkpoint="twinspire_export.sample", licence="Apache-2.0")
        writer.commit(replace(draft, source=source), engines)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of twinspire_export.sample.train.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle to make.")],
) -> None:
    """Make the sample bundle; figures.json and training.png are written into the checkpoint's folder."""
    figures = build(checkpoint, out)
    document = {precision.value: measured.to_json() for precision, measured in figures.items()}
    (checkpoint / "figures.json").write_text(json.dumps({"data": DATA, **document}, indent=2) + "\n", encoding="utf-8")
    plot_training(checkpoint / "training.jsonl", checkpoint / "training.png")
    typer.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    typer.run(main)
