"""What is measured against each other: engines, what runs them, and in how many streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.towers import InferencePrecision, Provider
from twinspire.towers.auto_selection import instruction_sets

MOST_STREAMS = 4
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, eq=False)
class Variant:
    """The engines of both towers at one precision, found in `bundle`.

    `recipe` names what they were made by, where they were made on the way. What `is_baseline` is measured to be
    compared with, and never chosen.
    """

    precision: Precision
    bundle: Bundle
    recipe: str | None = None
    is_baseline: bool = False

    def __str__(self) -> str:
        return str(self.precision) if self.recipe is None else f"{self.precision} ({self.recipe})"

    @property
    def engines_sha256(self) -> tuple[str, ...]:
        """The fingerprints of the image and the text tower's engine."""
        return tuple(self.bundle.manifest.engines[tower][self.precision].sha256 for tower in Tower)

    @property
    def size_bytes(self) -> int:
        """Both engines' size."""
        return sum(self.bundle.manifest.engines[tower][self.precision].size_bytes for tower in Tower)


@dataclass(frozen=True)
class Setting:
    """Engines and what computes them: all that embeddings, and so recall, depend on."""

    variant: Variant
    provider: Provider
    inference_precision: InferencePrecision = InferencePrecision.F32

    def __str__(self) -> str:
        computed = "" if self.inference_precision is InferencePrecision.F32 else f" in {self.inference_precision}"
        return f"{self.variant} on {self.provider}{computed}"


@dataclass(frozen=True)
class Candidate:
    """A setting, and into how many parts a call is cut: all that speed depends on."""

    setting: Setting
    streams: int

    def __str__(self) -> str:
        return str(self.setting) + ("" if self.streams == 1 else f", {self.streams} streams")


def variants_of(bundle: Bundle) -> list[Variant]:
    """List the engines of a bundle, those precisions that both towers have; fp32 first."""
    there = [each for each in Precision if all(each in bundle.precisions(tower) for tower in Tower)]
    return [Variant(precision, bundle) for precision in sorted(there, key=lambda each: each is not Precision.FP32)]


def without_repeats(variants: Sequence[Variant]) -> list[Variant]:
    """Leave out what has the same engines as one before it: a recipe may give what the bundle has already."""
    found: dict[str, Variant] = {}
    for variant in variants:
        found.setdefault(hashlib.sha256("".join(variant.engines_sha256).encode()).hexdigest(), variant)
    return list(found.values())


def skip_reason(setting: Setting) -> str | None:
    """Say why a setting is not worth opening, None where it is."""
    if setting.variant.precision is Precision.INT8_TENSORRT:
        return "made for TensorRT, which onnxruntime's providers here are not"
    if setting.variant.is_baseline and setting.provider is not Provider.CPU:
        return "a baseline of onnxruntime's own CPU provider, the only one with kernels for it"
    return None


def settings_of(variants: Sequence[Variant], providers: Sequence[Provider]) -> Iterator[Setting]:
    """Yield the settings of these engines on these providers; bf16 only where the processor has it."""
    has_bf16 = not _BF16.isdisjoint(instruction_sets())
    for variant in variants:
        for provider in providers:
            yield Setting(variant, provider)
            if provider is Provider.OPENVINO and has_bf16:
                yield Setting(variant, provider, InferencePrecision.BF16)


def candidates_of(setting: Setting, threads: int) -> list[Candidate]:
    """List a setting in one stream and, on the CPU, in as many as threads, four at most."""
    most = 1 if setting.provider is Provider.CUDA else min(threads, MOST_STREAMS)
    return [Candidate(setting, streams) for streams in dict.fromkeys((1, most))]
