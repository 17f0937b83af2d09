"""What `import twinspire` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import twinspire

# Slow to load, or of an extra.
HEAVY = (
    "torch",
    "faiss",
    "onnxruntime",
    "onnxruntime_ep_openvino",
    "tritonclient",
    "grpc",
    "transformers",
    "nncf",
)


def _loaded_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and list the top-level modules that it loaded."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_exactly_these() -> None:
    """The exported names are a promise: adding or removing one changes this list."""
    assert twinspire.__all__ == [
        "AsyncClient",
        "Bundle",
        "Client",
        "Index",
        "LocalTowers",
        "Query",
        "Searcher",
        "TritonTowers",
        "open_index",
        "sample_bundle",
    ]


def test_every_public_name_is_there() -> None:
    """Each name resolves to what its own module defines, is listed by `dir`, and others do not exist."""
    for name in twinspire.__all__:
        value = getattr(twinspire, name)
        assert value.__name__ == name
        assert value.__module__.startswith("twinspire.")
        assert name in dir(twinspire)
    with pytest.raises(AttributeError, match="Towerz"):
        _ = twinspire.Towerz


def test_importing_loads_nothing_heavy() -> None:
    """`import twinspire` loads neither an extra's packages nor numpy and Pillow."""
    assert not _loaded_after("import twinspire") & {*HEAVY, "numpy", "PIL", "tokenizers"}


def test_the_public_names_load_no_runtime() -> None:
    """Importing every public name loads no torch, faiss or onnxruntime: those come with their first use."""
    names = ", ".join(twinspire.__all__)
    assert not _loaded_after(f"from twinspire import {names}") & {*HEAVY}
