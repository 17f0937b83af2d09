"""The races: who runs against whom, and what the record keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers
from twinspire_bench.engines.inputs import Material
from twinspire_bench.engines.peers import contestant
from twinspire_bench.engines.task import Task
from twinspire_bench.worker import Worker
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.flops import engine_work
from twinspire_eval.load import interleaved
from twinspire_eval.machine import matrix_peaks
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import paired_ratio

RACES = ("image_tower", "text_tower", "folder", "one_caption")
OURS = "twinspire"
LIMIT = "limit of decoding and tower"
BATCH = 32
STREAMS = (1, 2)
"""OpenVINO is measured with each; the better one counts."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured. The parts of the captions are what slow contestants take a round; twinspire takes all."""

    rounds: int = 10
    padded_part: int = 96
    bf16_part: int = 512


@dataclass(frozen=True)
class Race:
    """Contestants on one workload; `unit` is of their figures."""

    unit: str
    tasks: Mapping[str, Task]


def check_names(only: Collection[str]) -> None:
    """Raise InputError for a name in `only` that no race has."""
    unknown = sorted(set(only) - set(RACES))
    if unknown:
        raise InputError(f"there is no race {', '.join(unknown)}: expected some of {', '.join(RACES)}")


def races(material: Material, *, threads: int, streams: int, effort: Effort) -> dict[str, Race]:
    """Say who runs against whom, by the name that the race has in the record; twinspire is `OURS` in each."""
    task = partial(
        Task,
        threads=threads,
        bundle=material.bundle,
        checkpoint=material.checkpoint,
        pictures=material.pictures,
        captions=material.captions,
        folder=material.folder,
        batch=BATCH,
    )
    image, text = (material.plain_engine(tower) for tower in (Tower.IMAGE, Tower.TEXT))

    def each_count_of_streams(label: str, **given: Any) -> dict[str, Task]:  # noqa: ANN401 - of a task
        return {f"{label}, {count} stream{'s' if count > 1 else ''}": task(**given, streams=count) for count in STREAMS}

    return {
        "image_tower": Race(
            "images_per_s",
            {
                OURS: task(name="twinspire images", streams=streams),
                "onnxruntime fp32": task(name="onnxruntime images", engine=image),
                **each_count_of_streams("OpenVINO int8", name="openvino images", engine=material.openvino_int8),
            },
        ),
        "text_tower": Race(
            "texts_per_s",
            {
                OURS: task(name="twinspire texts", streams=streams),
                "onnxruntime fp32, padded to the context": task(
                    name="onnxruntime padded texts", engine=text, part=effort.padded_part
                ),
                **each_count_of_streams(
                    "OpenVINO bf16", name="openvino bf16 texts", engine=text, part=effort.bf16_part
                ),
            },
        ),
        "folder": Race(
            "images_per_s",
            {
                OURS: task(name="twinspire folder", streams=streams),
                LIMIT: task(name="folder limit"),
                "transformers fp32": task(name="transformers folder"),
                "fastembed fp32": task(name="fastembed folder", engine=material.pixels_onnx),
            },
        ),
        "one_caption": Race(
            "captions_per_s",
            {
                OURS: task(name="twinspire caption", streams=streams),
                "transformers fp32, padded to the context": task(name="transformers padded caption"),
                "transformers fp32, not padded": task(name="transformers caption"),
            },
        ),
    }


def run_race(race: Race, *, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Let them run in turn: each one's figures, and how many times as fast as it twinspire was, round by round.

    `say` is told who starts and which round begins. Raises EngineError where a contestant cannot run.
    """
    with ExitStack() as stack:
        measures = {}
        for name, task in race.tasks.items():
            say(f"starting {name}")
            measures[name] = stack.enter_context(Worker(contestant, task.to_json(), label=task.name)).call
        figures = interleaved(measures, rounds=rounds, on_round=say)
    return {
        race.unit: {name: series(found, "median") for name, found in figures.items()},
        "times_as_fast_as": {
            name: paired_ratio(figures[OURS], found) for name, found in figures.items() if name != OURS
        },
    }


def measure(
    material: Material,
    *,
    data: CaptionedImages,
    threads: int,
    streams: int,
    effort: Effort,
    say: Callable[[str], None],
    only: Collection[str] = (),
) -> Record:
    """Run all races, or `only` those of some names. `say` is told what begins, each round too.

    Raises InputError for a name of none.
    """
    check_names(only)
    bundle = Bundle.open(material.bundle)
    entered = races(material, threads=threads, streams=streams, effort=effort)
    found: dict[str, Any] = {}
    for name, race in entered.items():
        if not only or name in only:
            title = name.replace("_", " ")
            found[name] = run_race(race, rounds=effort.rounds, say=partial(_say_of, say, title))
    say("cosines of the int8 engines to the fp32 ones")
    return Record(
        kind="engines",
        parameters={
            **asdict(effort),
            "texts": len(json.loads(material.captions.read_text(encoding="utf-8"))),
            "threads": threads,
            "streams": streams,
            "batch": BATCH,
            "data": data.name,
        },
        subject={"bundle": bundle.name, "space": bundle.space},
        results={
            "limit_images_per_s": _limit_images_per_s(bundle, threads),
            "cosine_to_fp32": cosines(bundle, data, np.load(material.pictures), threads=threads),
            "races": found,
        },
    )


def _say_of(say: Callable[[str], None], title: str, stage: str) -> None:
    say(f"{title}: {stage}")


def cosines(
    bundle: Bundle, data: CaptionedImages, pictures: NDArray[np.uint8], *, threads: int
) -> dict[str, dict[str, Any]]:
    """Return the mean and the least cosine of int8 to fp32 embeddings of `images` (N, S, S, 3) and all captions."""
    sequences = Tokenizer(bundle.tokenizer_path, bundle.text).encode(
        [caption.text for said in data.captions for caption in said]
    )
    embeddings = []
    for precision in (Precision.FP32, Precision.INT8):
        towers = LocalTowers(bundle, precision=precision, threads=threads)
        embeddings.append((towers.encode_images(pictures), towers.encode_texts(sequences)))
        towers.close()
    found = {}
    for tower, reference, int8 in zip(Tower, *embeddings, strict=True):
        cosine = (reference * int8).sum(axis=1)  # (N,)
        found[str(tower)] = {"samples": len(cosine), "mean": float(cosine.mean()), "min": float(cosine.min())}
    return found


def _limit_images_per_s(bundle: Bundle, threads: int) -> float:
    """Images/s at which the int8 engine's products would run at the measured matrix peaks."""
    size = bundle.image.size
    work = engine_work(bundle.engine(Tower.IMAGE, Precision.INT8), (1, size, size, 3))
    return 1 / work.shortest_s(matrix_peaks(threads))
