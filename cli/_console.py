"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

_WIDE = 240  # characters: of a file or a pipe, which have no width


def folding(*names: str) -> Table:
    """A table whose cells go on in further lines where the terminal is narrow: nothing is cut off."""
    return Table(*(Column(name, overflow="fold") for name in names))


def show(table: Table) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table)
