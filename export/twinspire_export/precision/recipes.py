"""Int8 engines made on the way, by recipes that lose less one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.images import ImageItem
from twinspire_export.dependencies import Extra, require
from twinspire_export.precision.candidates import Variant

MOST = 4
"""How many recipes there are."""

DYNAMIC = "quantize_dynamic"


def made_by_recipes(
    bundle: Bundle,
    count: int,
    work: Path,
    *,
    pictures: Sequence[ImageItem] | None,
    captions: Sequence[str] | None,
    on_step: Callable[[str], None],
) -> Iterator[Variant]:
    """Yield int8 engines of the bundle's fp32 ones by the first `count` recipes; those made before are in `work`.

    The default recipe comes first; then one with ranges of their own on both sides of 0, and two that leave the
    products of the MLPs in float32, which are slower and lose less. Raises what `quantize_bundle` raises, and
    MissingDependencyError where a package is missing.
    """
    if count == 0:
        return
    require(Extra.QUANTIZE, "making int8 engines")
    from twinspire_export.quantization.quantizer import DEFAULT_RECIPES
    from twinspire_export.quantization.recipe import Int8Recipe, Ranges
    from twinspire_export.quantize import quantize_bundle

    fp32 = _fp32_alone(bundle, work)
    parts = {tower: _kinds(fp32.engine(tower, Precision.FP32)) for tower in Tower}

    def without(kinds: Sequence[str], tower: Tower, recipe: Int8Recipe) -> Int8Recipe:
        return replace(recipe, left_out=(*recipe.left_out, *(kind for kind in kinds if kind in parts[tower])))

    changes: list[tuple[str, Callable[[Tower, Int8Recipe], Int8Recipe]]] = [
        ("default recipe", lambda _, recipe: recipe),
        ("asymmetric ranges", lambda _, recipe: replace(recipe, ranges=Ranges.ASYMMETRIC)),
        ("without mlp-down", lambda tower, recipe: without(["mlp-down"], tower, recipe)),
        ("without mlp-down, mlp-up", lambda tower, recipe: without(["mlp-down", "mlp-up"], tower, recipe)),
    ]
    for name, change in changes[:count]:
        recipes = {tower: change(tower, DEFAULT_RECIPES[tower]) for tower in Tower}
        digest = "-".join(recipes[tower].digest()[:16] for tower in Tower)
        folder = work / f"int8-{fp32.manifest.engines[Tower.IMAGE][Precision.FP32].sha256[:8]}-{digest}"
        if folder.exists():
            made = Bundle.open(folder)
        else:
            made = quantize_bundle(
                fp32,
                folder,
                pictures=pictures,
                captions=captions,
                recipes=recipes,
                on_step=lambda step, name=name: on_step(f"{name}: {step}"),  # type: ignore[misc]
            )
        yield Variant(Precision.INT8, made, name)


def made_dynamically(bundle: Bundle, work: Path, *, on_step: Callable[[str], None]) -> Variant:
    """Give the baseline: the bundle's fp32 engines quantized by onnxruntime as they run; one made before is in `work`.

    Raises EngineError where onnxruntime cannot do it, MissingDependencyError where a package is missing.
    """
    from twinspire_export.quantization.dynamic import quantize_dynamically

    fp32 = _fp32_alone(bundle, work)
    folder = work / f"dynamic-{fp32.manifest.engines[Tower.IMAGE][Precision.FP32].sha256[:16]}"
    if folder.exists():
        return Variant(Precision.INT8, Bundle.open(folder), DYNAMIC, is_baseline=True)
    engines = {}
    with BundleWriter(folder, base=fp32) as writer:
        for tower in Tower:
            on_step(f"{DYNAMIC}: making the {tower} tower")
            file = f"{tower}.int8.onnx"
            quantize_dynamically(fp32.engine(tower, Precision.FP32), writer.path(file))
            engines[tower, Precision.INT8] = (file, None)
        made = writer.commit(fp32.manifest.draft(), engines)
    return Variant(Precision.INT8, made, DYNAMIC, is_baseline=True)


def _fp32_alone(bundle: Bundle, work: Path) -> Bundle:
    """Make the bundle without its other engines: a bundle is quantized once to each precision."""
    folder = work / f"fp32-{bundle.manifest.engines[Tower.IMAGE][Precision.FP32].sha256[:16]}"
    if folder.exists():
        return Bundle.open(folder)
    work.mkdir(parents=True, exist_ok=True)
    engines = {tower: bundle.manifest.engines[tower][Precision.FP32] for tower in Tower}
    with BundleWriter(folder) as writer:
        for name in [*bundle.manifest.files, *(record.file for record in engines.values())]:
            writer.put_file(name, bundle.path / name)
        return writer.commit(
            bundle.manifest.draft(),
            {(tower, Precision.FP32): (record.file, record.certificate) for tower, record in engines.items()},
        )


def _kinds(engine: Path) -> frozenset[str]:
    import onnx

    from twinspire_export.quantization.node_roles import parts_of

    return frozenset(str(part.kind) for part in parts_of(onnx.load(engine)).values())
