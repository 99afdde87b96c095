"""Names of shards in one word: ``train-{000..099}.tar``, ``{a,b}.tar``."""

from __future__ import annotations

import re
from itertools import product

from avfast.errors import DataError

LIMIT = 1_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern stands for, in order; ranges keep their leading zeros.

    >>> expand_braces("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']

    Raises:
        DataError: a group that is neither a range nor a list, or more than a million names.
    """
    texts = _GROUP.split(pattern)
    choices = [_choices(text, pattern) if i % 2 else [text] for i, text in enumerate(texts)]
    count = 1
    for options in choices:
        count *= len(options)
    if count > LIMIT:
        raise DataError(f"{pattern}: stands for {count:,} names; expected at most {LIMIT:,}")
    return ["".join(parts) for parts in product(*choices)]


def _choices(text: str, pattern: str) -> list[str]:
    if match := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text):
        low, high = match.groups()
        if int(high) < int(low) or int(high) - int(low) >= LIMIT:
            raise DataError(f"{pattern}: {{{text}}}: expected a range of at most {LIMIT:,} numbers, from low to high")
        width = len(low) if len(low) == len(high) or low.startswith("0") else 0
        return [str(n).zfill(width) for n in range(int(low), int(high) + 1)]
    if "," not in text:
        raise DataError(f"{pattern}: {{{text}}}: expected a range such as 000..099, or names with commas")
    return text.split(",")
