"""Cora, Citeseer and Pubmed: citation networks with bags of words (Yang et al., ICML 2016, arXiv:1603.08861).

Link prediction uses the random 70/10/20 split of Neural Common Neighbor (arXiv:2302.00890, ``split="ncn"``),
node classification the public split of 20 labels a class, 500 validation and 1,000 test nodes
(``split="public"``), or a random one of 60/20/20.

The raw files are Python 2 pickles from elsewhere. They are read by an unpickler that knows arrays, sparse
matrices, lists and dictionaries and can name nothing else, so nothing in them is ever run. What they hold is
kept in ``<root>/<name>/processed``, and they aren't read again until one of them changes.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Processed, Split, cached, row_normalized
from graphkit.datasets.splits import link_benchmark, ncn_link_split, random_link_split, random_node_split
from graphkit.errors import UserError
from graphkit.evaluation.metrics import NodeEvaluator
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset
from graphkit.sparse import undirected_edges

__all__ = ["load_citeseer", "load_cora", "load_pubmed", "read_planetoid"]

URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
SPLITS = {"link": ("ncn", "random"), "node": ("public", "random")}
CITATION = (
    "Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016, "
    "arXiv:1603.08861"
)


@dataclass(frozen=True)
class Published:
    """The counts of a published graph; edges are undirected, without self loops and repetitions."""

    nodes: int
    features: int
    edges: int
    classes: int


PUBLISHED = {
    "cora": Published(2708, 1433, 5278, 7),
    "citeseer": Published(3327, 3703, 4552, 6),
    "pubmed": Published(19717, 500, 44324, 3),
}

SHA256 = {
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
}


# --- Reading foreign pickles ------------------------------------------------------------------------------


class _Sparse:
    """Stands in for scipy's ``csr_matrix``: holds its parts, checks them, and makes them dense."""

    def dense(self) -> NDArray[np.float32]:
        parts = self.__dict__
        rows, columns = (int(n) for n in parts["_shape" if "_shape" in parts else "shape"])
        data, indices, starts = (np.asarray(parts[name]) for name in ("data", "indices", "indptr"))
        lengths = np.diff(starts)
        if (
            starts.shape != (rows + 1,)
            or starts[0] != 0
            or (lengths < 0).any()
            or not starts[-1] == data.size == indices.size
            or (indices.size and not (indices.min() >= 0 and indices.max() < columns))
        ):
            raise ValueError("the parts of a sparse matrix disagree")
        out = np.zeros((rows, columns), dtype=np.float32)
        np.add.at(out, (np.repeat(np.arange(rows), lengths), indices), data.astype(np.float32))
        return out


