"""What building a repository takes for enums and lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinspire.errors import InputError
from twinspire_server.repository import build_repository


def test_names_stand_for_members_of_enums(tiny: Any, tmp_path: Path) -> None:
    """Runtime, device and accelerator may be given by name; what they are written as is the same."""
    build_repository([tiny.bundle.path], tmp_path / "named", precision="fp32", runtime="container", device="cpu")
    config = (tmp_path / "named" / "tiny_image" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config


@pytest.mark.parametrize(
    ("options", "choice"),
    [({"runtime": "docker"}, "wheel"), ({"device": "tpu"}, "gpu"), ({"accelerator": "xla"}, "tensorrt")],
)
def test_an_unknown_name_lists_the_choices(tiny: Any, tmp_path: Path, options: dict[str, Any], choice: str) -> None:
    """And nothing is written."""
    with pytest.raises(InputError, match=choice):
        build_repository([tiny.bundle.path], tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_one_bundle_is_no_list(tiny: Any, tmp_path: Path) -> None:
    """A path in place of a list of them is refused."""
    with pytest.raises(InputError, match="list"):
        build_repository(str(tiny.bundle.path), tmp_path / "models")  # type: ignore[arg-type]
