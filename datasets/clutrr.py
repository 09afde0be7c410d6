"""CLUTRR: how are two people of a story related? (Sinha et al., EMNLP 2019, arXiv:1908.06177).

Each graph has the facts of a story, k of them, and a query for the relation that follows. Training has
stories of two to three or two to four facts, the tests up to ten. What is used are the published facts, not
the text. People may occur more than once in the chain of facts, so that the graph has cycles and its shortest
path fewer than k edges.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphkit.data import Benchmark
from graphkit.datasets.graph_sets import Arrays, kept_graphs
from graphkit.datasets.relation_graphs import graph_keys, held_out, relation_benchmark, with_paths
from graphkit.datasets.relation_rows import Query, flat_arrays
from graphkit.errors import UserError
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset

__all__ = ["load_clutrr", "read_clutrr"]

URL = "https://github.com/uclnlp/ctp/raw/master/data/clutrr-emnlp"
ARCHIVES = {4: "data_db9b8f04.zip", 3: "data_089907f8.zip"}
"""By the most facts of a training story."""
COUNTS = {
    4: {"train": 15083, "test": (38, 107, 77, 185, 105, 155, 135, 124, 122)},
    3: {"train": 10094, "test": (38, 105, 190, 174, 107, 144, 150, 119, 119)},
}
"""Published numbers of rows: training, and tests of 2 to 10 facts."""
CITATION = (
    "Sinha, Sodhani, Dong, Pineau, Hamilton: CLUTRR: A Diagnostic Benchmark for Inductive Reasoning from "
    "Text, EMNLP 2019, arXiv:1908.06177"
)
COLUMNS = ("story_edges", "edge_types", "query_edge", "target")
_NUMBER, _NAME = re.compile(r"\d+"), re.compile(r"'([^']*)'")


def _rows(path: Path, archive: zipfile.ZipFile, name: str) -> Iterator[Query]:
    """Yields the queries of one table in an archive."""
    with archive.open(name) as file:
        table = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""), strict=True)
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: {name} has no column {', '.join(missing)}")
        for row in table:
            edges, types, query, answer = (row[column] or "" for column in COLUMNS)
            ends, relations = list(map(int, _NUMBER.findall(edges))), _NAME.findall(types)
            ask = list(map(int, _NUMBER.findall(query)))
            if len(ends) != 2 * len(relations) or not relations or len(ask) != 2 or not answer:
                raise UserError(f"{path}: {name}, line {table.line_num}: this isn't a query over facts")
            facts = list(zip(ends[::2], ends[1::2], relations, strict=True))
            yield Query(facts, ask[0], ask[1], answer, len(facts))


def is_chain(query: Query) -> bool:
    """Tells whether the facts lead from source to target without passing anybody twice."""
    tails, heads = [edge[0] for edge in query.edges], [edge[1] for edge in query.edges]
    order = [query.source, *heads]
    return tails == order[:-1] and order[-1] == query.target and len(set(order)) == len(order)


def read_clutrr(path: Path, *, only_chains: bool = False) -> tuple[Arrays, dict[str, Any]]:
    """Reads an archive of CLUTRR: one table ``*_train.csv`` and tables ``1.{k}_test.csv``.

    Args:
        path: The zip file.
        only_chains: Leave out stories in which somebody occurs twice.

    Returns:
        Flat arrays of all graphs, training's first, then the tests by k, with ``k`` the number of facts; and
        ``relations``, the names in order, ``train``, the number of training graphs, and ``test``, that of
        each k.

    Raises:
        UserError: It isn't such an archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            train = [name for name in names if name.endswith("_train.csv")]
            tests = {int(m[1]): m[0] for name in names if (m := re.fullmatch(r".*\.(\d+)_test\.csv", name))}
            if len(train) != 1 or not tests:
                raise UserError(f"{path} must hold one table *_train.csv and tables 1.k_test.csv")
            tables = {0: train[0]} | dict(sorted(tests.items()))
            read = {k: list(_rows(path, archive, name)) for k, name in tables.items()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if only_chains:
        read = {k: [query for query in queries if is_chain(query)] for k, queries in read.items()}
    queries = [query for part in read.values() for query in part]
    relations = sorted({q.answer for q in queries} | {edge[2] for q in queries for edge in q.edges})
    arrays = flat_arrays(queries, relations)
    info = {
        "relations": relations,
        "train": len(read.pop(0)),
        "test": {str(k): len(part) for k, part in read.items()},
    }
    return with_paths(arrays) | {"key": graph_keys(arrays)}, info


def _check_counts(path: Path, info: Mapping[str, Any], max_train_k: int) -> None:
    wanted = COUNTS[max_train_k]
    found = {"train": info["train"], "test": tuple(info["test"].values())}
    if found != wanted:
        raise UserError(f"{path} has {found} rows; {wanted} are published")


@register_dataset("clutrr", task="relation", paper="arXiv:1908.06177")
def load_clutrr(
    *,
    root: str | Path = "data",
    task: str = "relation",
    seed: int = 0,
    max_train_k: Literal[3, 4] = 4,
    archive: str | None = None,
    only_chains: bool = False,
    valid_ratio: float = 0.2,
    split: Literal["rows", "groups"] = "rows",
) -> Benchmark:
    """CLUTRR: kinship in stories of k facts, 20 relations; trained on short stories, tested on longer ones.

    Accuracy, in all and by k.

    Args:
        root: Holds ``clutrr/data_db9b8f04.zip`` or ``clutrr/data_089907f8.zip``; fetched if not.
        task: ``"relation"``.
        seed: Seeds the choice of validation stories.
        max_train_k: Training stories have two to four facts (15,083 of them), or two to three (10,094).
        archive: Another archive of the same form to read instead.
        only_chains: Whether stories in which somebody occurs twice are left out.
        valid_ratio: Share of the training stories that validates.
        split: ``"rows"``: at random, as published; ``"groups"``: equal chains of facts, which are many,
            stay on one side.

    Raises:
        UserError: Files missing offline or damaged, or of other counts; an option out of range.
    """
    if max_train_k not in ARCHIVES:
        raise UserError(f"max_train_k is {max_train_k}; it must be 3 or 4")
    if split not in ("rows", "groups"):
        raise UserError(f"unknown split '{split}': it is 'rows' or 'groups'")
    home = Path(root) / "clutrr"
    if archive is not None:
        path, source = Path(archive), archive
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    else:
        name = ARCHIVES[max_train_k]
        source = f"{URL}/{name}"
        path = fetch(source, home / name, hint="; 'rcc8' needs no download")
    kept = kept_graphs(
        home / "processed",
        f"clutrr/1/{sha256(path)}/only_chains={only_chains}",
        lambda: read_clutrr(path, only_chains=only_chains),
    )
    if archive is None and not only_chains:
        _check_counts(path, kept.info, max_train_k)
    tensors = dict(kept.tensors)
    keys = tensors.pop("key").numpy()
    count = kept.info["train"]
    held = held_out(count, valid_ratio, seed, keys[:count] if split == "groups" else None)
    splits = {
        "train": np.flatnonzero(~held),
        "valid": np.flatnonzero(held),
        "test": np.arange(count, len(keys)),
    }
    info = {"source": source, "raw": str(path), "split": split, "seed": seed, "only_chains": only_chains}
    info |= {
        "different_train_graphs": len(np.unique(keys[:count])),
        "test_graphs_in_train": round(float(np.isin(keys[count:], keys[:count]).mean()), 4),
    }
    relations = kept.info["relations"]
    return relation_benchmark("clutrr", tensors, splits, relations, info=info, citation=CITATION)
