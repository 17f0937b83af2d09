"""MkDocs hooks: write what the code knows into the pages, and require an entry for every public name.

mkdocs.yml names this file; `make docs` runs it. A line of a page such as

    <!-- generated: errors -->                        becomes one of the texts in `GENERATED`
    <!-- source: tests/stores/toy.py open_store -->   becomes the code of a class, function or assignment of that file,
                                                      or all of it where none is named

so that neither can be out of date. `reference/commands.md` is generated as a whole.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from twinspire import sample_bundle
from twinspire.cli.app import application
from twinspire.error_status import STATUSES
from twinspire.index import schema
from twinspire.stores.filters import parser

PUBLIC_PACKAGES = (
    "twinspire",
    "twinspire.bundle",
    "twinspire.duplicates",
    "twinspire.images",
    "twinspire.index",
    "twinspire.index.ann",
    "twinspire.ingest",
    "twinspire.metrics",
    "twinspire.search",
    "twinspire.stores",
    "twinspire.towers",
    "twinspire.tracing",
    "twinspire_eval.datasets",
    "twinspire_eval.recall",
    "twinspire_eval.scenes",
    "twinspire_export",
    "twinspire_export.families",
    "twinspire_server.repository",
    "twinspire_server.triton",
)
COMMANDS_PAGE = "reference/commands.md"
_ROOT_PAGES = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md"}
_DIRECTIVE = re.compile(r"^<!-- (generated|source): (\S+)(?: (\w+))? -->$", re.MULTILINE)
_DETAILS = ("recall", "speed")  # of certificates; hundreds of lines


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the commands, and the pages that stand in the repository's root."""
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    for source, page in _ROOT_PAGES.items():
        text = Path(source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in _ROOT_PAGES.items():
            text = text.replace(f"]({other})", f"]({target})")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Replace the directives of a page. Raises PluginError for one that names nothing."""

    def text(found: re.Match[str]) -> str:
        directive, name, member = found.groups()
        if directive == "source":
            code = source(Path(name), member) if member else Path(name).read_text(encoding="utf-8").rstrip()
            return f"```python\n{code}\n```"
        if name not in GENERATED:
            raise PluginError(f"{page.file.src_uri}: nothing generates {name!r}, only {', '.join(GENERATED)}")
        return GENERATED[name]()

    return _DIRECTIVE.sub(text, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError unless every public name has an entry in the reference."""
    pages = Path(config.site_dir).rglob("*.html")
    anchors = {name for page in pages for name in re.findall(r'id="(twinspire[\w.]*)"', page.read_text("utf-8"))}
    documented = {id(value) for value in map(_value, anchors) if value is not None}
    missing = [
        f"{package}.{name}"
        for package in PUBLIC_PACKAGES
        for name in importlib.import_module(package).__all__
        if id(_value(f"{package}.{name}")) not in documented
    ]
    if missing:
        raise PluginError(f"public names without an entry in docs/reference/api: {', '.join(missing)}")


def commands_page() -> str:
    """Return the reference of all commands in Markdown: what `typer utils docs` writes, easier to read."""
    command = typer.main.get_command(application())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="twinspire", title="Commands")
    text = re.sub(r"`([^`\n]*?) <(?:list\[)?(\w[\w ]*)\]?>`", lambda found: f"`{found[1]} <{found[2].lower()}>`", text)
    text = re.sub(r"^\$ .*$", lambda found: re.sub(r"[{}]", "", found[0]).replace("......", "..."), text, flags=re.M)
    top, *rest = re.split(r"^#+ `(.*)`$", text, flags=re.MULTILINE)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    pages = [_with_links("twinspire", top, sections)]
    for path, body in sections.items():
        pages.append(f"{'#' * max(2, path.count(' ') + 1)} `{path}`{_with_links(path, body, sections)}")
    return "".join(pages)


def _with_links(group: str, body: str, sections: Mapping[str, str]) -> str:
    """Return the text of a command with its list of subcommands as links, each with its whole first sentence."""

    def entry(found: re.Match[str]) -> str:
        path = f"{group} {found[1]}"
        sentence = re.split(r"\n\n|(?<=\.)\s", sections[path].strip(), maxsplit=1)[0]
        return f"* [`{path}`](#{path.replace(' ', '-')}): {sentence}"

    text, heading, commands = body.partition("**Commands**:")
    return text + heading + re.sub(r"^\* `([\w-]+)`: .*$", entry, commands, flags=re.MULTILINE)


def source(path: Path, name: str) -> str:
    """Return the code of a top-level class, function or assignment of a file. Raises PluginError if it has none."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
        if name in names:
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise PluginError(f"{path} has no top-level {name}")


def errors_table() -> str:
    """Return the table of exceptions and what each means to the callers of commands and servers."""
    rows = ["| exception | attributes | exit code | HTTP | gRPC |", "|---|---|---|---|---|"]
    for error, status in STATUSES.items():
        own = inspect.signature(error.__init__).parameters if "__init__" in vars(error) else {}
        attributes = ", ".join(f"`{name}`" for name in own if name not in ("self", "message", "purpose"))
        indent = "&emsp;" * (len(error.__mro__) - 4)
        name = f"{indent}[`{error.__name__}`][twinspire.errors.{error.__name__}]"
        rows.append(f"| {name} | {attributes} | {status.exit_code} | {status.http} | `{status.grpc}` |")
    return "\n".join(rows)


def sample_manifest() -> str:
    """Return the sample's bundle.json with its int8 engines only, and without the longest parts of certificates."""
    manifest = json.loads((sample_bundle() / "bundle.json").read_text(encoding="utf-8"))
    for precisions in manifest["engines"].values():
        del precisions["fp32"]
        for name in _DETAILS:
            del precisions["int8"]["certificate"][name]
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    return f"```json\n{text}\n```"


def filter_grammar() -> str:
    """Return the grammar of filters, as the parser states it."""
    return "```\n" + (parser.__doc__ or "").partition("\n\n")[2].strip() + "\n```"


def catalogue_tables() -> str:
    """Return the tables of an index's catalogue."""
    return f"```sql\n{schema.SCHEMA.strip()}\n```"


GENERATED: Mapping[str, Callable[[], str]] = {
    "errors": errors_table,
    "manifest": sample_manifest,
    "filter-grammar": filter_grammar,
    "catalogue": catalogue_tables,
}


def _value(name: str) -> object:
    """Return what a dotted name stands for, None where it is no name in a module."""
    package, _, attribute = html.unescape(name).rpartition(".")
    try:
        return getattr(importlib.import_module(package), attribute, None) if package else None
    except ModuleNotFoundError:  # the name of a method or field
        return None
