"""`python -m insula`: the same as the `insula` command."""

from __future__ import annotations

import sys

from insula.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
