"""``python scripts/predict.py ...`` is ``graphkit predict ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
