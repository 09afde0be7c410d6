"""GraphLog: relations that follow from the rules of a synthetic world (Sinha et al. 2020, arXiv:2003.06560).

Each of 57 worlds has its own rules. A graph of a world holds facts, a query, and in later releases the path
that answers it. A world's folder has ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, one graph a line::

    {"edges": [[0, 3, "R_1"], [3, 1, "R_4"]], "query": [0, 1, "R_2"], "resolution_path": [0, 3, 1]}
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphkit.data import Benchmark
from graphkit.datasets.graph_sets import Arrays, kept_graphs
from graphkit.datasets.relation_graphs import graph_keys, relation_benchmark, with_paths
from graphkit.datasets.relation_rows import Query, flat_arrays
from graphkit.errors import UserError
from graphkit.files import fetch
from graphkit.registry import register_dataset

__all__ = ["load_graphlog", "read_graphlog"]

URL = "https://www.cs.mcgill.ca/~ksinha4/data"
ARCHIVES = {"v1.0": "graphlog_icml_data.zip", "v1.1": "graphlog_v1.1.zip"}
WORLDS = 57
PARTS = ("train", "valid", "test")
CITATION = (
    "Sinha, Sodhani, Pineau, Hamilton: Evaluating Logical Generalization in Graph Neural Networks, 2020, "
    "arXiv:2003.06560"
)


def _query(line: str) -> Query:
    """Reads one graph; raises ValueError, KeyError or TypeError for what is none."""
    row = json.loads(line)
    edges = [(u, v, label) for u, v, label in row["edges"]]
    source, target, answer = row["query"]
    if not edges or not all(isinstance(label, str) for *_, label in [*edges, (0, 0, answer)]):
        raise ValueError("facts and query need relations that are names")
    path = row.get("resolution_path")
    return Query(edges, source, target, answer, len(path) - 1 if path else -1)


def read_graphlog(texts: Mapping[str, bytes], where: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Reads a world.

    Args:
        texts: The contents of the three files, by part.
        where: Their folder or archive, for messages.

    Returns:
        Flat arrays of all graphs, part after part, nodes numbered anew with the query's source first; ``k``
        the length of the path that answers, if all graphs have one. And ``relations``, the names in order,
        and the number of graphs of each part.

    Raises:
        UserError: A line isn't a graph; the message names it.
    """
    queries: list[Query] = []
    counts = {}
    for part, content in texts.items():
        before = len(queries)
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                queries.append(_query(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{where}: {part}.jsonl, line {number} isn't a graph: {error}") from error
        counts[part] = len(queries) - before
        if not counts[part]:
            raise UserError(f"{where}: {part}.jsonl holds no graphs")
    relations = sorted({q.answer for q in queries} | {edge[2] for q in queries for edge in q.edges})
    arrays = flat_arrays(queries, relations)
    return with_paths(arrays) | {"key": graph_keys(arrays)}, {"relations": relations} | counts


def _contents(home: Path, world: str, release: str) -> tuple[dict[str, bytes], Path]:
    """Returns the three files of a world: from a folder, or from the archive, which is fetched if need be."""
    for folder in (home / world, *(home / part / world for part in PARTS)):
        if all((folder / f"{part}.jsonl").is_file() for part in PARTS):
            return {part: (folder / f"{part}.jsonl").read_bytes() for part in PARTS}, folder
    hint = f"or the files train.jsonl, valid.jsonl and test.jsonl in {home / world}"
    path = fetch(f"{URL}/{ARCHIVES[release]}", home / ARCHIVES[release], hint=hint)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = {}
            for part in PARTS:
                pattern = re.compile(rf"(.*/)?{re.escape(world)}/{part}\.jsonl")
                name = next((name for name in names if pattern.fullmatch(name)), None)
                if name is None:
                    raise UserError(f"{path} holds no {world}/{part}.jsonl")
                found[part] = archive.read(name)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to fetch it again") from error
    return found, path


@register_dataset("graphlog", task="relation", paper="arXiv:2003.06560")
def load_graphlog(
    *,
    root: str | Path = "data",
    task: str = "relation",
    seed: int = 0,
    world: int | str = 6,
    release: Literal["v1.0", "v1.1"] = "v1.1",
) -> Benchmark:
    """GraphLog: which relation follows from the facts of a synthetic world? 57 worlds, each with its rules.

    About 5,000/1,000/1,000 graphs a world; the published split. Accuracy, by length of the answering path
    where the files have it.

    Args:
        root: Holds ``graphlog/rule_6`` (or any world) with ``train.jsonl``, ``valid.jsonl`` and
            ``test.jsonl``, or the release's archive ``graphlog/graphlog_v1.1.zip``; fetched if not.
        task: ``"relation"``.
        seed: Not used: the split is fixed.
        world: Its number, from 0 to 56, or the name of its folder.
        release: The archive to fetch where there are no files.

    Raises:
        UserError: Files missing offline or damaged, or no such world.
    """
    name = str(world)
    if re.fullmatch(r"-?\d+", name):
        if not 0 <= int(name) < WORLDS:
            raise UserError(f"world is {name}; it must lie between 0 and {WORLDS - 1}")
        name = f"rule_{name}"
    if release not in ARCHIVES:
        raise UserError(f"unknown release '{release}': it is {' or '.join(ARCHIVES)}")
    home = Path(root) / "graphlog"
    texts, raw = _contents(home, name, release)
    digest = "/".join(hashlib.sha256(texts[part]).hexdigest() for part in PARTS)
    kept = kept_graphs(home / "processed", f"graphlog/1/{digest}", lambda: read_graphlog(texts, raw))
    tensors = dict(kept.tensors)
    keys = tensors.pop("key").numpy()
    bounds = np.cumsum([0, *(kept.info[part] for part in PARTS)]).tolist()
    splits = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(PARTS)}
    inside = np.isin(keys[splits["test"]], keys[splits["train"]])
    info = {
        "source": f"{URL}/{ARCHIVES[release]}",
        "raw": str(raw),
        "world": name,
        "test_graphs_in_train": round(float(inside.mean()), 4),
    }
    relations = kept.info["relations"]
    return relation_benchmark("graphlog", tensors, splits, relations, info=info, citation=CITATION)
