"""``python -m avfast``."""

from __future__ import annotations

import sys

from avfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
