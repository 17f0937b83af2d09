"""Public names of a package that are loaded at first use, so that importing the package is fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package (PEP 562). `names` lists the lazy names by the submodule that has them."""
    homes = {name: f"{package}.{module}" for module, own in names.items() for name in own}

    def load(name: str) -> Any:  # noqa: ANN401 - the type depends on the name
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
