"""``python scripts/readme.py`` brings the README's tables up to date; ``--check`` fails if they aren't."""

import sys
from pathlib import Path

from graphkit.cli import main

if __name__ == "__main__":
    readme = Path(__file__).resolve().parent.parent / "README.md"
    sys.exit(main(["readme", "--file", str(readme), *sys.argv[1:]]))
