"""``python scripts/extract.py ...`` is ``graphkit extract ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
