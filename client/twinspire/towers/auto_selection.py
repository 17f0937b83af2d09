"""What `auto` stands for: the provider, the precision and the settings, with the reason for each.

A bundle that was measured says itself what is best (`RecommendedRuntime`), for machines such as the one it was
measured on. Elsewhere, and for other bundles, the rules here decide.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import as_member
from twinspire.bundle import Bundle, Precision, RecommendedRuntime, Tower
from twinspire.towers.providers import InferencePrecision, Provider, unavailable_reason

AUTO = "auto"

_PREFERRED = (Provider.CUDA, Provider.OPENVINO, Provider.CPU)
# Those that matrix products are computed with, in Linux's words: with others a measured choice says nothing.
INSTRUCTION_SETS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)
# ViT-B/32, images/s, openvino against cpu: 180 and 112-116 for int8 on a Xeon with AMX; 23 and 24 for int8,
# 9.9 and 9.8 for fp32 on a processor with VNNI alone, where it only took 2 s longer to load.
_OPENVINO_GAINS = "amx_int8"
# Without one of these an x86 processor adds products of uint8 and int8 in 16 bits, which may saturate:
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "U8S8 saturation".
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs both towers. `threads` is how many a call computes with on the CPU, in `streams` parts side by side."""

    provider: Provider
    precision: Precision
    threads: int
    streams: int = 1
    inference_precision: InferencePrecision = InferencePrecision.F32

    def __str__(self) -> str:
        computed = "" if self.inference_precision is InferencePrecision.F32 else f" in {self.inference_precision}"
        streams = "" if self.streams == 1 else f", streams: {self.streams}"
        return f"onnxruntime {self.provider} {self.precision}{computed}, threads: {self.threads}{streams}"


@dataclass(frozen=True)
class Candidate:
    """A provider and a precision to try, and why; after the last one nothing is left to try.

    `streams` and `inference_precision` are what to take where the caller names none.
    """

    provider: Provider
    precision: Precision
    reason: str
    is_last: bool
    streams: int = 1
    inference_precision: InferencePrecision = InferencePrecision.F32

    @property
    def may_overflow(self) -> bool:
        """Whether the engines may give here what their certificates do not say: it was asked for by name."""
        on_this_processor = self.provider is not Provider.CUDA
        return self.precision is Precision.INT8 and on_this_processor and not sums_int8_exactly()


def parse_provider(value: str) -> Provider | None:
    """Return the provider of that name, None for `auto`. Raises InputError for another name."""
    return None if value == AUTO else as_member(value, Provider, "provider", besides=[AUTO])


def parse_precision(value: str) -> Precision | None:
    """Return the precision of that name, None for `auto`. Raises InputError for another name."""
    return None if value == AUTO else as_member(value, Precision, "precision", besides=[AUTO])


def candidates(bundle: Bundle, provider: Provider | None, precision: Precision | None) -> Iterator[Candidate]:
    """Yield what to try, best first; a named provider or precision (not None) is taken as it is.

    First the bundle's measured choice, where it has one for this machine and nothing else was named, then what the
    rules say; a choice that was measured without a GPU comes after the GPU, where there is one. The reason says what
    was passed over and why. For a named provider there is one candidate by the rules, for `auto` the CPU is the last.
    """
    passed: list[str] = []
    measured = None
    choice = bundle.manifest.auto
    if choice is not None and provider in (None, choice.provider) and precision in (None, choice.precision):
        against = unfit(choice)
        if against is None:
            measured = _measured(choice, is_named=provider is not None)
            if provider is None and choice.gpu is None and unavailable_reason(Provider.CUDA) is None:
                against = "it was measured without a GPU, and here is one"
            else:
                yield measured
                measured = None
        if against is not None:
            passed.append(f"the bundle's measured choice, {choice}, is passed over: {against}")
    for name in _PREFERRED if provider is None else (provider,):
        chosen, why = (precision, "asked for") if precision is not None else _best_precision(bundle, name)
        against = _against(name, chosen) if provider is None else None
        if against is not None:
            passed.append(against)
            continue
        reasons = [f"{chosen}: {why}", f"{name}: {'asked for' if provider is not None else 'the best here'}"]
        is_last = provider is not None or name is _PREFERRED[-1]
        yield Candidate(name, chosen, "; ".join([*reasons, *passed]), is_last)
        if measured is not None:  # the GPU, which is the first, could not be used
            yield measured
            measured = None


def _measured(choice: RecommendedRuntime, *, is_named: bool) -> Candidate:
    """Return a bundle's measured choice as a candidate. `is_named`: its provider was asked for."""
    return Candidate(
        Provider(choice.provider),
        choice.precision,
        f"measured on {choice.cpu_model}: {choice.speed:.2f} times as fast as fp32",
        is_last=is_named,
        streams=choice.streams,
        inference_precision=InferencePrecision(choice.inference_precision),
    )


def unfit(choice: RecommendedRuntime) -> str | None:
    """Say why a measured choice is not for this machine, None where it is."""
    if choice.provider not in tuple(Provider) or choice.inference_precision not in tuple(InferencePrecision):
        return "this twinspire does not know it"
    cause = unavailable_reason(Provider(choice.provider))
    if cause is not None:
        return f"{choice.provider} {cause}"
    if choice.provider == Provider.CUDA:
        return None
    here = instruction_sets()
    if set(choice.instruction_sets) != set(here):
        measured = " ".join(choice.instruction_sets) or "nothing known"
        return f"it was measured on a processor with {measured}, this one has {' '.join(here) or 'nothing known'}"
    return None


def _against(provider: Provider, precision: Precision) -> str | None:
    """Say why `auto` should not take a provider, None where it should."""
    if provider is Provider.CPU:
        return None  # what is wrong with it, opening it says
    if provider is Provider.OPENVINO:
        if precision is not Precision.INT8:
            return f"openvino gains nothing at {precision}"
        if _OPENVINO_GAINS not in processor_flags():
            return "openvino gains nothing on a processor without AMX"
    cause = unavailable_reason(provider)
    return None if cause is None else f"{provider} {cause}"


def _best_precision(bundle: Bundle, provider: Provider) -> tuple[Precision, str]:
    faster = Precision.FP16 if provider is Provider.CUDA else Precision.INT8
    choice = bundle.manifest.auto
    if choice is not None and faster in choice.rejected:
        return Precision.FP32, f"{faster} lost more recall than was allowed, over {choice.data}"
    if faster is Precision.INT8 and not sums_int8_exactly():
        return Precision.FP32, "this processor has no VNNI, without which int8 sums may overflow"
    for tower in Tower:
        record = bundle.manifest.engines[tower].get(faster)
        if record is None:
            return Precision.FP32, f"the bundle has no {faster} engine for the {tower} tower"
        if record.certificate is None:
            return Precision.FP32, f"the {faster} engine of the {tower} tower has no certificate"
    return faster, f"both towers have certified {faster} engines"


def sums_int8_exactly() -> bool:
    """Whether this processor adds products of uint8 and int8 without overflow; no where it cannot be seen."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return not is_x86 or not _EXACT_INT8.isdisjoint(processor_flags())


def instruction_sets() -> tuple[str, ...]:
    """List those of `INSTRUCTION_SETS` that this processor has."""
    flags = processor_flags()
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """List what the processor can do, in Linux's words; none where it does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
