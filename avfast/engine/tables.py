"""Markdown tables that also read well in a terminal."""

from __future__ import annotations

from itertools import groupby, zip_longest


def align_tables(text: str) -> str:
    """Pad the cells of Markdown tables, so that they also read well as plain text.

    >>> print(align_tables("| a | b |\\n|---|---|\\n| long | 1 |"))
    | a    | b |
    |------|---|
    | long | 1 |
    """
    out: list[str] = []
    for is_table, lines in groupby(text.split("\n"), key=lambda line: line.startswith("|")):
        if not is_table:
            out += lines
            continue
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        columns = zip_longest(*rows, fillvalue="")
        widths = [max(len(cell) for cell in column if not _is_rule(cell)) for column in columns]
        for row in rows:
            cells = zip(row, widths, strict=False)
            if all(map(_is_rule, row)):
                out.append("|" + "|".join("-" * (width + 2) for _, width in cells) + "|")
            else:
                out.append("| " + " | ".join(cell.ljust(width) for cell, width in cells) + " |")
    return "\n".join(out)


def _is_rule(cell: str) -> bool:
    return len(cell) > 2 and set(cell) <= set("-:")
