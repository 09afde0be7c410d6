"""RCC-8 and interval algebra: reasoning over space and time, with problems made here and now.

Each graph is a problem of :mod:`graphkit.datasets.problems`: its facts leave one relation between source and
target (Khalid, Schockaert, ICLR 2025, arXiv:2407.17396). Training has short paths, the test long ones and
more of them. Nothing is downloaded; the published test files are used where they are given::

    python scripts/train.py epignn --dataset rcc8 --data.test_k '[5, 9, 15]' --data.test_b '[1, 8]'
    python scripts/train.py epignn --dataset interval --data.published DIR
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch

from graphkit.data import Benchmark
from graphkit.datasets.algebra import Algebra, algebra_of, symbolic_scores
from graphkit.datasets.graph_sets import Arrays, kept_graphs
from graphkit.datasets.problems import Conditions, make_problems
from graphkit.datasets.reasoning_csv import problem_files, problems_csv, read_problems
from graphkit.datasets.relation_graphs import (
    graph_keys,
    held_out,
    join_graphs,
    relation_benchmark,
    take_graphs,
    with_paths,
)
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.registry import register_dataset

__all__ = ["load_interval", "load_rcc8", "symbolic_baselines"]

T = TypeVar("T")
VERSION = 1
"""Of the problems made from a seed; part of the caches' names."""
TRAIN_K: Sequence[int] = (2, 3, 4)
TRAIN_B: Sequence[int] = (1, 2, 3)
TEST_K: Sequence[int] = tuple(range(2, 11))
TEST_B: Sequence[int] = (1, 2, 3)
CITATION = (
    "Khalid, Schockaert: Systematic Relational Reasoning With Epistemic Graph Neural Networks, ICLR 2025, "
    "arXiv:2407.17396"
)


def symbolic_baselines(benchmark: Benchmark, split: str = "test") -> dict[str, dict[str, float]]:
    """Returns the accuracy of symbolic solvers, in all and by cell, as the task reports a model's.

    Args:
        benchmark: ``rcc8`` or ``interval``.
        split: The part to solve.

    Returns:
        For ``exact`` (algebraic closure), ``single_path`` (the best path alone, guessing among what it
        leaves) and ``entailed`` (share of graphs that one path alone decides): ``accuracy``, and
        ``accuracy@k9b3`` for each cell.

    Raises:
        UserError: Another data set.
    """
    algebra = algebra_of(benchmark.name)
    ids = benchmark.splits[split]["index"].numpy()
    names = ("edge_index", "edge_type", "ptr", "edge_ptr", "source", "target", "y", "k", "b")
    part = take_graphs({name: benchmark.data[name].numpy() for name in names}, ids)
    cells = part["k"] * (part["b"].max(initial=0) + 1) + part["b"]
    _, first, cell = np.unique(cells, return_index=True, return_inverse=True)
    found = {}
    for name, scores in symbolic_scores(part, algebra).items():
        means = np.bincount(cell, scores) / np.bincount(cell)
        found[name] = {"accuracy": float(scores.mean())} | {
            f"accuracy@k{part['k'][at]}b{part['b'][at]}": float(mean)
            for at, mean in zip(first, means, strict=True)
        }
    return found


# --- Making and keeping -----------------------------------------------------------------------------------


def _made(
    root: Path,
    name: str,
    k: Sequence[int],
    b: Sequence[int],
    rows: int,
    seed: int,
    conditions: Conditions,
) -> Arrays:
    """Returns problems from the cache, which makes them the first time."""
    values = {"k": tuple(k), "b": tuple(b), "rows": rows, "seed": seed, **vars(conditions)}
    key = f"{name}/made/{VERSION}/" + "/".join(f"{key}={value}" for key, value in values.items())

    def build() -> tuple[Arrays, dict[str, Any]]:
        return _prepared(make_problems(algebra_of(name), k, b, rows, seed, conditions)), {}

    return _arrays(root, name, key, build)


def _read(root: Path, name: str, files: dict[tuple[int, int], Path]) -> Arrays:
    """Returns the problems of published files; a file's cell is its key, or (0, 0) where rows tell it."""
    hashes = "/".join(f"{k}-{b}={sha256(path)}" for (k, b), path in files.items())

    def build() -> tuple[Arrays, dict[str, Any]]:
        algebra = algebra_of(name)
        read = [read_problems(path, algebra, k or None, b or None) for (k, b), path in files.items()]
        return _prepared(join_graphs(read)), {}

    return _arrays(root, name, f"{name}/published/{VERSION}/{hashes}", build)


