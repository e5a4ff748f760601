"""Tables that fit the terminal without losing a character: as they are, with one column wrapped, or row by row."""

from __future__ import annotations

__all__ = ["console", "show_whole"]

import os
import re
import shutil
import sys
import textwrap

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 1_000_000  # columns of a file or a pipe
HEIGHT = 25  # lines; nothing looks at it, but without it rich reads COLUMNS as well, and takes "²" for a number
LEAST = 20  # columns of a wrapped cell


def console() -> Console:
    """A console of standard output, as wide as `COLUMNS` or the terminal; a file or a pipe has no width."""
    given = os.environ.get("COLUMNS", "")
    if re.fullmatch("0*[1-9][0-9]{0,5}", given, re.ASCII):
        width = int(given)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED
    return Console(width=width, height=HEIGHT)


def show_whole(table: Table) -> None:
    """Print a table without cutting a cell.

    Where the table is too wide, its headings are wrapped between words, then the cells of its widest column; where that is
    not enough, a row is printed as one line per cell, with its heading.
    """
    target = console()
    needed = target.measure(table, options=target.options.update(width=UNLIMITED)).maximum
    if needed <= target.width:
        table.width = needed
        target.print(table)
    elif _narrowed(table, target.width - needed):
        target.print(table)
    else:
        _print_stacked(target, table)


def _narrowed(table: Table, room: int) -> bool:
    """Make a table narrower; False if words would be broken.

    Args:
        table: the table.
        room: columns of the terminal beyond those that the table needs, a negative number.
    """
    cells = _cells(table)
    widths = [max(map(_width, column), default=0) for column in cells]
    least = [max([_longest_word(column[0]), *map(_width, column[1:])]) for column in cells]
    if sum(least) > sum(widths) + room:
        widest = max(range(len(least)), key=least.__getitem__)
        least[widest] = min(least[widest], max([LEAST, *map(_longest_word, cells[widest])]))
    spare = sum(widths) + room - sum(least)
    if spare < 0:
        return False
    for i, column in enumerate(table.columns):
        column.width = min(widths[i], least[i] + spare)
        spare -= column.width - least[i]
        column.no_wrap, column.min_width, column.overflow = False, None, "fold"
    return True


def _print_stacked(target: Console, table: Table) -> None:
    """Print one line per cell; a cell of the first column that is empty stands for the one above it."""
    if table.title:
        _print(target, _text(table.title))
    cells = _cells(table)
    first = ""
    for row in range(len(table.rows)):
        first = cells[0][row + 1] or first
        values = [first, *(column[row + 1] for column in cells[1:])]
        for column, value in zip(cells, values, strict=True):
            heading = " ".join(column[0].split())
            line = f"{heading}: {value}" if heading else value
            if cell_len(line) > target.width and heading and _width(value) <= target.width:
                _print(target, f"{heading}:")
                line = value
            _print(target, line)
        target.print()
    if table.caption:
        _print(target, _text(table.caption))


def _print(target: Console, text: str) -> None:
    """Print a text, wrapped between words; a word that is longer than a line stays whole."""
    for line in text.split("\n"):
        parts = textwrap.wrap(line, target.width, break_long_words=False, break_on_hyphens=False)
        target.print(Text("\n".join(parts)), soft_wrap=True)


def _cells(table: Table) -> list[list[str]]:
    """The text of every cell by column, the heading first; empty where headings are not shown."""
    return [[_text(column.header) if table.show_header else "", *map(_text, column._cells)] for column in table.columns]


def _text(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def _width(text: str) -> int:
    return max((cell_len(line) for line in text.split("\n")), default=0)