class _Unpickler(pickle.Unpickler):
    """Knows what the Planetoid files are made of, by every name that it ever had, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("csr_matrix", "csr_array") and module.startswith("scipy.sparse"):
            return _Sparse
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return lambda data, kind, shape, order: np.frombuffer(data, kind).reshape(shape, order=order)
        if module in ("__builtin__", "builtins") and name in ("list", "dict", "int"):
            return {"list": list, "dict": dict, "int": int}[name]
        if (module, name) == ("collections", "defaultdict"):
            return lambda *_: {}  # its factory serves no purpose here
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which these files have no use for")


def _unpickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} isn't a Planetoid file: {error}") from error


def _matrix(path: Path) -> NDArray[np.float32]:
    value = _unpickle(path)
    try:
        dense = value.dense() if isinstance(value, _Sparse) else np.asarray(value, dtype=np.float32)
    except Exception as error:
        raise UserError(f"{path} isn't a Planetoid matrix: {error}") from error
    if dense.ndim != 2:
        raise UserError(f"{path} holds {dense.ndim} dimensions; a matrix was expected")
    return np.ascontiguousarray(dense, dtype=np.float32)


def _test_index(path: Path) -> NDArray[np.int64]:
    try:
        index = np.array([int(line) for line in path.read_text("ascii").split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} isn't a list of node ids: {error}") from error
    if index.size == 0 or np.unique(index).size != index.size or index.min() < 0:
        raise UserError(f"{path} must hold distinct node ids, at least one")
    return index


def _edges(path: Path, num_nodes: int) -> NDArray[np.int64]:
    """Reads the neighbour lists as ``[2, E]``; both directions, self loops and repetitions are in there."""
    graph = _unpickle(path)
    try:
        degree = np.array([len(neighbours) for neighbours in graph.values()])
        row = np.repeat(np.array(list(graph), dtype=np.int64), degree)
        col = np.array([v for neighbours in graph.values() for v in neighbours], dtype=np.int64)
    except Exception as error:
        raise UserError(f"{path} isn't a dictionary of neighbour lists: {error}") from error
    edges = np.stack([row, col])
    if edges.size and not (edges.min() >= 0 and edges.max() < num_nodes):
        raise UserError(f"{path} names node {edges.max()}; there are {num_nodes}")
    return edges


# --- The graph --------------------------------------------------------------------------------------------


def read_planetoid(folder: str | Path, name: str) -> dict[str, Tensor]:
    """Reads the eight raw files of a Planetoid graph.

    Args:
        folder: Where ``ind.<name>.x`` and the others are.
        name: ``"cora"``, ``"citeseer"`` or ``"pubmed"``.

    Returns:
        ``x`` ``[N, F]`` float32 (raw words), ``y`` ``[N]`` int64, ``edge_index`` ``[2, E]`` int64 in both
        directions, sorted by the second row, ``train``/``valid``/``test`` the public split's indices.

    Raises:
        UserError: If a file is damaged, names anything to run, or the counts aren't the published ones.
    """
    at = {part: Path(folder) / f"ind.{name}.{part}" for part in PARTS}
    start, labels, allx, tx, ally, ty = (_matrix(at[part]) for part in ("x", "y", "allx", "tx", "ally", "ty"))
    labelled = labels.shape[0]
    test = _test_index(at["test.index"])
    ordered = np.sort(test)
    known = allx.shape[0]
    num_nodes = known + int(ordered[-1]) - int(ordered[0]) + 1
    fits = start.shape == (labelled, allx.shape[1]) and labelled + 500 <= known
    fits &= allx.shape[1] == tx.shape[1] and labels.shape[1] == ally.shape[1] == ty.shape[1]
    if not fits or ally.shape[0] != known or ordered[0] != known or not len(tx) == len(ty) == len(test):
        raise UserError(f"the files ind.{name}.* in {folder} don't belong together: their sizes disagree")

    # The k-th row of tx belongs to node test[k]. Citeseer's test range has 15 isolated nodes without a row;
    # they keep zeros, and class 0.
    x = np.zeros((num_nodes, allx.shape[1]), dtype=np.float32)
    classes = np.zeros((num_nodes, ally.shape[1]), dtype=np.float32)
    x[:known], x[test] = allx, tx
    classes[:known], classes[test] = ally, ty

    row, col = _edges(at["graph"], num_nodes)
    key = np.unique(col[row != col] * num_nodes + row[row != col])
    edge_index = torch.from_numpy(np.stack([key % num_nodes, key // num_nodes]))
    parts = {
        "x": torch.from_numpy(x),
        "y": torch.from_numpy(classes.argmax(1)),
        "edge_index": edge_index,
        "train": torch.arange(labelled),
        "valid": torch.arange(labelled, labelled + 500),
        "test": torch.from_numpy(ordered),
    }
    want = PUBLISHED[name]
    found = Published(num_nodes, x.shape[1], undirected_edges(edge_index, num_nodes).size(1), ally.shape[1])
    if found != want:
        raise UserError(f"{folder} isn't {name}: it holds {found}, published are {want}")
    return parts


def _raw_files(root: Path, name: str) -> dict[Path, str]:
    """Returns the raw files with their hashes: those of the first folder that has all, else fetched ones."""
    files = [f"ind.{name}.{part}" for part in PARTS]
    titles = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
    folders = [root / name / "raw", root / titles[name] / "raw", root / name.capitalize() / "raw"]
    folders += [root / "planetoid" / name / "raw", root / "raw", root]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            hashes = {folder / file: sha256(folder / file) for file in files}
            for path, found in hashes.items():
                if found != SHA256.get(path.name, found):
                    warnings.warn(f"{path} differs from the published file", stacklevel=4)
            return hashes
    for file in files:
        hint = f"(and the rest of ind.{name}.*), or use the data set 'digits', which needs no download"
        fetch(f"{URL}/{file}", folders[0] / file, SHA256.get(file), hint=hint)
    return {folders[0] / file: sha256(folders[0] / file) for file in files}


def _load(
    name: str,
    root: Path,
    task: str,
    seed: int,
    split: str | None,
    valid_ratio: float | None,
    test_ratio: float,
    normalize_features: bool,
) -> Benchmark:
    split = SPLITS[task][0] if split is None else split
    if split not in SPLITS[task]:
        allowed = " or ".join(f"'{name}'" for name in SPLITS[task])
        raise UserError(f"unknown split '{split}': for task '{task}' it is {allowed}")
    if valid_ratio is None:
        valid_ratio = 0.2 if task == "node" else 0.1
    hashes = _raw_files(root, name)
    folder = next(iter(hashes)).parent
    parts = cached(
        root / name / "processed",
        f"{name}/1/" + "/".join(hashes.values()),
        lambda: Processed(read_planetoid(folder, name), {}),
    ).tensors
    x = row_normalized(parts["x"]) if normalize_features else parts["x"]
    num_nodes = x.size(0)
    edges = undirected_edges(parts["edge_index"], num_nodes)
    info: dict[str, Any] = {"source": URL, "raw": str(folder), "nodes": num_nodes, "edges": edges.size(1)}
    if task == "node":
        if split == "public":
            splits: dict[str, Split] = {name: {"index": parts[name]} for name in ("train", "valid", "test")}
        else:
            # Nodes of the test range without a row, 15 of Citeseer, have no class either.
            labelled = torch.cat([torch.arange(int(parts["test"][0])), parts["test"]])
            splits = random_node_split(labelled, seed, valid_ratio, test_ratio)
            info["seed"] = seed
        info |= {"split": split} | {part: int(index["index"].numel()) for part, index in splits.items()}
        data = Data(x=x, y=parts["y"], edge_index=parts["edge_index"], num_nodes=num_nodes)
        spec = DataSpec(num_nodes, x.size(1), PUBLISHED[name].classes)
        return Benchmark(name, task, data, splits, spec, "accuracy", True, NodeEvaluator(), CITATION, info)
    if split == "ncn":
        parted = ncn_link_split(edges, num_nodes, seed)
    else:
        parted = random_link_split(edges, num_nodes, seed, valid_ratio, test_ratio)
    info |= {"split": split, "seed": seed}
    return link_benchmark(name, parted, num_nodes, x=x, y=parts["y"], citation=CITATION, info=info)


@register_dataset("cora", task=("link", "node"), paper="arXiv:1603.08861")
def load_cora(
    *,
    root: str | Path = "data",
    task: str = "link",
    seed: int = 0,
    split: str | None = None,
    valid_ratio: float | None = None,
    test_ratio: float = 0.2,
    normalize_features: bool = False,
) -> Benchmark:
    """Cora: 2,708 papers on machine learning, 5,278 citations, 1,433 words, 7 topics.

    Args:
        root: Holds ``cora/raw/ind.cora.*`` or PyG's ``Cora/raw``, or is that folder itself; fetched if not.
        task: ``"link"`` or ``"node"``.
        seed: Seeds splits other than the public one.
        split: Link: ``"ncn"``, the 70/10/20 protocol of arXiv:2302.00890 and the default, or ``"random"``.
            Node: ``"public"``, the default, or ``"random"``, which doesn't look at classes.
        valid_ratio: Share for validation in the random split; by default 0.1 of the edges, 0.2 of the nodes.
        test_ratio: Share for test in the random split.
        normalize_features: Whether each row of ``x`` is divided by its sum.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; unknown split.
    """
    return _load("cora", Path(root), task, seed, split, valid_ratio, test_ratio, normalize_features)


@register_dataset("citeseer", task=("link", "node"), paper="arXiv:1603.08861")
def load_citeseer(
    *,
    root: str | Path = "data",
    task: str = "link",
    seed: int = 0,
    split: str | None = None,
    valid_ratio: float | None = None,
    test_ratio: float = 0.2,
    normalize_features: bool = False,
) -> Benchmark:
    """Citeseer: 3,327 papers, 4,552 citations, 3,703 words, 6 topics.

    See :func:`load_cora`.
    """
    return _load("citeseer", Path(root), task, seed, split, valid_ratio, test_ratio, normalize_features)


@register_dataset("pubmed", task=("link", "node"), paper="arXiv:1603.08861")
def load_pubmed(
    *,
    root: str | Path = "data",
    task: str = "link",
    seed: int = 0,
    split: str | None = None,
    valid_ratio: float | None = None,
    test_ratio: float = 0.2,
    normalize_features: bool = False,
) -> Benchmark:
    """Pubmed: 19,717 papers on diabetes, 44,324 citations, 500 words, 3 topics.

    See :func:`load_cora`.
    """
    return _load("pubmed", Path(root), task, seed, split, valid_ratio, test_ratio, normalize_features)
