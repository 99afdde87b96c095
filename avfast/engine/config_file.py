"""The file of a configuration, without the size and the depth that a parser would take minutes to refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avfast.errors import ConfigError

MOST_BYTES = 1 << 20
# A section, its keys, and lists as values. The YAML scanner looks at all open brackets at every token.
DEEPEST = 32


def read_config_file(file: str | Path | None) -> dict[str, Any]:
    """``{"optim.lr": ...}`` from a YAML or JSON file with sections; nothing from None.

    Raises:
        ConfigError: it cannot be read, is larger than :data:`MOST_BYTES`, nested deeper than :data:`DEEPEST`, holds
            references, or is not a mapping.
    """
    if file is None:
        return {}
    import yaml  # a dependency of jsonargparse

    where = f"configuration file '{file}'"
    try:
        with open(file, "rb") as handle:
            data = handle.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{where}: expected at most {MOST_BYTES} bytes, found more")
        text = data.decode()
        refuse_deep(text, where)
        # A few lines of references to references stand for gigabytes.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{where}: expected plain values, found a reference (*name)")
        tree = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected sections data, optim, run, method")
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key != "recipe":
            flat[key] = value
    return flat


def refuse_deep(text: str, where: str) -> None:
    """Refuse more than :data:`DEEPEST` brackets that are open at once, quoted ones too.

    Raises:
        ConfigError: ``where: expected ...``.

    >>> refuse_deep("[[1, 2], [3, 4]]", "optim.lr")
    """
    depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ConfigError(f"{where}: expected at most {DEEPEST} brackets within each other, found more")
        elif character in "]}":
            depth = max(0, depth - 1)
