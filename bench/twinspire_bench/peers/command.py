"""`twinspire bench peers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import BundleOption
from twinspire_eval.smoke import smoke_option

if TYPE_CHECKING:
    from twinspire import Bundle
    from twinspire_bench.peers.measure import PeerMeasurement, PeerResults
    from twinspire_eval.records import Record

_CHECKPOINT_HELP = "Checkpoint that the bundle was exported from, for peers that run checkpoints."
_PEERS_HELP = "Peers to measure, such as onnxruntime,hnswlib; by default all. Separated by commas, or repeated."
_FURTHER_HELP = "TOML file of further peers of your own (see the guide)."
_ENVIRONMENTS_HELP = "Folder in which environments are made and kept; by default ~/.cache/twinspire/peers."


def peers(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Folder of images, with or without captions.json.", show_default=False)
    ],
    bundle: BundleOption = None,
    checkpoint: Annotated[Path | None, typer.Option(help=_CHECKPOINT_HELP)] = None,
    names: Annotated[list[str] | None, typer.Option("--peers", help=_PEERS_HELP)] = None,
    further: Annotated[Path | None, typer.Option("--catalogue", help=_FURTHER_HELP)] = None,
    limit: Annotated[int, typer.Option(min=2, help="Take a random sample of this many images.")] = 500,
    texts: Annotated[int, typer.Option(min=1, help="Captions that are queries, at most.")] = 50,
    k: Annotated[int, typer.Option(min=1, help="Results per search.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures a peer and twinspire once.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Processors of each peer; by default all.")] = None,
    environments: Annotated[Path | None, typer.Option(help=_ENVIRONMENTS_HELP)] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder on the disk that stores are measured on; by default that of environments."),
    ] = None,
    time_limit_s: Annotated[
        float,
        typer.Option("--time-limit-s", min=0.1, help="Seconds that opening a peer, or one round of it, may take."),
    ] = 600,
    install_limit_s: Annotated[
        float,
        typer.Option("--install-limit-s", min=1, help="Seconds that each step of making an environment may take."),
    ] = 1800,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file too.")] = None,
    _smoke: Annotated[bool, smoke_option(limit=8, texts=3, rounds=1)] = False,
) -> None:
    """Compare twinspire with other libraries, on your own model and images.

    Each library gets an environment of its own, which pip makes the first time, and runs in a process of its own on the
    same files and processors: the folder to embeddings, one text at a time; for stores a durable add, the time until an
    added item is found, and searches without and with a filter. What cannot be installed or fails is listed with the
    reason. Vectors that differ from those of the bundle's fp32 engines are flagged, and their speed is not compared.
    """
    import tempfile

    from rich.console import Console

    from twinspire import Bundle, sample_bundle
    from twinspire._cores import usable_cores
    from twinspire.errors import EngineError, InputError
    from twinspire_bench.peers.catalogue import choose_peers
    from twinspire_bench.peers.environments import Environments, default_folder
    from twinspire_bench.peers.inputs import check_bundle, check_checkpoint, make_inputs, read_data
    from twinspire_bench.peers.measure import PeerMeasurement, PeerResults, measure_peers
    from twinspire_bench.peers.report import show
    from twinspire_bench.scripts import progress_lines
    from twinspire_eval.records import check_record_path
    from twinspire_eval.tables import figures_console

    check_record_path(json_file)
    chosen = choose_peers([word.strip() for name in names for word in name.split(",")] if names else None, further)
    check_checkpoint(checkpoint)
    opened = Bundle.open(bundle if bundle is not None else sample_bundle())
    check_bundle(opened)
    cores = threads or usable_cores()
    if cores > usable_cores():
        raise InputError(f"--threads {cores}: expected at most {usable_cores()}, the processors of this machine")
    found = read_data(data, limit=limit, texts=texts)
    say, results = progress_lines(Console(stderr=True)), PeerResults()
    folder = default_folder() if environments is None else environments
    work = folder if work is None else work
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=work, ignore_cleanup_errors=True) as temporary:
        inputs = make_inputs(opened, found, Path(temporary), checkpoint=checkpoint, threads=cores, k=k, say=say)
        measurement = PeerMeasurement(
            inputs=inputs,
            environments=Environments(folder, time_limit_s=install_limit_s, say=say),
            threads=cores,
            rounds=rounds,
            k=k,
            time_limit_s=time_limit_s,
            say=say,
        )

        def keep() -> None:
            """Write what was measured so far, so that nothing is lost where the command ends early."""
            if json_file is not None:
                try:
                    _record(measurement, opened, checkpoint, results).save(json_file)
                except InputError as error:
                    say(f"warning: {error}")

        try:
            measure_peers(measurement, chosen, results, on_row=keep)
        finally:
            record = _record(measurement, opened, checkpoint, results)
            show(record, figures_console())
    if json_file is not None:
        record.save(json_file)
    if not any(results.rows.values()):
        raise EngineError("no peer was measured: see the reasons above")


def _record(measurement: PeerMeasurement, bundle: Bundle, checkpoint: Path | None, results: PeerResults) -> Record:
    from twinspire_eval.records import Record

    inputs = measurement.inputs
    return Record(
        kind="peers",
        parameters={
            "images": len(inputs.images),
            "images_left_out": inputs.skipped,
            "texts": len(inputs.texts),
            "texts_from": inputs.data.texts_from,
            "dim": bundle.dim,
            "k": measurement.k,
            "rounds": measurement.rounds,
            "threads": measurement.threads,
        },
        subject={
            "bundle": bundle.name,
            "space": bundle.space,
            "data": inputs.data.name,
            "checkpoint": None if checkpoint is None else checkpoint.name,
        },
        results=results.to_json(),
    )
