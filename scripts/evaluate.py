"""``python scripts/evaluate.py ...`` is ``graphkit evaluate ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
