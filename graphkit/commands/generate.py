"""``generate``: problems of a data set that is made, not downloaded, written to a file."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

from graphkit.commands.parser import Parser
from graphkit.errors import UserError, did_you_mean
from graphkit.files import atomic_write
from graphkit.registry import DATASETS

__all__ = ["generate"]

DESCRIPTION = """Makes reasoning problems and writes them as CSV, in the form of the published test files.

  generate rcc8 --k 5 --b 3 --rows 800 --seed 0 --out test_rcc8_k_5_b_3.csv
  generate interval --k 2,3,4 --b 1,2,3 --out train_interval.csv.gz
  generate rcc8 --k 4 --b 3 --require-multipath --dedupe --out hard.csv

Problems come cell by cell, a cell being a pair of k and b, and in each cell relation by relation."""


def generate(argv: Sequence[str]) -> int:
    """The command; returns the exit code.

    A data set can be generated if its loader has an attribute ``generate``, called with ``k``, ``b``,
    ``rows``, ``seed`` and the conditions below by name, which returns the file's text.

    Raises:
        UserError: A data set that isn't made, a value out of range, or a file that can't be written.
    """
    options = _parser().parse_args(_dataset_first(argv))
    if options.dataset is None:
        raise UserError(
            f"the data set comes first: generate DATASET --out FILE; known: {', '.join(_known())}"
        )
    make: Callable[..., str] | None = getattr(DATASETS.get(options.dataset).target, "generate", None)
    if make is None:
        raise UserError(
            f"data set '{options.dataset}' isn't generated{did_you_mean(options.dataset, _known())}"
        )
    if options.out is None:
        raise UserError(f"where shall it go? generate {options.dataset} ... --out FILE")
    text = make(
        k=options.k,
        b=options.b,
        rows=options.rows,
        seed=options.seed,
        dedupe=options.dedupe,
        require_multipath=options.require_multipath,
        max_identity_share=options.max_identity_share,
    )
    content = text.encode()
    if Path(options.out).suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # the same bytes each time
    atomic_write(options.out, content)
    print(f"{text.count(chr(10)) - 1:,} problems of {options.dataset} written to {options.out}")
    return 0


def _known() -> list[str]:
    """Returns the data sets that can be generated."""
    return [name for name in DATASETS.names() if hasattr(DATASETS.get(name).target, "generate")]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be integers with commas, as 2,3,4") from None


def _dataset_first(argv: Sequence[str]) -> list[str]:
    """Turns a leading name into an option, so that no flag's value is taken for it."""
    return ["--dataset-name", argv[0], *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


def _parser() -> Parser:
    parser = Parser("generate", DESCRIPTION)
    parser.usage = "generate DATASET [options] --out FILE"
    parser.add_argument("--dataset-name", dest="dataset", help=argparse.SUPPRESS)
    parser.add_argument(
        "--k",
        type=_numbers,
        default=(2,),
        metavar="K1,K2,...",
        help="edges on each path, 2 to 64 (default 2)",
    )
    parser.add_argument(
        "--b", type=_numbers, default=(1,), metavar="B1,B2,...", help="branches, 1 to 64 (default 1)"
    )
    parser.add_argument(
        "--rows", type=int, default=800, help="problems for each relation and each pair of k and b (800)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the problems (default 0)")
    parser.add_argument("--dedupe", action="store_true", help="no graph twice for a pair of k and b")
    parser.add_argument(
        "--require-multipath", action="store_true", help="none of which a single path gives the answer"
    )
    parser.add_argument(
        "--max-identity-share",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of a graph's edges that may be the identity (1)",
    )
    parser.add_argument("--out", metavar="FILE", help="CSV, or CSV gzipped if it ends in .gz")
    return parser
