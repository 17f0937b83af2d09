"""Which rows a search may find, as FAISS takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.faiss_support import faiss_library


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that may be found: how many, of how many, and a bit for each row."""

    mask: NDArray[np.bool_]  # (N,)
    bits: NDArray[np.uint8]
    kept: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Selection:
        """Return the selection of the rows that `mask` (N,) has True for."""
        return cls(mask, np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)))

    @property
    def share(self) -> float:
        """The share of rows that it keeps."""
        return self.kept / max(1, len(self.mask))

    def selector(self) -> Any:  # noqa: ANN401
        """Return FAISS's selector; it reads `bits`, so the selection has to outlive it."""
        return faiss_library().IDSelectorBitmap(self.bits)
