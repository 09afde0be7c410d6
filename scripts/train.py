"""``python scripts/train.py ...`` is ``graphkit train ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
