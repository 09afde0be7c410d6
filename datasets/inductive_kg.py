"""Inductive knowledge graph completion: facts of entities that weren't there in training.

Twelve pairs of graphs cut from WN18RR, FB15k-237 and NELL-995 (Teru, Denis, Hamilton, ICML 2020, GraIL,
arXiv:1911.06962). The two graphs of a pair share relations and no entity. Models learn from the facts of the
first graph and are validated on facts held out of it; the test gives them the second graph and asks for facts
held out of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Split
from graphkit.datasets.archives import find_files
from graphkit.datasets.graph_sets import Arrays, join_texts, kept_graphs, texts_of
from graphkit.errors import UserError
from graphkit.evaluation.ranking import ranking_metrics
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset

__all__ = ["NAMES", "load_inductive", "read_pair"]

Metric = Literal["mrr", "hits@1", "hits@3", "hits@10", "hits@10_50", "hits@10_50_expected"]

URL = "https://raw.githubusercontent.com/kkteru/grail/master/data"
FOLDERS = {"wn18rr": "WN18RR", "fb15k237": "fb237", "nell995": "nell"}
TITLES = {"wn18rr": "WN18RR", "fb15k237": "FB15k-237", "nell995": "NELL-995"}
NAMES = tuple(f"{family}-v{version}" for family in FOLDERS for version in (1, 2, 3, 4))
PARTS = ("train", "valid", "test")
COUNTS = {
    "wn18rr-v1": ((5410, 630, 638), (1618, 185, 188)),
    "wn18rr-v2": ((15262, 1838, 1868), (4011, 411, 441)),
    "fb15k237-v1": ((4245, 489, 492), (1993, 206, 205)),
    "fb15k237-v3": ((17986, 2194, 2214), (7406, 866, 865)),
    "nell995-v2": ((8219, 922, 968), (4586, 459, 476)),
}
"""Facts of training, validation and test, of both graphs, where they are known for sure."""
CITATION = (
    "Teru, Denis, Hamilton: Inductive Relation Prediction by Subgraph Reasoning, ICML 2020, arXiv:1911.06962"
)


def read_triples(path: Path) -> list[tuple[str, str, str]]:
    """Reads facts, one a line: head, relation and tail between tabs or blanks.

    Raises:
        UserError: The file can't be read or a line isn't a fact; the message names it.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error}") from error
    facts = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(cells) != 3 or not all(cell.strip() for cell in cells):
            raise UserError(f"{path}, line {number}: head, relation and tail were expected: {line[:60]}")
        head, relation, tail = (cell.strip() for cell in cells)
        facts.append((head, relation, tail))
    if not facts:
        raise UserError(f"{path} holds no facts")
    return facts


def read_pair(train: Mapping[str, Path], inference: Mapping[str, Path]) -> tuple[Arrays, dict[str, Any]]:
    """Reads the two graphs of a pair.

    Args:
        train: The files ``train``, ``valid`` and ``test`` of the graph to learn from.
        inference: Those of the other graph.

    Returns:
        Facts ``[3, n]`` int64 rows head, relation, tail, of each file: ``train``, ``valid``, ``test`` and
        ``inference_train`` and so on; entities are numbered in each graph's own sorted order, relations in
        that of all names together. Names as bytes of lines: ``train_names``, ``inference_names``. And
        ``relations``, their names.

    Raises:
        UserError: A file is damaged, the graphs share an entity, or a relation isn't in the training facts.
    """
    read = {
        prefix: {part: read_triples(path) for part, path in paths.items()}
        for prefix, paths in (("", train), ("inference_", inference))
    }
    relations = sorted({relation for _, relation, _ in read[""]["train"]})
    kinds = {name: number for number, name in enumerate(relations)}
    arrays: Arrays = {}
    entities: dict[str, dict[str, int]] = {}
    for prefix, parts in read.items():
        names = sorted({name for facts in parts.values() for h, _, t in facts for name in (h, t)})
        known = entities[prefix] = {name: number for number, name in enumerate(names)}
        arrays[f"{prefix or 'train_'}names"] = join_texts(names)
        for part, facts in parts.items():
            path = (inference if prefix else train)[part]
            unknown = next((relation for _, relation, _ in facts if relation not in kinds), None)
            if unknown is not None:
                raise UserError(f"{path}: relation '{unknown}' isn't in the training facts")
            rows = [(known[h], kinds[r], known[t]) for h, r, t in facts]
            arrays[prefix + part] = np.array(rows, dtype=np.int64).T.copy()
    shared = entities[""].keys() & entities["inference_"].keys()
    if shared:
        raise UserError(
            f"{train['train'].parent} and {inference['train'].parent} share {len(shared)} entities, "
            f"'{min(shared)}' among them: this isn't an inductive pair"
        )
    return arrays, {"relations": relations}


