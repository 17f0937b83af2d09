"""`twinspire doctor`: what works here, what does not, and why."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire._arguments import as_member
from twinspire._dims import shown_dims
from twinspire.cli.shared import BundleOption, JsonOption, completing, print_json, printable, size_of
from twinspire.errors import InputError, TwinspireError

if TYPE_CHECKING:
    from twinspire._doctor import EngineReport, ExtraReport
    from twinspire._machine import MachineLimits
    from twinspire.bundle import Bundle

_EXIT_FAULT = 1
_INDENT = 12


def doctor(
    bundle: BundleOption = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Provider that must compute: cpu, openvino or cuda; repeatable.",
            autocompletion=completing("cpu", "openvino", "cuda"),
        ),
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Extra that must be installed; repeatable.")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Status port of a server that must be ready, its canary included."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, which providers compute, which engine of a bundle would run and why, and what limits it.

    Each provider computes the bundle's probes, inputs with known embeddings. Exit status 1 where something that was
    asked for does not work: the bundle, a --provider, an --extra, the server at --status.
    """
    from twinspire import _doctor
    from twinspire._machine import machine_limits
    from twinspire.towers import Provider

    required = [as_member(name, Provider, "--provider") for name in provider or ()]
    extras = list(_doctor.installed_extras())
    for name in extra or ():
        if name not in [one.extra for one in extras]:
            known = ", ".join(one.extra for one in extras)
            raise InputError(f"--extra {printable(name)}: expected one of {known}", option="--extra")
    faults: list[str] = []
    server = _server(status, faults)
    limits = machine_limits()
    faults += [f"extra {one.extra}: {one.problem}" for one in extras if one.extra in (extra or ()) and not one.works]
    opened, engines, chosen = _engines(bundle, faults)
    faults += [
        f"provider {one.provider}: {one.problem}" for one in engines if one.provider in required and not one.works
    ]
    if bundle is not None and chosen is not None and not chosen.works:
        faults.append(f"bundle {printable(bundle)}: {chosen.problem}")
    if as_json:
        print_json(
            {
                "works": not faults,
                "faults": faults,
                "versions": _versions(),
                "extras": [asdict(one) for one in extras],
                "bundle": None if opened is None else _bundle_document(opened),
                "providers": [asdict(one) for one in engines],
                "auto": None if chosen is None else asdict(chosen),
                "server": server,
                "machine": asdict(limits),
                "notes": limits.notes(),
            }
        )
    else:
        _print_installed(extras)
        _print_engines(opened, engines, chosen)
        _print_server(status, server)
        _print_machine(limits)
        for fault in faults:
            typer.echo(f"fault: {fault}", err=True)
    if faults:
        raise typer.Exit(_EXIT_FAULT)


def _versions() -> dict[str, str | None]:
    from twinspire._dependencies import package_version

    packages = ("twinspire", "numpy", "pillow", "tokenizers", "tritonclient", "grpcio")
    return {"python": sys.version.split()[0], **{name: package_version(name) for name in packages}}


def _engines(path: Path | None, faults: list[str]) -> tuple[Bundle | None, list[EngineReport], EngineReport | None]:
    """Open the bundle, else the sample, and run it on every provider and on what `auto` chooses."""
    from twinspire._doctor import auto_report, provider_report
    from twinspire.cli.bundles import open_bundle
    from twinspire.towers import Provider

    try:
        bundle = open_bundle(path)
    except TwinspireError as error:
        faults.append(f"bundle {printable(path or 'sample')}: {error}")
        return None, [], None
    return bundle, [provider_report(bundle, one) for one in Provider], auto_report(bundle)


def _server(address: str | None, faults: list[str]) -> dict[str, Any] | None:
    from twinspire._doctor import server_status

    if address is None:
        return None
    try:
        document = server_status(address)
    except InputError:
        raise
    except TwinspireError as error:
        faults.append(str(error))
        return None
    if not document["ready"]:
        reasons = "; ".join(map(str, document.get("reasons") or ["no reason given"]))
        faults.append(f"the server at {address} is not ready: {printable(reasons, limit=1000)}")
    return document


