"""Keeping what torch, transformers and optimum say of their own affairs off the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters say of their own affairs; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Since torch 2.9 its TorchScript exporter, the one that optimum uses, announces its successor at
            # each call. The successor gives an output named `embedding` the name of a module and writes an
            # invalid graph.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|optimum)\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
