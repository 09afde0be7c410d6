"""Accuracy of symbolic solvers on the problems that EpiGNN is tested on: what its figures stand beside.

python benchmarks/symbolic.py [--root DIR] [--k K ...] [--b B ...]

``exact`` is algebraic closure, ``single_path`` the best path alone, which guesses among what it leaves open,
and ``entailed`` the share of problems that one path alone decides.
"""

from __future__ import annotations

import argparse

from graphkit.datasets.reasoning import load_interval, load_rcc8, symbolic_baselines


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="where problems are kept")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15])
    parser.add_argument("--b", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    options = parser.parse_args()
    print(
        "| data set | solver | in all |" + "".join(f" k={k}, b={b} |" for k in options.k for b in options.b)
    )
    print("|---|---|---|" + "---|" * (len(options.k) * len(options.b)))
    for name, load in (("rcc8", load_rcc8), ("interval", load_interval)):
        benchmark = load(root=options.root, test_k=options.k, test_b=options.b)
        for solver, found in symbolic_baselines(benchmark).items():
            cells = [found[f"accuracy@k{k}b{b}"] for k in options.k for b in options.b]
            print(f"| {name} | {solver} |" + "".join(f" {x:.3f} |" for x in (found["accuracy"], *cells)))


if __name__ == "__main__":
    main()
