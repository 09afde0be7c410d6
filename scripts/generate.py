"""``python scripts/generate.py ...`` is ``graphkit generate ...``."""

import sys

from graphkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