def _prepared(arrays: Arrays) -> Arrays:
    """Adds what is computed once: path nodes, and the identity of each graph."""
    return with_paths(arrays) | {"key": graph_keys(arrays)}


def _arrays(root: Path, name: str, key: str, build: Callable[[], tuple[Arrays, dict[str, Any]]]) -> Arrays:
    kept = kept_graphs(root / name / "processed", key, build)
    return {name: tensor.numpy() for name, tensor in kept.tensors.items()}


# --- The data sets ----------------------------------------------------------------------------------------


def _published(
    folder: Path, name: str, k: Sequence[int] | None, b: Sequence[int] | None
) -> tuple[dict[tuple[int, int], Path], Path | None]:
    """Returns the wanted test files of a folder, and the training file if it is there.

    Raises:
        UserError: There is no such folder, or none of the files.
    """
    files = problem_files(folder, name) if folder.is_dir() else {}
    chosen = {
        cell: path
        for cell, path in files.items()
        if (k is None or cell[0] in k) and (b is None or cell[1] in b)
    }
    if not chosen:
        wanted = f"test_{name}_k_*_b_*.csv[.gz]"
        cells = ", ".join(f"k{k}b{b}" for k, b in files)
        there = f"of the cells chosen; it has {cells}" if files else ""
        raise UserError(f"{folder} has no files {wanted} {there}".rstrip())
    names = (f"train_{name}.csv", f"train_{name}.csv.gz")
    return chosen, next((folder / name for name in names if (folder / name).is_file()), None)


def _load(
    name: str,
    root: Path,
    seed: int,
    train_k: list[int] | None,
    train_b: list[int] | None,
    train_per_relation: int,
    test_k: list[int] | None,
    test_b: list[int] | None,
    test_per_relation: int,
    problem_seed: int,
    published: str | None,
    conditions: Conditions,
    valid_ratio: float,
    split: str,
) -> Benchmark:
    algebra = algebra_of(name)
    if split not in ("groups", "rows"):
        raise UserError(f"unknown split '{split}': it is 'groups' or 'rows'")
    info: dict[str, Any] = {"source": "made from a seed", "problem_seed": problem_seed}
    files: dict[tuple[int, int], Path] = {}
    train_file = None
    if published is not None:
        folder = Path(published) if Path(published).is_dir() else root / published
        files, train_file = _published(folder, name, test_k, test_b)
        info |= {"published": str(published), "published_training": train_file is not None}
    if train_file is not None:
        train = _read(root, name, {(0, 0): train_file})
    else:
        k, b = train_k or TRAIN_K, train_b or TRAIN_B
        train = _made(root, name, k, b, train_per_relation, 2 * problem_seed, conditions)
    if files:
        test = _read(root, name, files)
    else:  # other numbers than training's, so that equal cells hold other problems
        k, b = test_k or TEST_K, test_b or TEST_B
        test = _made(root, name, k, b, test_per_relation, 2 * problem_seed + 1, conditions)
    held = held_out(len(train["y"]), valid_ratio, seed, train["key"] if split == "groups" else None)
    count = len(held)
    splits = {
        "train": np.flatnonzero(~held),
        "valid": np.flatnonzero(held),
        "test": np.arange(count, count + len(test["y"])),
    }
    info |= {"split": split, "seed": seed, "conditions": vars(conditions).copy()}
    info |= _facts(train, test, algebra)
    info["converse"] = {
        name: algebra.names[r] for name, r in zip(algebra.names, algebra.converse, strict=True)
    }
    joined = join_graphs([train, test])
    del joined["key"]
    tensors = {key: torch.from_numpy(value) for key, value in joined.items()}
    return relation_benchmark(name, tensors, splits, algebra.names, info=info, citation=CITATION)


def _facts(train: Arrays, test: Arrays, algebra: Algebra) -> dict[str, Any]:
    """Returns how many graphs differ, how many of the test are in training, and relations left out."""
    facts: dict[str, Any] = {
        "different_train_graphs": len(np.unique(train["key"])),
        "different_test_graphs": len(np.unique(test["key"])),
        "test_graphs_in_train": round(float(np.isin(test["key"], train["key"]).mean()), 4),
    }
    for part, arrays in (("train", train), ("test", test)):
        cell = arrays["k"].astype(np.int64) * 1000 + arrays["b"]
        there = {(c, r) for c, r in zip(cell.tolist(), arrays["y"].tolist(), strict=True)}
        cells = {c for c, _ in there}
        short = [name for r, name in enumerate(algebra.names) if any((c, r) not in there for c in cells)]
        facts |= {f"{part}_cells_lack": short} if short else {}
    return facts


