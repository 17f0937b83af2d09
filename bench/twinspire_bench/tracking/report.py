"""`twinspire bench report`: one page of a history, without anything from other hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_file
from twinspire_bench.tracking.charts import Axis, Mark, Series, chart
from twinspire_bench.tracking.history import Entry, Point, figures, panels, points, recalls, short_commit
from twinspire_eval.records import SAMPLES, Record
from twinspire_eval.tables import figure

_SPEEDS = {"image": "images_per_s", "text": "texts_per_s"}
_SAMPLES_SHOWN = 12


def write_report(found: Sequence[Entry], out: Path) -> None:
    """Write the page of `found`, oldest first, whole or not at all. Raises InputError where it cannot be written."""
    anchors = {entry.file: f"record-{number}" for number, entry in enumerate(found, 1)}
    newest = {(entry.machine, entry.step, entry.what): entry for entry in found}
    sections = [
        _charts(
            "Latency against throughput",
            "Every engine at each batch, in this process, of the newest run. Right and low is better.",
            [_latency(entry, anchors) for entry in newest.values() if entry.record.kind == "latency"],
        ),
        _charts(
            "Recall against queries/s",
            "Indexes with rising effort, on generated vectors. Right and high is better.",
            [one for entry in newest.values() if entry.record.kind == "index" for one in _index(entry, anchors)],
        ),
        _charts(
            "Precision frontier",
            "What an engine costs in recall and gains in speed: R@1 of captions looking for images, against images/s.",
            list(_frontier(list(newest.values()), anchors)),
        ),
        _charts(
            "History",
            "Figures by commit: the median of a commit's runs. A star marks a tree with uncommitted changes.",
            list(_history(found, anchors)),
        ),
        _table(found, anchors),
        _records(found, anchors),
    ]
    style = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    machines = ", ".join(sorted({entry.record.hardware.cpu_model for entry in found}))
    dates = f"{found[0].record.created[:10]} to {found[-1].record.created[:10]}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>twinspire benchmarks</title>'
        f'<style>{style}</style></head><body><h1>twinspire benchmarks</h1><p class="quiet">{len(found)} records, '
        f"{escape(dates)}, on {escape(machines)}. Every mark and number leads to its record.</p>"
        f"{''.join(sections)}</body></html>\n"
    )
    with file_errors(f"the report cannot be written to {out}", out), atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8")


def _charts(title: str, words: str, drawn: Sequence[str]) -> str:
    shown = "".join(drawn)
    return f'<h2>{title}</h2><p class="quiet">{words}</p><div class="charts">{shown}</div>' if shown else ""


def _latency(entry: Entry, anchors: dict[Path, str]) -> str:
    drawn = []
    for tower, speed in _SPEEDS.items():
        series = []
        for engine, cases in entry.record.results.get(tower, {}).items():
            marks = [
                Mark(
                    found[speed]["median"],
                    found["latency_ms"]["p50"],
                    f"{engine}, {case}: {figure(found[speed]['median'])} {tower}s/s, "
                    f"{figure(found['latency_ms']['p50'])} ms",
                    f"#{anchors[entry.file]}",
                )
                for case, found in cases.items()
                if found["latency_ms"]["p50"] is not None
            ]
            series.append(Series(engine, sorted(marks, key=lambda mark: mark.y)))
        title = f"{entry.record.subject['bundle']}, {tower} tower, {entry.record.hardware.cpu_model}"
        drawn.append(chart(title, Axis(f"{tower}s/s", True), Axis("median latency, ms", True), series))
    return "".join(drawn)


def _index(entry: Entry, anchors: dict[Path, str]) -> Iterator[str]:
    for distribution, found in entry.record.results["distributions"].items():
        series = [
            Series(
                spec,
                [
                    Mark(
                        point["queries_per_s"],
                        point["recall"],
                        f"{spec}, effort {point['effort']}: {figure(point['queries_per_s'])} queries/s, recall "
                        f"{point['recall']:.3f}",
                        f"#{anchors[entry.file]}",
                    )
                    for point in sorted(variant["points"], key=lambda point: point["queries_per_s"])
                ],
                joined=False,
            )
            for spec, variant in found["variants"].items()
        ]
        title = f"{distribution}, {found['vectors']:,} x {found['dim']}"
        yield chart(title, Axis("queries/s", True), Axis(f"recall@{entry.record.parameters['k']}"), series)


def _frontier(newest: Sequence[Entry], anchors: dict[Path, str]) -> Iterator[str]:
    """Join recall and speed of the engines of one bundle, measured on one machine."""
    for recall in (entry for entry in newest if entry.record.kind == "recall"):
        space = recall.record.subject["space"]
        for speed in (entry for entry in newest if entry.record.kind == "latency"):
            if (speed.machine, speed.record.subject["space"]) != (recall.machine, space):
                continue
            series = []
            for engine, language, direction, found in recalls(recall.record.results):
                if direction != "text_to_image":
                    continue
                marks = [
                    Mark(
                        one.value,
                        100 * found["r1"]["value"],
                        f"{one.name}: {figure(one.value)} images/s, R@1 {100 * found['r1']['value']:.1f}% ({language})",
                        f"#{anchors[recall.file]}",
                    )
                    for one in figures(speed.record)
                    if one.name.startswith(f"image {engine} ") and one.unit == "images/s"
                ]
                series.append(Series(f"{engine}, {language}", marks, joined=False))
            title = f"{recall.record.subject['bundle']}, {recall.record.subject['data']}"
            yield chart(title, Axis("images/s", True), Axis("R@1, %"), series)


def _history(found: Sequence[Entry], anchors: dict[Path, str]) -> Iterator[str]:
    for machine in dict.fromkeys(entry.machine for entry in found):
        of_machine = [entry for entry in found if entry.machine == machine]
        commits = list(dict.fromkeys(entry.commit for entry in of_machine))
        names = [short_commit(commit, mark="*") for commit in commits]
        for (step, unit), lines in panels(of_machine).items():
            series = [
                Series(
                    name,
                    [
                        Mark(
                            commits.index(point.commit),
                            point.figure.value,
                            f"{name}, {short_commit(point.commit)}: {_range(point)} {unit}",
                            f"#{anchors[point.files[-1]]}",
                        )
                        for point in line
                    ],
                )
                for name, line in lines.items()
            ]
            is_wide = unit in ("ms", "images/s", "texts/s", "queries/s")
            yield chart(f"{step}, {unit}", Axis("commit", names=names), Axis(unit, is_wide), series)


def _range(point: Point) -> str:
    if len(point.values) == 1:
        return figure(point.figure.value)
    return f"{figure(point.figure.value)} ({figure(min(point.values))} to {figure(max(point.values))})"


def _table(found: Sequence[Entry], anchors: dict[Path, str]) -> str:
    rows = []
    for point in sorted(points(found), key=lambda point: (point.machine, point.figure.name, point.created)):
        value = f'<a href="#{anchors[point.files[-1]]}">{_range(point)}</a>'
        cells = (escape(point.figure.name), escape(short_commit(point.commit, mark="*")))
        words = "".join(f"<td>{cell}</td>" for cell in (*cells, point.created[:10]))
        unit = escape(point.figure.unit)
        rows.append(f'<tr>{words}<td class="number">{value}</td><td>{unit}</td><td>{len(point.values)}</td></tr>')
    head = "<tr><th>figure</th><th>commit</th><th>date</th><th>median (range over runs)</th><th>unit</th><th>runs</th>"
    return f'<h2>All figures</h2><div class="scroll"><table>{head}</tr>{"".join(rows)}</table></div>'


def _records(found: Sequence[Entry], anchors: dict[Path, str]) -> str:
    parts = []
    for entry in found:
        summary = (
            f"{entry.step}, {entry.suite}, visit {entry.visit}, {short_commit(entry.commit)}, {entry.record.created}"
        )
        document = json.dumps(_shortened(entry.record), indent=1, ensure_ascii=False)
        parts.append(
            f'<details id="{anchors[entry.file]}"><summary>{escape(summary)} '
            f'<span class="quiet">{escape(entry.file.name)}</span></summary><pre>{escape(document)}</pre></details>'
        )
    return f"<h2>Records</h2><p class='quiet'>Long lists of samples are cut here.</p>{''.join(parts)}"


def _shortened(record: Record) -> Any:  # noqa: ANN401 - JSON
    def cut(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {
                key: f"{len(item)} samples"
                if key == SAMPLES and isinstance(item, list) and len(item) > _SAMPLES_SHOWN
                else cut(item)
                for key, item in value.items()
            }
        return [cut(item) for item in value] if isinstance(value, list) else value

    return cut(record.to_json())
