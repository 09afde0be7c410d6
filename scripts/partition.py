"""``python scripts/partition.py ...`` is ``graphkit partition ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["partition", *sys.argv[1:]]))
