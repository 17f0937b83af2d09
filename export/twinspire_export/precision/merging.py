"""Engines made for the comparison that merge tokens of the image: a sweep over the number merged in each block.

`python -m twinspire_export.precision.merging` makes them of a bundle without comparing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from twinspire.bundle import Bundle, BundleWriter, Certificate, Precision, Tower
from twinspire.errors import InputError, TwinspireError
from twinspire_export.dependencies import Extra, require
from twinspire_export.engine_check import EngineRunner, certify, check_engine
from twinspire_export.precision.candidates import EnginePair

SHARES = (0.25, 0.5, 0.75)
"""Shares of the image's tokens that the sweep merges before the last block."""


def merging_sweep(bundle: Bundle) -> tuple[int, ...]:
    """Return the numbers of tokens to merge in each block that the sweep tries: `SHARES` of all, by the blocks.

    Raises InputError where the image tower is no vision transformer whose tokens can be merged.
    """
    require(Extra.QUANTIZE, "merging tokens")
    import onnx

    from twinspire_export.token_merging import merge_tokens

    lengths = merge_tokens(onnx.load(bundle.engine(Tower.IMAGE, Precision.FP32)), 1)
    blocks = len(lengths) - 1
    return tuple(dict.fromkeys(max(1, round(share * lengths[0] / blocks)) for share in SHARES))


def merging_engines(
    pair: EnginePair, numbers: Sequence[int], work: Path, *, on_step: Callable[[str], None]
) -> Iterator[EnginePair]:
    """Yield the engines `pair` with each of `numbers` of tokens merged in every block, reusing those in `work`.

    The text tower's engine stays as it is. Raises InputError as `merging_sweep` does and for another precision,
    EngineError where onnxruntime cannot run an engine, MissingDependencyError where a package is missing.
    """
    require(Extra.QUANTIZE, "merging tokens")
    import onnx

    from twinspire_export.token_merging import merge_tokens

    precision, base = _merged(pair.precision), pair.bundle
    for r in numbers:
        recipe = f"r {r}" if pair.recipe is None else f"r {r}, {pair.recipe}"
        folder = work / f"{precision}-{r}-{pair.engines_sha256[0][:16]}"
        if folder.exists():
            yield EnginePair(precision, Bundle.open(folder), recipe)
            continue
        on_step(f"merging {r} tokens in each block of the {pair} image tower")
        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        with BundleWriter(folder, base=base) as writer:
            for tower in base.towers:
                source, file = base.engine(tower, pair.precision), f"{tower}.{precision}.onnx"
                if tower is Tower.IMAGE:
                    model = onnx.load(source)
                    merge_tokens(model, r)
                    onnx.save(model, writer.path(file))
                    check_engine(writer.path(file), tower, base.manifest.tower(tower))
                else:
                    writer.put_file(file, source)
                before = base.manifest.engines[tower][pair.precision].certificate
                certificate = replace(
                    _certify(base, tower, writer.path(file)),
                    split_layers=None if before is None else before.split_layers,
                    float_layers=None if before is None else before.float_layers,
                    merged_tokens=r if tower is Tower.IMAGE else None,
                )
                engines[tower, precision] = file, certificate
            made = writer.commit(base.manifest.draft(), engines)
        yield EnginePair(precision, made, recipe)


def _merged(precision: Precision) -> Precision:
    """Return the precision of its engines with tokens merged. Raises InputError where none can be made."""
    merged = precision.with_merged_tokens
    if merged is None:
        allowed = " or ".join(each for each in Precision if each.with_merged_tokens)
        raise InputError(f"precision {precision}: expected {allowed}, whose engines can merge tokens")
    return merged


def _certify(bundle: Bundle, tower: Tower, engine: Path) -> Certificate:
    """Compare an engine with the fp32 one on the bundle's probes."""
    inputs: list[NDArray[Any]] = [row[None] for row in bundle.probes().towers[tower].inputs]
    return certify(
        EngineRunner(engine).embed(inputs),
        EngineRunner(bundle.engine(tower, Precision.FP32)).embed(inputs),
        reference="fp32 engine",
        data=f"{len(inputs)} probes",
        packages=("onnx", "onnxruntime"),
    )


def main(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with fp32 engines.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the new bundles.")],
    precision: Annotated[Precision, typer.Option(help="Precision of the engines to merge tokens in.")],
    r: Annotated[list[int], typer.Option("--merge-tokens", metavar="R", help="Tokens to merge in each block.")],
) -> None:
    """Write a bundle for each R, as DIR/R."""
    try:
        _merged(precision)  # before anything is written
        if taken := [number for number in r if (out / str(number)).exists()]:
            raise InputError(f"{out / str(taken[0])} exists: name another folder, or remove it")
        pair = EnginePair(precision, Bundle.open(bundle))
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as work:
            for number, made in zip(r, merging_engines(pair, r, Path(work), on_step=typer.echo), strict=True):
                made.bundle.path.rename(out / str(number))
    except TwinspireError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
