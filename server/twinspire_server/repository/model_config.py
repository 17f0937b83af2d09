"""Reading a model's config.pbtxt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinspire.errors import InputError

CONFIG = "config.pbtxt"


def read_config(model: Path) -> Any:  # noqa: ANN401 - the generated messages have no types
    """Read the `ModelConfig` message of a model's folder. Raises InputError where it cannot be read."""
    from google.protobuf import text_format  # type: ignore[import-untyped] # ships no type information
    from tritonclient.grpc import model_config_pb2

    file = model / CONFIG
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(
            f"{file} cannot be read ({error}): expected one that `twinspire build` wrote. Remove the folder or "
            "build into another with -o"
        ) from error
