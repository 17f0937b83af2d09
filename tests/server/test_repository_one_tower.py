"""Repositories of models with one tower: the models of that tower alone, for the wheel and for the container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire import Client
from twinspire.bundle import Precision, Tower
from twinspire_server.repository import RepositoryRuntime, build_repository
from twinspire_server.triton import TritonServer


@pytest.mark.parametrize("runtime", RepositoryRuntime)
@pytest.mark.parametrize("tower", [Tower.TEXT, Tower.IMAGE])
def test_models_of_one_tower(
    make_tiny: Callable[..., Any], tmp_path: Path, runtime: RepositoryRuntime, tower: Tower
) -> None:
    """Every model of the repository is of the bundle's tower, and names its space."""
    bundle = make_tiny("one", towers=(tower,)).bundle
    build_repository([bundle.path], tmp_path / "repository", precision=Precision.FP32, runtime=runtime)
    models = sorted(path.name for path in (tmp_path / "repository").iterdir())
    assert f"tiny_{tower}" in models
    assert all(name.endswith(f"_{tower}") for name in models)
    config = (tmp_path / "repository" / f"tiny_{tower}" / "config.pbtxt").read_text(encoding="utf-8")
    assert bundle.space in config


@pytest.mark.usefixtures("needs_triton")
@pytest.mark.parametrize("tower", [Tower.TEXT, Tower.IMAGE])
def test_one_tower_is_served(make_tiny: Callable[..., Any], tmp_path: Path, tower: Tower) -> None:
    """Triton from its wheel gives what the engine in this process gives."""
    bundle = make_tiny("one", towers=(tower,)).bundle
    build_repository([bundle.path], tmp_path / "repository", precision=Precision.FP32, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    with (
        TritonServer(tmp_path / "repository") as server,
        Client.connect(server.grpc_url, bundle) as remote,
        Client.local(bundle, precision="fp32", provider="cpu") as local,
    ):
        found, expected = (
            client.encode_texts(["a red cat", "snow", ""])
            if tower is Tower.TEXT
            else client.encode_images(list(images))
            for client in (remote, local)
        )
    assert np.abs(found - expected).max() <= 1e-6
