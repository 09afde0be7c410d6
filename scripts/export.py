"""``python scripts/export.py ...`` is ``graphkit export ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
