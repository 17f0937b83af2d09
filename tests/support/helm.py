"""Helm's engine in a process of its own: its Go runtime takes over signals, which other libraries do not survive."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


class RefusedByHelmError(Exception):
    """What Helm refuses, with its message."""


def render(chart: Path, values: dict[str, Any], *, name: str, namespace: str) -> dict[str, str]:
    """Check values by the chart's schema and render it; return the files by path. Raises RefusedByHelmError."""
    found: dict[str, str] = _in_helm(_render, str(chart), values, name, namespace)
    return found


def merged_values(chart: Path, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the chart's own values, and those merged with `values`."""
    found: tuple[dict[str, Any], dict[str, Any]] = _in_helm(_merged_values, str(chart), values)
    return found


def lint(chart: Path) -> dict[str, Any]:
    """Return what `helm lint` finds: errors and messages."""
    found: dict[str, Any] = _in_helm(_lint, str(chart))
    return found


@functools.cache
def _process() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    return pool


def _in_helm(function: Callable[..., Any], *arguments: Any) -> Any:
    return _process().submit(_refused, function, arguments).result(timeout=120)


def _refused(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    import helm_python

    try:
        return function(*arguments)
    except helm_python.HelmError as error:
        raise RefusedByHelmError(str(error)) from None


def _render(chart: str, values: dict[str, Any], name: str, namespace: str) -> dict[str, str]:
    import helm_python

    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(loaded.merge_values(values))
        return dict(loaded.render(values, name=name, namespace=namespace))


def _merged_values(chart: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import helm_python

    with helm_python.Chart.load(chart) as loaded:
        return dict(loaded.values), dict(loaded.merge_values(values))


def _lint(chart: str) -> dict[str, Any]:
    import helm_python

    return dict(helm_python.lint(chart))
