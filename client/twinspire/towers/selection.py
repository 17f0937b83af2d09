"""What `auto` stands for: the provider and the precision, with the reason for each."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError
from twinspire.towers.providers import InferencePrecision, Provider, missing

AUTO = "auto"

# Fastest first. Measured on a Xeon with AMX, ViT-B/32 int8: openvino 180 images/s, cpu 112-116.
_PREFERRED = (Provider.CUDA, Provider.OPENVINO, Provider.CPU)
# Without one of these an x86 processor adds products of uint8 and int8 in 16 bits, which may saturate:
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "U8S8 saturation".
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs both towers. `threads` is how many a call computes with on the CPU."""

    provider: Provider
    precision: Precision
    threads: int
    inference_precision: InferencePrecision = InferencePrecision.F32

    def __str__(self) -> str:
        computed = (
            "" if self.inference_precision is InferencePrecision.F32 else f" in {self.inference_precision}"
        )
        return f"onnxruntime {self.provider} {self.precision}{computed}, threads: {self.threads}"


@dataclass(frozen=True)
class Candidate:
    """A provider and a precision to try, and why."""

    provider: Provider
    precision: Precision
    reason: str


def parse_provider(value: str) -> Provider | None:
    """Return the provider of that name, None for `auto`. Raises InputError for another name."""
    if value == AUTO:
        return None
    try:
        return Provider(value)
    except ValueError:
        raise InputError(f"providers {value!r}: expected {AUTO}, {', '.join(Provider)}") from None


def parse_precision(value: str) -> Precision | None:
    """Return the precision of that name, None for `auto`. Raises InputError for another name."""
    if value == AUTO:
        return None
    try:
        return Precision(value)
    except ValueError:
        raise InputError(f"precision {value!r}: expected {AUTO}, {', '.join(Precision)}") from None


def candidates(bundle: Bundle, provider: Provider | None, precision: Precision | None) -> Iterator[Candidate]:
    """Yield what to try, best first; a named provider or precision (not None) is taken as it is.

    The reason says what was passed over and why. For a named provider there is exactly one candidate.
    """
    passed: list[str] = []
    for name in _PREFERRED if provider is None else (provider,):
        problem = missing(name) if provider is None and name is not Provider.CPU else None
        if problem is not None:
            passed.append(str(problem))
            continue
        chosen, why = (precision, "asked for") if precision is not None else _best_precision(bundle, name)
        how = "asked for" if provider is not None else "the fastest that is there"
        reason = f"provider {name}: {how}; precision {chosen}: {why}"
        yield Candidate(name, chosen, "; ".join([reason, *passed]))


def _best_precision(bundle: Bundle, provider: Provider) -> tuple[Precision, str]:
    faster = Precision.FP16 if provider is Provider.CUDA else Precision.INT8
    if faster is Precision.INT8 and not exact_int8():
        return Precision.FP32, "this processor has no VNNI, without which int8 sums may overflow"
    for tower in Tower:
        record = bundle.manifest.engines[tower].get(faster)
        if record is None:
            return Precision.FP32, f"the bundle has no {faster} engine for the {tower} tower"
        if record.certificate is None:
            return Precision.FP32, f"the {faster} engine of the {tower} tower has no certificate"
    return faster, f"both towers have certified {faster} engines"


def exact_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor adds products of uint8 and int8 without overflow; no where it cannot be seen."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return not _EXACT_INT8.isdisjoint(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
