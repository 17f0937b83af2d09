"""MkDocs hooks: generate the commands' reference, and require an entry for every public name.

mkdocs.yml names this file; `make docs` runs it.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from twinspire.cli.app import application

PUBLIC_PACKAGES = (
    "twinspire",
    "twinspire.bundle",
    "twinspire.images",
    "twinspire.index",
    "twinspire.ingest",
    "twinspire.search",
    "twinspire.towers",
    "twinspire_export",
)
COMMANDS_PAGE = "reference/commands.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the commands, and the pages that stand in the repository's root."""
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    for source, page in {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md"}.items():
        files.append(File.generated(config, page, content=Path(source).read_text(encoding="utf-8")))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError unless every public name has an entry in the reference."""
    pages = Path(config.site_dir).rglob("*.html")
    anchors = {name for page in pages for name in re.findall(r'id="(twinspire[\w.]*)"', page.read_text("utf-8"))}
    documented = {id(_value(name)) for name in _public_names() if name in anchors}
    missing = [name for name in _public_names() if id(_value(name)) not in documented]
    if missing:
        raise PluginError(f"public names without an entry in docs/reference/api: {', '.join(missing)}")


def commands_page() -> str:
    """Return the reference of all commands in Markdown, as `typer utils docs` writes it."""
    command = typer.main.get_command(application())
    context = typer.Context(command)
    return get_docs_for_click(obj=command, ctx=context, name="twinspire", title="Commands")


def _public_names() -> list[str]:
    return [f"{package}.{name}" for package in PUBLIC_PACKAGES for name in importlib.import_module(package).__all__]


def _value(name: str) -> object:
    package, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(package), attribute)
