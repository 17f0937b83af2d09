"""The candidates: engines, the runtimes that compute them, and numbers of streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinspire.bundle import Bundle, Precision
from twinspire.towers import InferencePrecision, Provider
from twinspire.towers.auto_selection import instruction_sets

MAX_STREAMS = 4
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, eq=False)
class EnginePair:
    """The engines of both towers at one precision, in `bundle`.

    `recipe` names the recipe of engines that were made for the comparison. A baseline is measured and never chosen.
    """

    precision: Precision
    bundle: Bundle
    recipe: str | None = None
    is_baseline: bool = False

    def __str__(self) -> str:
        return str(self.precision) if self.recipe is None else f"{self.precision} ({self.recipe})"

    @property
    def engines_sha256(self) -> tuple[str, ...]:
        """The hashes of the towers' engines."""
        return tuple(self.bundle.manifest.engines[tower][self.precision].sha256 for tower in self.bundle.towers)

    @property
    def size_bytes(self) -> int:
        """The size of the towers' engines."""
        return sum(self.bundle.manifest.engines[tower][self.precision].size_bytes for tower in self.bundle.towers)


@dataclass(frozen=True)
class RuntimeConfig:
    """Engines and the runtime that computes them: all that embeddings, and so recall, depend on."""

    engines: EnginePair
    provider: Provider
    inference_precision: InferencePrecision = InferencePrecision.F32

    def __str__(self) -> str:
        computed = "" if self.inference_precision is InferencePrecision.F32 else f" in {self.inference_precision}"
        return f"{self.engines} on {self.provider}{computed}"


@dataclass(frozen=True)
class PrecisionCandidate:
    """A runtime configuration and its number of streams: all that speed depends on."""

    config: RuntimeConfig
    streams: int

    def __str__(self) -> str:
        return str(self.config) + ("" if self.streams == 1 else f", {self.streams} streams")


def engine_pairs(bundle: Bundle) -> list[EnginePair]:
    """List the engines of a bundle at the precisions that all of its towers have, fp32 first."""
    shared = set(Precision).intersection(*(bundle.precisions(tower) for tower in bundle.towers))
    return [EnginePair(precision, bundle) for precision in Precision if precision in shared]


def distinct(pairs: Sequence[EnginePair]) -> list[EnginePair]:
    """Drop engines that equal earlier ones: a recipe may give what the bundle has already."""
    found: dict[str, EnginePair] = {}
    for pair in pairs:
        found.setdefault(hashlib.sha256("".join(pair.engines_sha256).encode()).hexdigest(), pair)
    return list(found.values())


def skip_reason(config: RuntimeConfig) -> str | None:
    """Return why a configuration is not measured, None where it is."""
    if config.engines.precision is Precision.INT8_TENSORRT:
        return "these engines are for TensorRT, which none of onnxruntime's providers here is"
    if config.engines.is_baseline and config.provider is not Provider.CPU:
        return "only onnxruntime's CPU provider has kernels for this baseline"
    return None


def configs_of(pairs: Sequence[EnginePair], providers: Sequence[Provider]) -> Iterator[RuntimeConfig]:
    """Yield the configurations of these engines on these providers; bf16 only where the processor has it."""
    has_bf16 = not _BF16.isdisjoint(instruction_sets())
    for engines in pairs:
        for provider in providers:
            yield RuntimeConfig(engines, provider)
            if provider is Provider.OPENVINO and has_bf16:
                yield RuntimeConfig(engines, provider, InferencePrecision.BF16)


def candidates_of(config: RuntimeConfig, threads: int) -> list[PrecisionCandidate]:
    """List a configuration with one stream and, on the CPU, with as many as threads, at most four."""
    most = 1 if config.provider is Provider.CUDA else min(threads, MAX_STREAMS)
    return [PrecisionCandidate(config, streams) for streams in dict.fromkeys((1, most))]
