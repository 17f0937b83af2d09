"""The cache that drops what was not asked for the longest."""

from __future__ import annotations

from twinspire._lru_cache import LruCache


def test_entries_are_weighed() -> None:
    """With weights those are kept that add up to the size; replacing one counts once, too heavy a one is not kept."""
    cache: LruCache[bytes] = LruCache(10, weigh=len)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("a", b"12345")
    assert cache.get("b") == b"1234"
    cache.put("c", b"12")
    assert [cache.get(key) for key in "abc"] == [None, b"1234", b"12"]
    cache.put("d", b"x" * 11)
    assert cache.stats().entries == 0


def test_entries_are_counted_by_default() -> None:
    """Without weights the number of entries is bounded, and none is kept with a size of 0."""
    cache: LruCache[str] = LruCache(2)
    for key in "abc":
        cache.put(key, key)
    assert [cache.get(key) for key in "abc"] == [None, "b", "c"]
    nothing: LruCache[str] = LruCache(0)
    nothing.put("a", "a")
    assert nothing.get("a") is None
