"""`twinspire bench recall --reproduce`: each precision on published test sets, beside the published figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire import Bundle
    from twinspire.towers import Runtime
    from twinspire_eval.recall import Direction, Estimate
    from twinspire_eval.recall.benchmark import RecallReport

_NAMES = {"text_to_image": "text to image", "image_to_text": "image to text", "text_to_text": "text to text"}
_METRICS = ("r1", "r5", "r10")


@dataclass(frozen=True)
class ReproduceRequest:
    """Options of the command."""

    data: Sequence[str]
    bundle: Path | None
    precisions: Sequence[str] | None
    languages: Sequence[str] | None
    checkpoint: str | None
    images: Path | None
    split: str | None
    limit: int | None
    seed: int
    provider: str
    out: Path | None
    json_file: Path | None


@dataclass(frozen=True)
class RecallRow:
    """Recall of one engine on one data set, language and direction, with what is published of it.

    `above` is the difference to the reference engine on the same queries, empty for the reference itself. `published`
    is R@1, R@5 and R@10, None where none is known, and `source` is where they were read.
    """

    data: str
    language: str
    direction: Direction
    engine: str
    figures: dict[str, Estimate]
    above: dict[str, Estimate]
    published: tuple[float, ...] | None
    source: str | None


def rows_of(report: RecallReport, checkpoint: str) -> list[RecallRow]:
    """Return the rows of a report, direction by direction, the reference engine first as it was measured."""
    from twinspire_eval.published import published_recall
    from twinspire_eval.recall.benchmark import UNDETERMINED

    test_set = report.data.test_set
    known = {entry.language: entry for entry in published_recall(checkpoint, test_set)} if test_set else {}
    rows = []
    for language, both in report.figures[report.reference].items():
        entry = known.get(None if language == UNDETERMINED else language)
        for direction in both:
            for engine, found in report.figures.items():
                is_published = entry is not None and direction in entry.recall and engine not in report.dims
                loss = report.losses.get(engine)
                rows.append(
                    RecallRow(
                        test_set or report.data.name,
                        language,
                        direction,
                        engine,
                        dict(found[language][direction]),
                        dict(loss.by_language[language][direction]) if loss is not None else {},
                        entry.recall[direction] if entry is not None and is_published else None,
                        entry.source if entry is not None and is_published else None,
                    )
                )
    return rows


def run_reproduction(request: ReproduceRequest) -> None:
    """Measure all data sets, print one table, and write `recall.json`, `recall.md` and `recall.png` to `out`."""
    from twinspire import Bundle, sample_bundle
    from twinspire_bench.recall_engines import engines_subject, measure_engines, precisions_of
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.plots import require_matplotlib
    from twinspire_eval.records import Record, check_record_path
    from twinspire_eval.tables import figures_console

    check_record_path(request.json_file)
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise InputError(f"{request.out} is no folder: expected one to write recall.json, recall.md and recall.png to")
    if request.out is not None:
        require_matplotlib()
    # All are opened before the first is measured.
    data = {
        spec: open_dataset(
            spec,
            images=request.images,
            split=request.split,
            limit=request.limit,
            seed=request.seed,
            published_split=True,
        )
        for spec in request.data
    }
    bundle = Bundle.open(request.bundle if request.bundle is not None else sample_bundle())
    chosen = precisions_of(bundle, request.precisions)
    console = figures_console()
    rows: list[RecallRow] = []
    results: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    runtimes: dict[str, Runtime] = {}
    for spec, captioned in data.items():
        report, runtimes = measure_engines(
            bundle, chosen, captioned, provider=request.provider, languages=request.languages
        )
        rows += rows_of(report, request.checkpoint or bundle.manifest.source.checkpoint)
        results[spec], parameters[spec] = report.results(), report.parameters()
        counts = ", ".join(f"{count:,} captions ({name})" for name, count in parameters[spec]["captions"].items())
        console.print(f"{captioned.name}: {len(captioned):,} images, {counts}", soft_wrap=True)
        if captioned.note:
            console.print(captioned.note, soft_wrap=True)
    for name, runtime in runtimes.items():
        console.print(f"{name}: {runtime}", soft_wrap=True)
    console.print("\n" + markdown_table(rows), soft_wrap=True)
    record = Record(
        kind="recall-table",
        parameters=parameters,
        subject={"bundle": bundle.name, "space": bundle.space, "engines": engines_subject(bundle, runtimes)},
        results={"data": results, "published": [_published(row) for row in rows if row.published is not None]},
    )
    if request.json_file is not None:
        record.save(request.json_file)
    if request.out is not None:
        _write(request.out, bundle, rows, record)


def markdown_table(rows: Iterable[RecallRow]) -> str:
    """Return the rows as a table in Markdown, in percent, with what the columns mean and the sources below it."""
    rows = list(rows)
    lines = [
        "| data | language | query | engine | R@1 | R@5 | R@10 | R@1 above the first | published R@1, R@5, R@10 |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        measured = [_share(row.figures[name]) for name in _METRICS]
        above = _share(row.above["r1"], "+.2f") if row.above else "-"
        published = ", ".join(f"{100 * share:.1f}" for share in row.published) if row.published else "-"
        cells = [row.data, row.language, _NAMES[row.direction.value], row.engine, *measured, above, published]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += ["", "In %, with 95% confidence intervals, bootstrapped over images; differences are paired by query."]
    sources = dict.fromkeys(row.source for row in rows if row.source)
    return "\n".join([*lines, *(f"Published: {source}" for source in sources)]) + "\n"


def _share(estimate: Estimate, form: str = ".1f") -> str:
    value, low, high = (
        f"{100 * share:{form}}" for share in (estimate.value, estimate.interval.low, estimate.interval.high)
    )
    return f"{value} ({low} to {high})"


def _published(row: RecallRow) -> dict[str, Any]:
    assert row.published is not None
    figures = dict(zip(_METRICS, row.published, strict=True))
    return {"data": row.data, "language": row.language, "direction": row.direction, "engine": row.engine} | {
        "source": row.source,
        "recall": figures,
        "measured_minus_published": {name: row.figures[name].value - share for name, share in figures.items()},
    }


def _write(out: Path, bundle: Bundle, rows: Sequence[RecallRow], record: Any) -> None:  # noqa: ANN401 - a Record
    try:
        out.mkdir(parents=True, exist_ok=True)
        record.save(out / "recall.json")
        (out / "recall.md").write_text(f"# Recall of {bundle.name}\n\n{markdown_table(rows)}", encoding="utf-8")
        _plot(out / "recall.png", bundle.name, rows)
    except OSError as error:
        raise InputError(f"the results cannot be written to {out}/: {error.strerror or error}") from error


def _plot(path: Path, title: str, rows: Sequence[RecallRow]) -> None:
    """Plot R@1 with its interval of each engine, and the published one, a line for each data set and direction."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((row.data, row.language, row.direction) for row in rows))
    engines = list(dict.fromkeys(row.engine for row in rows))
    chart = Figure(figsize=(8, 1.5 + 0.5 * len(places)), layout="constrained")
    axes = chart.subplots()
    for number, engine in enumerate(engines):
        own = [row for row in rows if row.engine == engine]
        values = [100 * row.figures["r1"].value for row in own]
        below = [value - 100 * row.figures["r1"].interval.low for value, row in zip(values, own, strict=True)]
        above = [100 * row.figures["r1"].interval.high - value for value, row in zip(values, own, strict=True)]
        heights = [
            places.index((row.data, row.language, row.direction)) + 0.6 * (number + 0.5) / len(engines) - 0.3
            for row in own
        ]
        axes.errorbar(values, heights, xerr=[below, above], fmt="o", capsize=3, label=engine)
    published = [row for row in rows if row.published and row.engine == engines[0]]
    if published:
        axes.plot(
            [100 * row.published[0] for row in published if row.published],
            [places.index((row.data, row.language, row.direction)) for row in published],
            linestyle="none",
            marker="D",
            markerfacecolor="none",
            color="black",
            label="published",
        )
    axes.set_yticks(range(len(places)), [f"{name}, {language}\n{_NAMES[way.value]}" for name, language, way in places])
    axes.invert_yaxis()
    axes.set_xlabel("R@1 in %, with 95% confidence interval")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    chart.savefig(path, dpi=150)