def _line(name: str, text: str) -> None:
    typer.echo(f"{name:<{_INDENT}}{text}")


def _print_installed(extras: list[ExtraReport]) -> None:
    _line("installed", ", ".join(f"{name} {version or 'missing'}" for name, version in _versions().items()))
    for one in extras:
        packages = ", ".join(f"{name} {version}" for name, version in one.packages.items() if version is not None)
        _line(f"  {one.extra}", packages if one.works else f"no: {one.problem}")


def _bundle_document(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.name, "space": bundle.space, "dims": bundle.dims, "rerankers": _rerankers(bundle)}


def _rerankers(bundle: Bundle) -> dict[str, list[str]]:
    """Return the precisions of each reranker, by name."""
    return {name: list(map(str, found.engines)) for name, found in (bundle.manifest.rerankers or {}).items()}


def _print_engines(bundle: Bundle | None, engines: list[EngineReport], chosen: EngineReport | None) -> None:
    if bundle is None:
        return
    numbers = f"{shown_dims(bundle.dims)} numbers"
    _line("bundle", f"{printable(bundle.name)}, {numbers}, space {bundle.space[:12]}, {printable(bundle.path)}")
    for name, precisions in _rerankers(bundle).items():
        _line("  reranker", f"{printable(name)}, {', '.join(precisions)}")
    for one in engines:
        _line(f"  {one.provider}", _described(one))
    if chosen is not None:
        _line("  auto", f"{chosen.runtime or 'nothing'}: {_described(chosen)}")
        if chosen.reason is not None:
            _line("", f"because {chosen.reason}")


def _described(one: EngineReport) -> str:
    if one.cosine is None or one.open_s is None or one.first_s is None or one.batch_s is None:
        return f"does not work: {one.problem}"
    times = f"opened in {one.open_s:.2f} s, probes in {one.first_s * 1000:.1f} ms, then {one.batch_s * 1000:.1f} ms"
    return f"{'computes' if one.works else one.problem}, minimum cosine to fp32 {one.cosine:.6f}; {times}"


def _print_server(address: str | None, document: dict[str, Any] | None) -> None:
    if document is None:
        return
    models = ", ".join(map(str, document.get("models") or ()))
    restarts = sum(value for value in (document.get("restarts") or {}).values() if isinstance(value, int))
    state = "ready" if document["ready"] else "not ready"
    _line("server", f"{address} is {state}; models {printable(models, limit=500)}; restarts: {restarts}")
    canary = document.get("canary")
    if isinstance(canary, dict):
        cosines = ", ".join(
            f"{name} {value:.6f}" if isinstance(value, float) else f"{name} unknown"
            for name, value in (canary.get("cosine") or {}).items()
        )
        text = f"{'ok' if canary.get('ok') else 'WRONG EMBEDDINGS'}; minimum cosines: {cosines or 'none yet'}"
        _line("  canary", printable(text, limit=1000))


def _print_machine(limits: MachineLimits) -> None:
    quota = "no quota" if limits.cpu_quota is None else f"quota {limits.cpu_quota:g}"
    _line("machine", f"{limits.cpu_model}; cores: {limits.cores}, {quota}; {' '.join(limits.instruction_sets)}")
    memory = "no limit" if limits.memory_limit_bytes is None else f"limit {size_of(limits.memory_limit_bytes)}"
    _line("  memory", f"{size_of(limits.memory_bytes)}, {memory}")
    if limits.shm_bytes is not None and limits.shm_free_bytes is not None:
        _line("  /dev/shm", f"{size_of(limits.shm_bytes)}, {size_of(limits.shm_free_bytes)} free")
    _line("  files", f"{limits.open_files:,} may be open")
    _line("  gpu", "none: " + limits.gpu_unavailable if limits.gpu_unavailable is not None else "there is one")
    for note in limits.notes():
        _line("  note", note)
