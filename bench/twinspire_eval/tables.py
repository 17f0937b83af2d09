"""Tables and numbers as benchmarks print them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from twinspire_eval.statistics import Interval

# Width where the output is no terminal, so that nothing is cut off.
_WIDTH = 200
MISSING = "-"


def figures_console() -> Console:
    """Return a console on standard output, as wide as the terminal, or 200 columns without one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_WIDTH)


def figures_table(words: Sequence[str], figures: Sequence[str], *, title: str | None = None) -> Table:
    """Return an empty table: text columns aligned left, number columns aligned right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.header_style = "dim"
    for name in words:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def ratio_cells(ratio: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a ratio of a record and its interval as two cells of a table, MISSING where there is none."""
    if ratio is None:
        return MISSING, MISSING
    between = ratio["interval"]
    return f"{ratio['value']:.3g}", f"{between['low']:.3g} to {between['high']:.3g}"


def figure(value: float | None) -> str:
    """Format a number with four significant digits."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(interval: Interval | None) -> str:
    """Format an interval."""
    return MISSING if interval is None else f"{figure(interval.low)} to {figure(interval.high)}"
