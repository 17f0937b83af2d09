"""A peer as another package would register it: a class with no arithmetic, whose results count up."""

from __future__ import annotations

from twinspire_bench.engines.peer import EngineComparison, EnginePeer, PeerTask, register_peer


@register_peer
class ToyPeer(EnginePeer):
    """Return the number of captions, then one more each time, after two measurements that warm up."""

    comparison, label = EngineComparison.ONE_CAPTION, "toy"

    def __init__(self, task: PeerTask) -> None:
        super().__init__(task)
        self._next = len(task.captions()) - 3

    def measure(self) -> float:
        """Return the next number."""
        self._next += 1
        return self._next
