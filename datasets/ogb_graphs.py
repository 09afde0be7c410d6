"""OGB's graph property prediction on molecules (arXiv:2005.00687): ogbg-molhiv, ogbg-molpcba and ten more.

Raw files that are in place are used, or OGB's archive, or it is fetched. They are read once and kept in
``<root>/<name>/processed`` in a form that holds numbers alone. OGB's files list a bond once; here, as in the
ogb package's loader, its inverse follows right after it, with the same attributes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphkit.data import Benchmark
from graphkit.datasets.graph_sets import (
    Arrays,
    check_graphs,
    graph_benchmark,
    index_type,
    join_texts,
    kept_graphs,
    pointer,
    texts_of,
    with_inverse,
)
from graphkit.datasets.molecules import atom_categories, bond_categories, graph_of, molecule_spec
from graphkit.datasets.ogb_benchmark import CITATION, PARTS
from graphkit.datasets.ogb_raw import (
    Source,
    damaged,
    find_or_fetch,
    fingerprint_of,
    processed_folder,
    read_csv,
    read_split,
)
from graphkit.errors import UserError
from graphkit.evaluation.ogb import OGBEvaluator
from graphkit.registry import register_dataset

__all__ = ["LOADERS", "MOLECULES", "Molecules", "load_molecules"]


@dataclass(frozen=True)
class Molecules:
    """What is published of one set of molecules.

    Attributes:
        archive: Name of its archive.
        graphs: Molecules.
        tasks: Targets of a molecule.
        kind: ``"binary"`` labels or ``"regression"``.
        about: What is asked of a molecule.
        sizes: Training, validation and test molecules, where they are published.
    """

    archive: str
    graphs: int
    tasks: int
    kind: Literal["binary", "regression"]
    about: str
    sizes: tuple[int, int, int] | None = None

    @property
    def summary(self) -> str:
        many = f"{self.tasks} tasks" if self.tasks > 1 else "1 task"
        end = "" if self.about.endswith("?") else "."
        return f"{self.graphs:,} molecules, {many}: {self.about}{end}"


# Tasks and archives as in the ogb package's master.csv, molecules and split sizes as in the paper's tables.
MOLECULES = {
    "ogbg-molhiv": Molecules("hiv", 41_127, 1, "binary", "does it inhibit HIV?", (32_901, 4_113, 4_113)),
    "ogbg-molpcba": Molecules("pcba", 437_929, 128, "binary", "activity in PubChem's bioassays"),
    "ogbg-moltox21": Molecules("tox21", 7_831, 12, "binary", "toxicity on receptors and stress pathways"),
    "ogbg-molbace": Molecules("bace", 1_513, 1, "binary", "does it inhibit human beta-secretase 1?"),
    "ogbg-molbbbp": Molecules("bbbp", 2_039, 1, "binary", "does it pass the blood-brain barrier?"),
    "ogbg-molclintox": Molecules(
        "clintox", 1_477, 2, "binary", "is the drug approved, did it fail as toxic?"
    ),
    "ogbg-molmuv": Molecules("muv", 93_087, 17, "binary", "activity in assays chosen for virtual screening"),
    "ogbg-molsider": Molecules("sider", 1_427, 27, "binary", "side effects of drugs, by organ"),
    "ogbg-moltoxcast": Molecules("toxcast", 8_576, 617, "binary", "toxicity in high-throughput screens"),
    "ogbg-molesol": Molecules("esol", 1_128, 1, "regression", "solubility in water", (902, 113, 113)),
    "ogbg-molfreesolv": Molecules("freesolv", 642, 1, "regression", "energy of hydration", (513, 64, 65)),
    "ogbg-mollipo": Molecules(
        "lipophilicity", 4_200, 1, "regression", "distribution between octanol and water"
    ),
}

COLUMNS = {"full": None, "simple": 2}


def source_of(name: str) -> Source:
    """Returns where a data set comes from."""
    return Source(name, MOLECULES[name].archive, "scaffold", molecules=True)


def read_molecules(folder: Path, source: Source, published: Molecules | None) -> Arrays:
    """Reads graphs in OGB's CSV layout.

    Args:
        folder: Holds ``raw``, ``split`` and maybe ``mapping/mol.csv.gz``.
        source: The data set.
        published: The counts to compare with.

    Returns:
        ``x`` ``[N, 9]`` int8, ``edge_index`` ``[2, E]`` in each graph's numbering, ``edge_attr`` ``[E, 3]``
        int8, ``ptr``, ``edge_ptr``, ``y`` ``[G, T]`` float32 with NaN where unknown, the split, and where
        there is a mapping ``smiles`` and ``target_names`` as bytes.

    Raises:
        UserError: A missing or damaged file, ids out of range, or other counts.
    """
    raw = folder / "raw"
    nodes, bonds = (read_csv(raw / f"num-{what}-list.csv.gz", np.int64, 1)[:, 0] for what in ("node", "edge"))
    graphs = len(nodes)
    if len(bonds) != graphs or min(nodes.min(initial=1), bonds.min(initial=0)) < 0:
        raise UserError(f"{raw}/num-edge-list.csv.gz must hold {graphs:,} numbers of bonds, one a molecule")
    parts = read_split(folder / "split" / source.split, graphs, "graph")
    y = read_csv(raw / "graph-label.csv.gz", np.float32, rows=graphs)
    if published is not None:
        _check_published(folder, source.name, published, y, {part: parts[part].size for part in PARTS})
    atoms, kinds = atom_categories(), bond_categories()
    edges = np.ascontiguousarray(read_csv(raw / "edge.csv.gz", np.int64, 2, int(bonds.sum())).T)
    x = read_csv(raw / "node-feat.csv.gz", np.int64, len(atoms), int(nodes.sum()))
    attributes = read_csv(raw / "edge-feat.csv.gz", np.int64, len(kinds), int(bonds.sum()))
    made = {"x": x, "edge_index": edges, "edge_attr": attributes}
    made |= {"ptr": pointer(nodes), "edge_ptr": pointer(bonds)}
    check_graphs(raw, made, atoms, kinds)
    made["x"] = x.astype(np.int8)
    made["edge_index"] = with_inverse(edges.astype(index_type(int(nodes.max(initial=0)))))
    made["edge_attr"] = np.repeat(attributes.astype(np.int8), 2, axis=0)
    made["edge_ptr"] *= 2
    return {**made, "y": y, **parts, **_read_mapping(folder / "mapping" / "mol.csv.gz", y)}


def _check_published(where: Path, name: str, published: Molecules, y: Any, sizes: dict[str, int]) -> None:
    """Raises UserError if molecules, tasks or the split aren't the published ones."""
    want = {"molecules": published.graphs, "tasks": published.tasks}
    found = dict(zip(want, y.shape, strict=True))
    if published.sizes is not None:
        want |= dict(zip(PARTS, published.sizes, strict=True))
        found |= sizes
    elif sum(sizes.values()) != published.graphs:
        want["split"], found["split"] = published.graphs, sum(sizes.values())
    if found != want:
        shown = [", ".join(f"{count:,} {what}" for what, count in each.items()) for each in (found, want)]
        raise UserError(f"{where} isn't {name}: it holds {shown[0]}; published are {shown[1]}")


