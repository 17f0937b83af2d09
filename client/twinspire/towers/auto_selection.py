"""The choice of `auto`: provider, precision and settings, with the reason.

A bundle that was measured recommends a runtime (`RecommendedRuntime`) for machines such as the one it was measured on.
On other machines, and for other bundles, the rules here decide.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import as_member
from twinspire.bundle import Bundle, Precision, RecommendedRuntime
from twinspire.towers.openvino_support import needs_runtime
from twinspire.towers.providers import InferencePrecision, Provider, unavailable_reason

AUTO = "auto"

_PREFERRED = (Provider.CUDA, Provider.OPENVINO, Provider.CPU)
INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
"""Instruction sets for matrix multiplications, by Linux's names: a measurement holds for processors with the same."""
# ViT-B/32, images/s, openvino against cpu: 180 and 112-116 for int8 on a Xeon with AMX; 23 and 24 for int8,
# 9.9 and 9.8 for fp32 on a processor with VNNI but no AMX, where it only took 2 s longer to load. OpenVINO's own
# runtime where the plugin has no device, int8 on two AMD EPYC cores with VNNI: 76.7 and 69.5.
_FASTER_WITH_OPENVINO = "amx_int8"
# Without one of these an x86 processor sums uint8 x int8 products in 16 bits, which may saturate:
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "U8S8 saturation".
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How both towers run: a call is computed by `threads` threads on the CPU, in `streams` parts in parallel.

    `library` is the package that computes: `onnxruntime`, or `openvino` for OpenVINO's own runtime.
    """

    provider: Provider
    precision: Precision
    threads: int
    streams: int = 1
    inference_precision: InferencePrecision = InferencePrecision.F32
    library: str = "onnxruntime"

    def __str__(self) -> str:
        library = self.library if self.library == self.provider else f"{self.library} {self.provider}"
        arithmetic = "" if self.inference_precision is InferencePrecision.F32 else f" in {self.inference_precision}"
        streams = "" if self.streams == 1 else f", streams: {self.streams}"
        return f"{library} {self.precision}{arithmetic}, threads: {self.threads}{streams}"


@dataclass(frozen=True)
class RuntimeCandidate:
    """A provider and a precision to try, and the reason.

    `streams` and `inference_precision` apply where the caller names none.
    """

    provider: Provider
    precision: Precision
    reason: str
    is_last: bool
    streams: int = 1
    inference_precision: InferencePrecision = InferencePrecision.F32

    @property
    def may_overflow(self) -> bool:
        """Whether the engines may be less accurate here than certified: int8 that the caller named."""
        on_this_processor = self.provider is not Provider.CUDA
        return self.precision.is_int8_of_processors and on_this_processor and not sums_int8_exactly()


def parse_provider(value: str) -> Provider | None:
    """Return the provider of that name, None for `auto`. Raises InputError for another name."""
    return None if value == AUTO else as_member(value, Provider, "provider", besides=[AUTO])


def parse_precision(value: str) -> Precision | None:
    """Return the precision of that name, None for `auto`. Raises InputError for another name."""
    return None if value == AUTO else as_member(value, Precision, "precision", besides=[AUTO])


def candidates(bundle: Bundle, provider: Provider | None, precision: Precision | None) -> Iterator[RuntimeCandidate]:
    """Yield what to try, best first; a named provider or precision (not None) is used as it is.

    First the bundle's recommendation, where it is for this machine and agrees with what was named, then the choice of
    the rules. A recommendation that was measured without a GPU comes after the GPU of this machine. The reason includes
    what was skipped and why. For a named provider the rules give one candidate, for `auto` the CPU is the last.
    """
    skipped: list[str] = []
    recommended = None
    choice = bundle.manifest.auto
    if choice is not None and provider in (None, choice.provider) and precision in (None, choice.precision):
        reason = mismatch_reason(choice)
        if reason is None:
            recommended = _recommended(choice, is_named=provider is not None)
            if provider is None and choice.gpu is None and unavailable_reason(Provider.CUDA) is None:
                reason = "it was measured without a GPU, and this machine has one"
            else:
                yield recommended
                recommended = None
        if reason is not None:
            skipped.append(f"the bundle's recommendation, {choice}, is skipped: {reason}")
    for name in _PREFERRED if provider is None else (provider,):
        chosen, why = (precision, "requested") if precision is not None else _best_precision(bundle, name)
        reason = _skip_reason(name, chosen) if provider is None else None
        if reason is not None:
            skipped.append(reason)
            continue
        reasons = [f"{chosen}: {why}", f"{name}: {'requested' if provider is not None else 'the best here'}"]
        is_last = provider is not None or name is _PREFERRED[-1]
        yield RuntimeCandidate(name, chosen, "; ".join([*reasons, *skipped]), is_last)
        if recommended is not None:  # the GPU, which is tried first, could not be used
            yield recommended
            recommended = None


def _recommended(choice: RecommendedRuntime, *, is_named: bool) -> RuntimeCandidate:
    """Return a bundle's recommendation as a candidate. `is_named`: the caller named its provider."""
    return RuntimeCandidate(
        Provider(choice.provider),
        choice.precision,
        f"measured on {choice.cpu_model}: {choice.speed:.2f} times as fast as fp32",
        is_last=is_named,
        streams=choice.streams,
        inference_precision=InferencePrecision(choice.inference_precision),
    )


