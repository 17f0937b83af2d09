"""What works in this installation: packages, providers, the engine that a bundle would run, and a server."""

from __future__ import annotations

import http.client
import importlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from twinspire._arguments import printable
from twinspire._dependencies import package_version
from twinspire.bundle import Bundle, Precision, Probes, Tower
from twinspire.errors import InputError, TwinspireError, install_command
from twinspire.towers import LocalTowers, Provider
from twinspire.towers.auto_selection import candidates

_MIN_COSINE = 0.99
"""Below it a provider computes something else; int8 engines of real models are above 0.995."""
_STATUS_TIMEOUT_S = 5.0
_LARGEST_STATUS_BYTES = 1 << 20
_NOT_FOR_USERS = frozenset({"bench", "dev", "docs", "peers"})
# Those that can be installed and broken; the others are only looked up.
_IMPORTED = {
    "faiss-cpu": "faiss",
    "faiss-gpu-cuvs": "faiss",
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "openvino": "openvino",
}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)")
_EXTRA = re.compile(r"""extra == ['"](?P<extra>[\w-]+)['"]""")
_BELOW_PYTHON = re.compile(r"""python_version < ['"]3\.(?P<minor>\d+)['"]""")


@dataclass(frozen=True, kw_only=True)
class ExtraReport:
    """An extra's packages with their versions, None for one that is missing, and what is wrong with those installed."""

    extra: str
    packages: Mapping[str, str | None]
    problem: str | None

    @property
    def works(self) -> bool:
        """Whether all packages are installed and can be imported."""
        return self.problem is None


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """Whether a provider computes a bundle's probes, and how well: `cosine` is the minimum to their fp32 embeddings.

    `open_s` is the time to open the engines, `first_s` that of the first batch, `batch_s` of the second one. `reason`
    is why `auto` chose it; `problem` why it does not work, None where it does.
    """

    provider: str
    runtime: str | None = None
    cosine: float | None = None
    open_s: float | None = None
    first_s: float | None = None
    batch_s: float | None = None
    reason: str | None = None
    problem: str | None = None

    @property
    def works(self) -> bool:
        """Whether it computes the probes rightly."""
        return self.problem is None


def installed_extras() -> Iterator[ExtraReport]:
    """Report the extras of twinspire for its users, by what its installed metadata require."""
    for extra, packages in sorted(_requirements().items()):
        versions = {package: package_version(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        problem = None
        if missing:
            problem = f"{', '.join(missing)} missing: {install_command(extra)}, in a checkout of twinspire"
        else:
            broken = [cause for package in packages if (cause := _import_problem(package)) is not None]
            problem = "; ".join(broken) or None
        yield ExtraReport(extra=extra, packages=versions, problem=problem)


def _requirements() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("twinspire") or ():
        name, extra, below = (
            _REQUIREMENT.match(requirement),
            _EXTRA.search(requirement),
            _BELOW_PYTHON.search(requirement),
        )
        if name is None or extra is None or extra["extra"] in _NOT_FOR_USERS:
            continue
        packages = found.setdefault(extra["extra"], [])
        if below is None or sys.version_info.minor < int(below["minor"]):
            packages.append(name["name"])
    return found


def _import_problem(package: str) -> str | None:
    module = _IMPORTED.get(package)
    if module is None:
        return None
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a library that does not load raises
        return f"{package} is installed and cannot be imported: {printable(str(error), limit=300)}"
    return None


def provider_report(bundle: Bundle, provider: Provider) -> EngineReport:
    """Compute a bundle's probes with its fp32 engines on one provider."""
    return _computed(bundle, provider=provider, precision=Precision.FP32)


def auto_report(bundle: Bundle) -> EngineReport:
    """Compute a bundle's probes with what `auto` chooses, and say why it does."""
    return _computed(bundle, provider="auto", precision="auto")


def _computed(bundle: Bundle, *, provider: str, precision: str) -> EngineReport:
    try:
        began_s = time.perf_counter()
        towers = LocalTowers(bundle, provider=provider, precision=precision)
        open_s = time.perf_counter() - began_s
        with closing(towers):
            probes = bundle.probes()
            first_s, cosine = _run(towers, probes)
            batch_s, _ = _run(towers, probes)
            chosen = towers.runtime
    except TwinspireError as error:
        return EngineReport(provider=provider, problem=str(error))
    reason = None
    if provider == "auto":
        reasons = [one.reason for one in candidates(bundle, None, None) if one.provider is chosen.provider]
        reason = reasons[0] if reasons else None
    return EngineReport(
        provider=chosen.provider.value if provider == "auto" else provider,
        runtime=str(chosen),
        cosine=round(cosine, 6),
        open_s=round(open_s, 3),
        first_s=round(first_s, 4),
        batch_s=round(batch_s, 4),
        reason=reason,
        problem=None if cosine >= _MIN_COSINE else f"its embeddings are wrong: minimum cosine {cosine:.4f} to fp32",
    )


def _run(towers: LocalTowers, probes: Probes) -> tuple[float, float]:
    """Encode all probes once; return the seconds and the minimum cosine to their reference."""
    began_s = time.perf_counter()
    found: dict[Tower, Any] = {}
    encoders: dict[Tower, Any] = {
        Tower.IMAGE: towers.encode_images,
        Tower.TEXT: towers.encode_texts,
        Tower.AUDIO: towers.encode_audio,
    }
    for tower, (inputs, _) in probes.towers.items():
        found[tower] = encoders[tower](inputs)
    seconds = time.perf_counter() - began_s
    cosines = [np.sum(found[tower] * embedding, axis=-1).min() for tower, (_, embedding) in probes.towers.items()]
    return seconds, float(min(cosines))


def server_status(address: str) -> dict[str, Any]:
    """Read `/readyz` of a server's status port, `HOST:PORT` or its URL; `canary` is in it.

    Raises InputError for what is no address, TwinspireError where nothing answers or the answer is something else.
    """
    match = re.fullmatch(r"(?:http://)?(?P<host>[\w.-]+):(?P<port>\d{1,5})/?", address)
    if match is None or int(match["port"]) > 65535:
        raise InputError(f"{printable(address)}: expected HOST:PORT of a server's status port", option="--status")
    try:
        with closing(http.client.HTTPConnection(match["host"], int(match["port"]), timeout=_STATUS_TIMEOUT_S)) as port:
            port.request("GET", "/readyz")
            document = json.loads(port.getresponse().read(_LARGEST_STATUS_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TwinspireError(
            f"the status port {address} cannot be read ({error}): expected that of `twinspire serve`, printed when it "
            "starts"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("ready"), bool):
        raise TwinspireError(f"{address} is not the status port of `twinspire serve`: it says no `ready`")
    return document