def _files(root: Path, folder: str) -> dict[str, Path]:
    """Returns the three files of a graph: in place, or fetched."""
    homes = [root / "inductive_kg" / folder, root / folder]
    names = [f"{part}.txt" for part in PARTS]
    found = find_files(homes, names)
    if found is None:
        found = [fetch(f"{URL}/{folder}/{name}", homes[0] / name) for name in names]
    return dict(zip(PARTS, found, strict=True))


def load_inductive(name: str, root: Path, metric: Metric = "mrr") -> Benchmark:
    """Loads a pair of graphs by its registered name; see :func:`read_pair` and the module.

    The benchmark's ``data`` is the graph to learn from: ``edge_index`` and ``edge_type`` of its training
    facts, ``num_nodes``; and the other graph as ``inference_edge_index``, ``inference_edge_type`` and
    ``inference_num_nodes``. Splits are ``triple`` ``[3, n]``: training and validation in the first graph's
    numbering, the test in the other's. ``known_triple`` and ``inference_known_triple`` ``[3, n]`` are facts
    held out of each graph for other purposes; a filtered ranking may leave them out. Relations are shared and
    without inverses; ``node_names`` are those of the second graph.
    """
    family, version = name.rsplit("-", 1)
    folder = f"{FOLDERS[family]}_{version}"
    train, inference = _files(root, folder), _files(root, f"{folder}_ind")
    digest = "/".join(sha256(path) for path in (*train.values(), *inference.values()))
    kept = kept_graphs(
        root / "inductive_kg" / "processed", f"{name}/1/{digest}", lambda: read_pair(train, inference)
    )
    facts = {part: kept.tensors[part] for part in (*PARTS, *(f"inference_{part}" for part in PARTS))}
    counts = tuple(tuple(facts[prefix + part].size(1) for part in PARTS) for prefix in ("", "inference_"))
    if counts != COUNTS.get(name, counts):
        raise UserError(f"{train['train'].parent} has {counts} facts; {COUNTS[name]} are published")
    names = texts_of(kept.tensors, "inference_names")
    learnt = texts_of(kept.tensors, "train_names")
    assert names is not None
    assert learnt is not None
    first, second = facts["train"], facts["inference_train"]
    data = Data(
        edge_index=first[[0, 2]],
        edge_type=first[1].clone(),
        num_nodes=len(learnt),
        inference_edge_index=second[[0, 2]],
        inference_edge_type=second[1].clone(),
        inference_num_nodes=len(names),
        known_triple=facts["test"],
        inference_known_triple=facts["inference_valid"],
    )
    splits: dict[str, Split] = {
        "train": {"triple": first},
        "valid": {"triple": facts["valid"]},
        "test": {"triple": facts["inference_test"]},
    }
    relations = kept.info["relations"]
    info: dict[str, Any] = {
        "source": f"{URL}/{folder}",
        "raw": str(train["train"].parent),
        "nodes": len(learnt),
        "inference_nodes": len(names),
        "inference_edges": second.size(1),
        "relations": len(relations),
    }
    return Benchmark(
        name,
        "kgc",
        data,
        splits,
        DataSpec(num_relations=len(relations)),
        metric,
        True,
        ranking_metrics,
        CITATION,
        info | {part: split["triple"].size(1) for part, split in splits.items()},
        node_names=names,
        target_names=relations,
    )


def _register(name: str) -> Callable[..., Benchmark]:
    def load(
        *, root: str | Path = "data", task: str = "kgc", seed: int = 0, metric: Metric = "mrr"
    ) -> Benchmark:
        if metric not in get_args(Metric):
            raise UserError(f"unknown metric '{metric}': it is one of {', '.join(get_args(Metric))}")
        return load_inductive(name, Path(root), metric)

    family, version = name.rsplit("-", 1)
    folder = f"{FOLDERS[family]}_{version}"
    load.__doc__ = f"""{TITLES[family]} {version}, inductive: complete a graph that training never saw.

    The split of GraIL. Filtered ranking of heads and tails over all entities and over 50 sampled ones.

    Args:
        root: Holds ``inductive_kg/{folder}`` and ``inductive_kg/{folder}_ind``, each with ``train.txt``,
            ``valid.txt`` and ``test.txt``; fetched if not.
        task: ``"kgc"``.
        seed: Not used: the split is fixed.
        metric: What chooses the best epoch and is compared: over all entities, or (``_50``) over 50 sampled
            ones, or what that is in expectation.

    Raises:
        UserError: Files missing offline or damaged, or of other counts.
    """
    return register_dataset(name, task="kgc", paper="arXiv:1911.06962")(load)


LOADERS: dict[str, Callable[..., Benchmark]] = {name: _register(name) for name in NAMES}
