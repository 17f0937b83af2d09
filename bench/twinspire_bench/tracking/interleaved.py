"""Two bundles measured in turn in one process, for the gate: what slows a round slows both, and cancels out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from twinspire.bundle import Bundle, Tower
from twinspire.errors import InputError
from twinspire_bench.latency.command import local_targets
from twinspire_bench.latency.measure import LatencySettings, LatencyTarget, Load, measure

BATCHES = (1, 32)
LENGTH = 16
VISIT_S = 0.1
Speeds = dict[str, tuple[list[float], list[float]]]
"""Items/s of base and head in each round, by case."""


def measure_in_turn(base: Bundle, head: Bundle, *, rounds: int, threads: int | None = None) -> Speeds:
    """Measure the engines that both bundles have, on every provider here.

    Raises InputError for bundles whose towers take different inputs, and where they have no engine in common.
    """
    towers = base.towers
    if towers != head.towers or any(base.input_spec(tower) != head.input_spec(tower) for tower in towers):
        raise InputError(
            f"the towers of {base.name} and {head.name} take different inputs: only equal ones can be measured in turn"
        )
    lengths = (min(LENGTH, base.text.context_length),) if Tower.TEXT in towers else ()
    settings = LatencySettings(
        batches=BATCHES, lengths=lengths, loads=(Load(in_flight=1),), towers=towers, rounds=rounds, visit_s=VISIT_S
    )
    with ExitStack() as stack:
        targets: list[LatencyTarget] = []
        for side, bundle in (("base", base), ("head", head)):
            opened, _ = stack.enter_context(local_targets(bundle, towers=towers, threads=threads))
            targets += [replace(target, name=f"{side} {target.name}") for target in opened]
        names = {target.name for target in targets}
        chosen = [
            target
            for target in targets
            if {f"{side} {target.name.partition(' ')[2]}" for side in ("base", "head")} <= names
        ]
        chosen.sort(key=lambda target: target.name.partition(" ")[2])  # base and head next to each other
        if not chosen:
            raise InputError(f"{base.name} and {head.name} have no engine of the same precision and provider")
        results = measure(base, chosen, settings)
    speeds: Speeds = {}
    for result in results:
        side, _, engine = result.case.target.partition(" ")
        name = f"{result.case.tower} {engine}, {result.case.setting.removesuffix(', in flight 1')}"
        speeds.setdefault(name, ([], []))[side == "head"].extend(result.items_per_s.tolist())
    return speeds
