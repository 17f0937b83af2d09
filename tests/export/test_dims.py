"""Lengths that a bundle's embeddings may be cut to: those that the checkpoint states, else those that are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs torch")

from support.commands import run_twinspire
from twinspire import Client
from twinspire.bundle import Bundle
from twinspire.errors import CheckpointError, InputError
from twinspire_export.dims import allowed_dims

DIM = 512


def stating(folder: Path, dims: Any) -> Path:
    """Write a config.json that states these lengths into a folder."""
    file = folder / "config.json"
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**document, "matryoshka_dimensions": dims}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("stated", "given", "expected"),
    [
        (None, None, None),
        ([], None, None),
        ([512], None, None),
        (None, [256, 128], (128, 256, 512)),
        (None, [512, 64], (64, 512)),
        ([32, 64, 512], None, (32, 64, 512)),
        ([64, 32], None, (32, 64, 512)),
        ([64, 32], [32, 64], (32, 64, 512)),
    ],
)
def test_lengths(tmp_path: Path, stated: Any, given: list[int] | None, expected: tuple[int, ...] | None) -> None:
    """Lengths are in ascending order, the model's own the last; without shorter ones there are none."""
    assert allowed_dims(stating(tmp_path, stated), DIM, given) == expected


def test_a_layout_without_config_json_states_none(tmp_path: Path) -> None:
    """OpenCLIP's own layout takes what is given."""
    assert allowed_dims(tmp_path, DIM, None) is None
    assert allowed_dims(tmp_path, DIM, [64]) == (64, DIM)


@pytest.mark.parametrize("given", [[], [0], [-1], [513], [64, 64], [512], [64.0], ["64"], [True], "64", 64])
def test_impossible_lengths(tmp_path: Path, given: Any) -> None:
    """A length that no embedding can be cut to is an InputError of the option."""
    with pytest.raises(InputError, match="--dims"):
        allowed_dims(tmp_path, DIM, given)


def test_what_the_checkpoint_states_is_not_contradicted(tmp_path: Path) -> None:
    """Other lengths than config.json states are refused with these."""
    with pytest.raises(InputError, match=r"32, 64 or 512.*Leave --dims out"):
        allowed_dims(stating(tmp_path, [32, 64]), DIM, [128])


@pytest.mark.parametrize("stated", ["64", 64, [0], [64, "32"], [1024], {"a": 1}, True])
def test_a_malformed_statement(tmp_path: Path, stated: Any) -> None:
    """Anything but a list of lengths up to the model's own is a CheckpointError with the key."""
    with pytest.raises(CheckpointError, match="matryoshka_dimensions"):
        allowed_dims(stating(tmp_path, stated), DIM, None)


def test_the_command_writes_them(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`export --dims` writes a bundle whose clients may cut; a bad list ends before the work, and leaves nothing."""
    for bad in ("64,x", "64,64", "100000", ""):
        ran = run_twinspire(capfd, "export", checkpoint, "-o", tmp_path / "bad", "--dims", bad)
        assert ran.status == 2
        assert "--dims" in ran.err
        assert not (tmp_path / "bad").exists()
    ran = run_twinspire(capfd, "export", checkpoint, "-o", tmp_path / "bundle", "--dims", "16,8")
    assert ran.status == 0, ran.err
    assert "(or 8 or 16)" in ran.out
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.dims == (8, 16, bundle.dim)
    with Client.local(bundle, dim=8) as client:
        assert client.encode_texts(["a cat"]).shape == (1, 8)
