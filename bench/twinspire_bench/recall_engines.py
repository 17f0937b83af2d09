"""Recall of a bundle's engines on a data set, with progress on standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire import Bundle, Client
    from twinspire.towers import Runtime
    from twinspire_eval.datasets import CaptionedImages
    from twinspire_eval.recall.benchmark import RecallReport


def precisions_of(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    """Return the precisions to measure: `names`, or every one that both towers have."""
    from twinspire.bundle import Precision

    if not names:
        return [name.value for name in Precision if all(name in bundle.precisions(tower) for tower in bundle.towers)]
    unknown = [name for name in names if name not in ("auto", *Precision)]
    if unknown:
        raise InputError(f"unknown precision {unknown[0]!r}: expected auto, {', '.join(Precision)}")
    return list(names)


def shorter_dims(bundle: Bundle, dims: Sequence[int] | None) -> list[int]:
    """Return the lengths to measure beside whole embeddings, the longest first: `dims`, or all that are allowed.

    Raises InputError, which names those, for another one.
    """
    for dim in dims or ():
        bundle.space_of(dim)
    return sorted({*(bundle.dims if dims is None else dims)} - {bundle.dim}, reverse=True)


def measure_engines(
    bundle: Bundle,
    precisions: Sequence[str],
    data: CaptionedImages,
    *,
    provider: str,
    languages: Sequence[str] | None,
    dims: Sequence[int] = (),
) -> tuple[RecallReport, dict[str, Runtime]]:
    """Measure each precision on a data set; the others are compared with fp32, or with the first one without it.

    Each is measured with embeddings cut to each of `dims` as well, which is compared with the same.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Client
    from twinspire_eval.recall.benchmark import measure_recall

    with (
        ExitStack() as stack,
        Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
        ) as bar,
    ):
        clients = {
            name: stack.enter_context(Client.local(bundle, precision=name, provider=provider)) for name in precisions
        }
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("images", "captions")}

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        reference = "fp32" if "fp32" in precisions else precisions[0]
        report = measure_recall(clients, data, languages=languages, reference=reference, dims=dims, on_progress=advance)
        return report, {name: _runtime(client) for name, client in clients.items()}


def engines_subject(bundle: Bundle, runtimes: Mapping[str, Runtime]) -> dict[str, Any]:
    """Return what a record says about the engines."""
    return {
        name: {"runtime": str(runtime)}
        | {f"{tower}_sha256": bundle.manifest.engines[tower][runtime.precision].sha256 for tower in bundle.towers}
        for name, runtime in runtimes.items()
    }


def _runtime(client: Client) -> Runtime:
    from twinspire import LocalTowers

    assert isinstance(client.towers, LocalTowers)
    return client.towers.runtime
