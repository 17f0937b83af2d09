"""Frames of SQLite's write-ahead log: those that SQLite reads after a crash, and the intact ones that it drops.

A log is a header of 32 bytes and frames: 24 bytes of header and one page. Each frame has a running checksum over the
page, the first 8 bytes of its header and the checksum before it; SQLite reads the frames before the first wrong one
(https://sqlite.org/fileformat.html#walformat). A frame can be checked with the stored checksum of the one before, so
intact frames behind a damaged one can be recognised.

The checksum is a linear function of the words modulo 2**32. So a wrong one determines the bits whose flip explains it,
if there are any: for the lower 22 bits of a word there is one; for a high bit h there are up to 342 in a page, because
only 32 - h bits of the coefficients count, which then repeat.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint number, two salts, two checksums
_MAGIC = 0x377F0682  # of a log with checksums of little-endian words, as on all processors that twinspire runs on
_VERSION = 3007000
_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_WORD = (1 << 32) - 1
_MOST_PAGES = 1 << 23  # 32 GiB
_Sum = tuple[int, int]


@dataclass(frozen=True)
class LostFrames:
    """The frames that SQLite drops of a log, up to the last intact commit.

    `pages` are page numbers and contents in the order of writing, `size` is the number of pages of the database after
    the last one. `repaired` frames had one flipped bit, which is corrected, except in `ambiguous`: by place in `pages`,
    the candidates (word, bit) one of which was flipped. `damaged` frames had more flipped bits and are left out.
    """

    pages: list[tuple[int, bytes]]
    size: int
    commits: int
    repaired: int
    damaged: int
    ambiguous: dict[int, list[tuple[int, int]]]


def flipped(page: bytes, word: int, bit: int) -> bytes:
    """Return `page` with a bit of one of its little-endian words of 32 bits flipped."""
    data = bytearray(page)
    data[word * 4 + bit // 8] ^= 1 << bit % 8
    return bytes(data)


def lost_frames(log: bytes) -> LostFrames | None:
    """Return the frames that SQLite drops of `log`, None if it drops no whole commit."""
    opened = _opened(log)
    if opened is None:
        return None
    page_bytes, salts, before, damaged_header = opened
    width = _FRAME_HEADER_BYTES + page_bytes
    count = (len(log) - _HEADER_BYTES) // width
    if count == 0:
        return None
    frames = np.frombuffer(log, np.uint8, count * width, _HEADER_BYTES).reshape(count, width)
    words = np.concatenate([frames[:, :8], frames[:, _FRAME_HEADER_BYTES:]], axis=1).view("<u4").astype(np.uint32)
    factors, power = _factors(words.shape[1])
    own_sums = words @ factors  # (n, 2), modulo 2**32
    pages, size, commits, repaired, damaged = list[tuple[int, bytes]](), 0, 0, 0, 0
    ambiguous = dict[int, list[tuple[int, int]]]()
    pending, pending_repaired, pending_damaged = list[tuple[int, bytes]](), 0, 0  # behind the last intact commit
    dropping = damaged_header
    for frame, content, own in zip(frames, words, own_sums.tolist(), strict=True):
        head = struct.unpack(">6I", frame[:_FRAME_HEADER_BYTES].tobytes())
        stored: _Sum = (head[4], head[5])
        expected: _Sum = (_step(power[0], before) + own[0] & _WORD, _step(power[1], before) + own[1] & _WORD)
        foreign = (head[2] ^ salts[0]).bit_count() + (head[3] ^ salts[1]).bit_count()
        whole, before = foreign <= 1, stored
        fixed = foreign == 1
        if whole and stored != expected:
            flips = _flips(content, (stored[0] - expected[0] & _WORD, stored[1] - expected[1] & _WORD))
            fixed = True
            if len(flips) == 1:
                content = content.copy()
                content[flips[0][0]] ^= np.uint32(1 << flips[0][1])
            elif flips:
                ambiguous[len(pages) + len(pending)] = [(word - 2, bit) for word, bit in flips]
            elif (stored[0] ^ expected[0]).bit_count() + (stored[1] ^ expected[1]).bit_count() == 1:
                before = expected
            else:
                whole = False
        if not whole or fixed:
            dropping = True
        pending_repaired += whole and fixed
        pending_damaged += not whole
        if not whole:
            continue
        raw = content.astype("<u4").tobytes()
        page, pages_then = struct.unpack(">II", raw[:8])
        pending.append((page, raw[8:]))
        if not pages_then:
            continue
        if dropping:
            pages += pending
            size, commits = pages_then, commits + 1
            repaired, damaged = repaired + pending_repaired, damaged + pending_damaged
        pending, pending_repaired, pending_damaged = [], 0, 0
    return LostFrames(pages, size, commits, repaired, damaged, ambiguous) if commits else None


def _opened(log: bytes) -> tuple[int, _Sum, _Sum, bool] | None:
    """Return page size, salts and checksum of a log, and whether a bit of its header was corrected."""
    if len(log) < _HEADER_BYTES:
        return None
    for flip in (None, *range(_HEADER_BYTES * 8)):
        header = bytearray(log[:_HEADER_BYTES])
        if flip is not None:
            header[flip // 8] ^= 1 << flip % 8
        magic, version, page_bytes, _, *salts, first, second = _HEADER.unpack(header)
        if magic != _MAGIC or version != _VERSION:
            continue
        words = np.frombuffer(header, "<u4", 6).astype(np.uint32)
        if (words @ _factors(6)[0]).tolist() == [first, second]:
            return page_bytes, (salts[0], salts[1]), (first, second), flip is not None
    return None


@cache
def _factors(words: int) -> tuple[NDArray[np.uint32], tuple[_Sum, _Sum]]:
    """Return the coefficients of that many words in the checksum, (words, 2), and the matrix of the checksum before.

    Two words x, y turn the checksum s, t into s + t + x, then t + y + (s + t + x).
    """
    factors = np.zeros((words, 2), np.uint32)
    (a, b), (c, d) = (1, 0), (0, 1)
    for place in range(words - 2, -1, -2):
        factors[place] = (a + b) & _WORD, (c + d) & _WORD
        factors[place + 1] = b, d
        (a, b), (c, d) = ((a + b) & _WORD, (a + 2 * b) & _WORD), ((c + d) & _WORD, (c + 2 * d) & _WORD)
    return factors, ((a, b), (c, d))


def _step(row: _Sum, before: _Sum) -> int:
    return row[0] * before[0] + row[1] * before[1]


def _flips(words: NDArray[np.uint32], wrong: _Sum) -> list[tuple[int, int]]:
    """Return the words and bits whose flip adds `wrong` to the checksum.

    The first two words are page numbers: flips to one out of bounds are left out.
    """
    factors, _ = _factors(len(words))
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    change = np.where(words[:, None] & bits, np.uint32(0) - bits, bits)  # (words, 32), the change of a word by a flip
    found = (change * factors[:, :1] == wrong[0]) & (change * factors[:, 1:] == wrong[1])
    flips = []
    for word, bit in np.argwhere(found).tolist():
        head = words[:2].copy()
        if word < 2:
            head[word] ^= np.uint32(1 << bit)
        page, pages_then = struct.unpack(">II", head.astype("<u4").tobytes())
        if 0 < page < _MOST_PAGES and pages_then < _MOST_PAGES:
            flips.append((word, bit))
    return flips
