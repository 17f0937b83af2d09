"""ScaNN (https://github.com/google-research/google-research/tree/master/scann), in an environment of its own.

Its dependencies do not fit ours, so another interpreter (`--scann-python`) runs the process that measures it. That
interpreter imports this package from the same folders, and needs NumPy and ScaNN only.
"""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_bench.index.variant import Variant, Vectors

REQUIREMENT = "scann==1.4.2"
HOW = (
    f"make an environment for it (`python -m venv scann-env && scann-env/bin/pip install {REQUIREMENT}`) "
    "and pass --scann-python scann-env/bin/python"
)
_CHECK_S = 60
_TRAINED_ON = 250_000
_BATCH = 256


class Scann(Variant):
    """A tree of about as many leaves as the root of the vectors, anisotropic codes, and exact scores for candidates.

    Parameters as https://github.com/google-research/google-research/blob/master/scann/docs/algorithms.md recommends.
    """

    package = "scann"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        efforts = [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 512]
        self.settings = [(effort, reach) for reach in (5, 10, 15) for effort in efforts]
        self._searcher: Any = None

    def start(self) -> None:
        """Import it."""
        import scann  # noqa: F401

    def build(self, vectors: Vectors) -> None:
        """Build it."""
        import scann

        leaves = max(1, round(math.sqrt(len(vectors))))
        made = scann.scann_ops_pybind.builder(np.ascontiguousarray(vectors), 10, "dot_product")
        made = made.set_n_training_threads(self.threads)
        made = made.tree(
            num_leaves=leaves,
            num_leaves_to_search=max(1, leaves // 10),
            training_sample_size=min(len(vectors), _TRAINED_ON),
        )
        self._searcher = made.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def save(self, path: Path) -> None:
        """Store it in a folder."""
        path.mkdir(exist_ok=True)
        self._searcher.serialize(str(path))

    def load(self, path: Path, vectors: Vectors) -> None:  # noqa: ARG002
        """Load the folder."""
        import scann

        self._searcher = scann.scann_ops_pybind.load_searcher(str(path))
        self._searcher.set_num_threads(self.threads)

    def search(self, queries: Vectors, k: int, effort: int, reach: int) -> NDArray[np.int64]:
        """Search `effort` leaves and score `reach` candidates for each result again; one query by one thread."""
        options = {
            "final_num_neighbors": k,
            "pre_reorder_num_neighbors": k * reach,
            "leaves_to_search": effort,
        }
        if len(queries) == 1 or self.threads == 1:
            rows, _ = self._searcher.search_batched(queries, **options)
        else:
            size = min(_BATCH, math.ceil(len(queries) / self.threads))
            rows, _ = self._searcher.search_batched_parallel(queries, batch_size=size, **options)
        return np.asarray(rows, np.int64)


def check_interpreter(python: Path | None) -> Path:
    """Return the interpreter that can import ScaNN. Raises InputError that says how to come by one."""
    if python is None:
        raise InputError(f"ScaNN does not fit into this environment: {HOW}")
    command = [str(python), "-c", "import numpy, scann"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_CHECK_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{python} cannot be run as a Python interpreter with ScaNN ({error}): {HOW}") from error
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise InputError(f"{python} cannot import scann ({words[-1] if words else done.returncode}): {HOW}")
    return python
