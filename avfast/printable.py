"""Names that others chose, such as those of files, where people read them: on a terminal and in Markdown."""

from __future__ import annotations


def printable(text: object, *, keep: str = "") -> str:
    r"""``text`` with every character that does not show written as Python writes it, except those of ``keep``: escape
    sequences, line breaks, marks that reverse the writing, bytes that are no text.

    >>> printable("clip\x1b[2J\n.mp4"), printable("two\nlines", keep="\n") == "two\nlines"
    ('clip\\x1b[2J\\n.mp4', True)
    """
    text = str(text)
    if text.isprintable():
        return text
    # A wide space is no "printable" character to Python, and does show.
    return "".join(c if c.isprintable() or c in keep or c in "\u00a0\u3000" else _escaped(c) for c in text)


def code(text: object) -> str:
    r"""``text`` as code in Markdown, also inside a table.

    >>> code("a`b|c")
    "`a'b/c`"
    """
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
