"""A record of this kind as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire_bench.engines.measure import OURS
from twinspire_eval.tables import MISSING, figure, figures_table

if TYPE_CHECKING:
    from rich.console import Console

    from twinspire_eval.records import Record


def show(record: Record, console: Console) -> None:
    """Print what a record says: the limit first, then a table a race."""
    found, parameters = record.results, record.parameters
    console.print(
        f"{record.hardware.cpu_model}, {parameters['threads']} threads; {record.subject['bundle']} int8 in "
        f"{parameters['streams']} streams; limit of its matrix products: {found['limit_images_per_s']:.0f} images/s"
    )
    for tower, cosine in found["cosine_to_fp32"].items():
        console.print(
            f"{tower}: cosine of int8 to fp32 {cosine['mean']:.5f} on average, {cosine['min']:.5f} at least "
            f"({cosine['samples']} of {parameters['data']})"
        )
    for name, race in found["races"].items():
        unit = next(unit for unit in race if unit.endswith("_per_s"))
        table = figures_table(
            [""],
            [unit.replace("_per_s", "/s"), f"{OURS} is so many times as fast", "95%"],
            title=f"\n{name.replace('_', ' ')}",
        )
        for contestant, figures in race[unit].items():
            ratio = race["times_as_fast_as"].get(contestant)
            within = MISSING if ratio is None else f"{ratio['interval']['low']:.3g} to {ratio['interval']['high']:.3g}"
            table.add_row(
                contestant, figure(figures["median"]), MISSING if ratio is None else f"{ratio['value']:.3g}", within
            )
        console.print(table)