def mismatch_reason(choice: RecommendedRuntime) -> str | None:
    """Return why a bundle's recommendation is not for this machine, None where it is."""
    if choice.provider not in tuple(Provider) or choice.inference_precision not in tuple(InferencePrecision):
        return "this version of twinspire does not know that runtime"
    cause = unavailable_reason(Provider(choice.provider))
    if cause is not None:
        return f"{choice.provider} {cause}"
    if choice.provider == Provider.CUDA:
        return None
    own = instruction_sets()
    if set(choice.instruction_sets) != set(own):
        measured = " ".join(choice.instruction_sets) or "no known instruction sets"
        return f"it was measured on a processor with {measured}, this one has {' '.join(own) or 'none of them'}"
    return None


def _skip_reason(provider: Provider, precision: Precision) -> str | None:
    """Return why `auto` should not try a provider, None where it should."""
    if provider is Provider.CPU:
        return None  # if it fails, opening it raises the cause
    if provider is Provider.OPENVINO and not precision.is_int8_of_processors:
        return f"openvino is not faster at {precision}"
    cause = unavailable_reason(provider)
    if cause is not None:
        return f"{provider} {cause}"
    if provider is Provider.OPENVINO and _FASTER_WITH_OPENVINO not in processor_flags() and not needs_runtime():
        return "openvino is not faster on a processor without AMX"
    return None


def _best_precision(bundle: Bundle, provider: Provider) -> tuple[Precision, str]:
    faster = Precision.FP16 if provider is Provider.CUDA else Precision.INT8
    choice = bundle.manifest.auto
    if choice is not None and faster in choice.rejected:
        return Precision.FP32, f"{faster} lost more recall than was allowed, over {choice.data}"
    if faster is Precision.INT8 and not sums_int8_exactly():
        return Precision.FP32, "this processor has no VNNI, without which int8 sums may overflow"
    for tower in bundle.towers:
        record = bundle.manifest.engines[tower].get(faster)
        if record is None:
            return Precision.FP32, f"the bundle has no {faster} engine for the {tower} tower"
        if record.certificate is None:
            return Precision.FP32, f"the {faster} engine of the {tower} tower has no certificate"
    towers = "both towers have" if len(bundle.towers) > 1 else f"the {bundle.towers[0]} tower has"
    return faster, f"{towers} certified {faster} engines"


def sums_int8_exactly() -> bool:
    """Whether this processor sums uint8 x int8 products without overflow; False where it is unknown."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return not is_x86 or not _EXACT_INT8.isdisjoint(processor_flags())


def instruction_sets() -> tuple[str, ...]:
    """Return those of `INSTRUCTION_SETS` that this processor has."""
    flags = processor_flags()
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the processor's features by Linux's names; none where the system does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