def _read_mapping(path: Path, y: Any) -> Arrays:
    """Reads the molecules' SMILES and the tasks' names, as lines of bytes; nothing where there is no file."""
    import pandas as pd

    if not path.is_file():
        return {}
    with damaged(path):
        frame = pd.read_csv(path, compression="gzip", dtype=str, keep_default_na=False)
    if "smiles" not in frame or len(frame) != len(y):
        raise UserError(f"{path} must hold a column 'smiles' of {len(y):,} molecules")
    made: Arrays = {"smiles": join_texts([text.strip() for text in frame["smiles"]])}
    names = [str(name) for name in frame.columns if name not in ("smiles", "mol_id")]
    if len(names) == y.shape[1]:
        made["target_names"] = join_texts(names)
    return made


def load_molecules(
    name: str, root: Path, features: str = "full", published: Molecules | None = None
) -> Benchmark:
    """Loads one of OGB's sets of molecules, or with ``published`` ``None`` one in its layout of any size.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; unknown ``features``.
    """
    if features not in COLUMNS:
        raise UserError(f"features is '{features}'; it must be one of {', '.join(COLUMNS)}")
    columns, source = COLUMNS[features], source_of(name)
    folder = find_or_fetch(root, source)
    files = [folder / "raw" / f"{part}.csv.gz" for part in ("node-feat", "edge-feat", "edge", "graph-label")]
    files += [folder / "raw" / f"num-{what}-list.csv.gz" for what in ("node", "edge")]
    files += [folder / "split" / source.split / f"{part}.csv.gz" for part in PARTS]
    mapping = folder / "mapping" / "mol.csv.gz"
    files += [mapping] if mapping.is_file() else []
    kept = kept_graphs(
        processed_folder(root, source),
        f"{name}/1/{published}/{fingerprint_of(files)}",
        lambda: (read_molecules(folder, source, published), {}),
    ).tensors
    tensors = dict(kept)
    for part in ("x", "edge_attr") if columns else ():
        tensors[part] = tensors[part][:, :columns].contiguous()
    evaluator = OGBEvaluator(name)
    info = {"source": source.url, "raw": str(folder / "raw"), "split": source.split, "features": features}
    if note := _release_note(folder):
        info["note"] = note
    return graph_benchmark(
        name,
        tensors,
        {part: {"index": tensors[part].clone()} for part in PARTS},
        molecule_spec(tensors["y"].size(1), columns),
        targets=MOLECULES[name].kind,
        evaluator=evaluator,
        metric=evaluator.metric,
        info=info,
        citation=CITATION,
        target_names=texts_of(tensors, "target_names"),
        smiles=texts_of(tensors),
        from_smiles=functools.partial(graph_of, columns=columns),
    )


def _release_note(folder: Path) -> str:
    """Returns what the release file says, e.g. that the files were made otherwise; mostly nothing."""
    try:
        lines = (folder / "RELEASE_v1.txt").read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0].strip()[:200]


def _register(name: str, published: Molecules) -> Callable[..., Benchmark]:
    """Registers the loader of one of the sets."""

    def load(
        *,
        root: str | Path = "data",
        task: str = "graph",
        seed: int = 0,
        features: Literal["full", "simple"] = "full",
    ) -> Benchmark:
        return load_molecules(name, Path(root), features, published)

    folder = name.replace("-", "_")
    load.__name__ = load.__qualname__ = f"load_{folder}"
    load.__doc__ = f"""{name}: {published.summary}

    Split by scaffold, evaluated by OGB's evaluator. Atoms have nine categories, bonds three.

    Args:
        root: Holds ``{folder}``, ``ogb/{folder}`` or ``{published.archive}`` with OGB's ``raw``, ``split``
            and ``mapping``, or is that folder, or holds ``{published.archive}.zip``; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.
        features: ``full``, or ``simple``: the first two columns alone, an atom's element and chirality and a
            bond's type and stereo.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return register_dataset(name, task="graph", paper="arXiv:2005.00687")(load)


LOADERS = {name: _register(name, published) for name, published in MOLECULES.items()}
"""The loader of each set, by its registered name."""
