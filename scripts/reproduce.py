"""``python scripts/reproduce.py ...`` is ``graphkit reproduce ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