def _generates(name: str) -> Callable[[T], T]:
    """Gives a loader the attribute ``generate``, by which ``graphkit generate`` knows what it can write."""

    def generate(
        *,
        k: Sequence[int],
        b: Sequence[int],
        rows: int,
        seed: int,
        dedupe: bool = False,
        require_multipath: bool = False,
        max_identity_share: float = 1.0,
    ) -> str:
        conditions = Conditions(dedupe, require_multipath, max_identity_share)
        algebra = algebra_of(name)
        return problems_csv(make_problems(algebra, k, b, rows, seed, conditions), algebra)

    def attach(load: T) -> T:
        cast(Any, load).generate = generate
        return load

    return attach


@register_dataset("rcc8", task="relation", paper="arXiv:2407.17396")
@_generates("rcc8")
def load_rcc8(
    *,
    root: str | Path = "data",
    task: str = "relation",
    seed: int = 0,
    train_k: list[int] | None = None,
    train_b: list[int] | None = None,
    train_per_relation: int = 800,
    test_k: list[int] | None = None,
    test_b: list[int] | None = None,
    test_per_relation: int = 100,
    problem_seed: int = 0,
    published: str | None = None,
    dedupe: bool = False,
    require_multipath: bool = False,
    max_identity_share: float = 1.0,
    valid_ratio: float = 0.2,
    split: Literal["groups", "rows"] = "groups",
) -> Benchmark:
    """RCC-8: which of eight topological relations follows from b paths of k facts? Needs no download.

    Relations in order: DC EC PO TPP NTPP TPPI NTPPI EQ. Accuracy, in all and by (k, b).

    Args:
        root: What was made is kept in ``rcc8`` there.
        task: ``"relation"``.
        seed: Seeds the choice of validation graphs.
        train_k: Facts on each path in training; by default 2, 3, 4.
        train_b: Paths (branches) in training; by default 1, 2, 3.
        train_per_relation: Training problems for each relation and each (k, b), validation's included.
        test_k: As ``train_k`` for the test, up to 64; by default 2 to 10, or all that is in ``published``.
        test_b: As ``train_b`` for the test; by default 1, 2, 3, or all that is in ``published``.
        test_per_relation: Test problems for each relation and each (k, b).
        problem_seed: Seeds the problems: s gives training those that ``graphkit generate`` makes from the
            seed 2 s, and the test those of 2 s + 1.
        published: A folder, if need be under ``root``, with the published files ``test_rcc8_k_*_b_*.csv``,
            gzipped or not, to test on.
            Its ``train_rcc8.csv`` is used as well if it is there; otherwise training is made.
        dedupe: Whether no graph may occur twice in a cell. Small cells then have fewer problems.
        require_multipath: Whether problems are left out in which a single path gives the answer.
        max_identity_share: Share of a graph's edges that may be EQ, which say little.
        valid_ratio: Share of the training problems that validates.
        split: ``"groups"``: equal graphs (most small ones occur many times) stay on one side of the
            validation split; ``"rows"``: they don't, as in the published protocol.

    Raises:
        UserError: A value out of range, conditions that no graph meets, or missing or damaged files.
    """
    conditions = Conditions(dedupe, require_multipath, max_identity_share)
    made = (train_k, train_b, train_per_relation, test_k, test_b, test_per_relation, problem_seed)
    return _load("rcc8", Path(root), seed, *made, published, conditions, valid_ratio, split)


@register_dataset("interval", task="relation", paper="arXiv:2407.17396")
@_generates("interval")
def load_interval(
    *,
    root: str | Path = "data",
    task: str = "relation",
    seed: int = 0,
    train_k: list[int] | None = None,
    train_b: list[int] | None = None,
    train_per_relation: int = 800,
    test_k: list[int] | None = None,
    test_b: list[int] | None = None,
    test_per_relation: int = 100,
    problem_seed: int = 0,
    published: str | None = None,
    dedupe: bool = False,
    require_multipath: bool = False,
    max_identity_share: float = 1.0,
    valid_ratio: float = 0.2,
    split: Literal["groups", "rows"] = "groups",
) -> Benchmark:
    """Interval algebra: which of Allen's 13 relations follows from b paths of k facts? Needs no download.

    Relations in order: = < > d di o oi m mi s si f fi. Options as in :func:`load_rcc8`.
    """
    conditions = Conditions(dedupe, require_multipath, max_identity_share)
    made = (train_k, train_b, train_per_relation, test_k, test_b, test_per_relation, problem_seed)
    return _load("interval", Path(root), seed, *made, published, conditions, valid_ratio, split)
