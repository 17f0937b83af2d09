"""Int8 engines made for the comparison: by recipes of decreasing loss, and by onnxruntime's dynamic quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.images import ImageItem
from twinspire_export.dependencies import Extra, require
from twinspire_export.precision.candidates import EnginePair

MAX_RECIPES = 4

DYNAMIC = "quantize_dynamic"


def recipe_engines(
    bundle: Bundle,
    count: int,
    work: Path,
    *,
    images: Sequence[ImageItem] | None,
    captions: Sequence[str] | None,
    on_step: Callable[[str], None],
) -> Iterator[EnginePair]:
    """Yield int8 engines of the bundle's fp32 ones by the first `count` recipes, reusing those in `work`.

    The default recipe comes first, then asymmetric ranges, then two that keep matrix multiplications of the MLPs in
    float32, which are slower and lose less. Raises what `quantize_bundle` raises, and MissingDependencyError where a
    package is missing.
    """
    if count == 0:
        return
    require(Extra.QUANTIZE, "making int8 engines")
    import onnx

    from twinspire_export.quantization.float_fallback import MIN_COSINE
    from twinspire_export.quantization.recipe import Int8Recipe, Ranges
    from twinspire_export.quantize import default_recipe, quantize_bundle

    fp32 = _fp32_only(bundle, work)
    defaults = {tower: default_recipe(onnx.load(fp32.engine(tower, Precision.FP32))) for tower in fp32.towers}
    present = {tower: _roles(fp32.engine(tower, Precision.FP32)) for tower in fp32.towers}

    def keeping(roles: Sequence[str], tower: Tower, recipe: Int8Recipe) -> Int8Recipe:
        return replace(recipe, keep_float=(*recipe.keep_float, *(role for role in roles if role in present[tower])))

    changes: list[tuple[str, Callable[[Tower, Int8Recipe], Int8Recipe]]] = [
        ("default recipe", lambda _, recipe: recipe),
        ("asymmetric ranges", lambda _, recipe: replace(recipe, ranges=Ranges.ASYMMETRIC)),
        ("mlp-down in fp32", lambda tower, recipe: keeping(["mlp-down"], tower, recipe)),
        ("MLPs in fp32", lambda tower, recipe: keeping(["mlp-down", "mlp-up"], tower, recipe)),
    ]
    for name, change in changes[:count]:
        recipes = {tower: change(tower, defaults[tower]) for tower in fp32.towers}
        digest = "-".join(recipes[tower].digest()[:16] for tower in fp32.towers)
        folder = work / f"int8-{_engines_digest(fp32)[:8]}-{digest}"
        if folder.exists():
            made = Bundle.open(folder)
        else:
            made = quantize_bundle(
                fp32,
                folder,
                images=images,
                captions=captions,
                recipes=recipes,
                # The default is what `quantize` makes; the others are what their names say.
                min_cosine=MIN_COSINE if name == "default recipe" else None,
                reranker=False,  # only towers are measured
                on_step=lambda step, name=name: on_step(f"{name}: {step}"),  # type: ignore[misc]
            )
        yield EnginePair(Precision.INT8, made, name)


def dynamic_engines(bundle: Bundle, work: Path, *, on_step: Callable[[str], None]) -> EnginePair:
    """Return the baseline, the bundle's fp32 engines quantized dynamically by onnxruntime, reusing one in `work`.

    Raises EngineError where onnxruntime fails, MissingDependencyError where a package is missing.
    """
    from twinspire_export.quantization.quantizer import quantize_dynamically

    fp32 = _fp32_only(bundle, work)
    folder = work / f"dynamic-{_engines_digest(fp32)[:16]}"
    if folder.exists():
        return EnginePair(Precision.INT8, Bundle.open(folder), DYNAMIC, is_baseline=True)
    engines = {}
    with BundleWriter(folder, base=fp32) as writer:
        for tower in fp32.towers:
            on_step(f"{DYNAMIC}: making the {tower} tower")
            file = f"{tower}.int8.onnx"
            quantize_dynamically(fp32.engine(tower, Precision.FP32), writer.path(file))
            engines[tower, Precision.INT8] = (file, None)
        made = writer.commit(fp32.manifest.draft(), engines)
    return EnginePair(Precision.INT8, made, DYNAMIC, is_baseline=True)


def _engines_digest(bundle: Bundle) -> str:
    """Return the sha256 of a bundle's first fp32 engine, which stands for its model in the names of folders."""
    return bundle.manifest.engines[bundle.towers[0]][Precision.FP32].sha256


def _fp32_only(bundle: Bundle, work: Path) -> Bundle:
    """Return a copy of the bundle with only fp32 engines: a bundle takes one engine of each precision."""
    folder = work / f"fp32-{_engines_digest(bundle)[:16]}"
    if folder.exists():
        return Bundle.open(folder)
    work.mkdir(parents=True, exist_ok=True)
    engines = {tower: bundle.manifest.engines[tower][Precision.FP32] for tower in bundle.towers}
    with BundleWriter(folder) as writer:
        for name in [*bundle.manifest.files, *(record.file for record in engines.values())]:
            writer.put_file(name, bundle.path / name)
        return writer.commit(
            bundle.manifest.draft(),
            {(tower, Precision.FP32): (record.file, record.certificate) for tower, record in engines.items()},
        )


def _roles(engine: Path) -> frozenset[str]:
    import onnx

    from twinspire_export.quantization.node_roles import roles_of

    return frozenset(str(found.role) for found in roles_of(onnx.load(engine)).values())
