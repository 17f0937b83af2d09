"""The command `twinspire`. Commands live beside this file and in the packages named by `twinspire.commands`."""

from __future__ import annotations

from twinspire.cli.app import main

__all__ = ["main"]
