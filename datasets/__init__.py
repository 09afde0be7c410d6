"""The data sets of the zoo, installed as ``graphkit.datasets``."""

if __name__ != "graphkit.datasets":
    raise ImportError(
        f"this folder is graphkit.datasets, not '{__name__}': the root of its repository is on sys.path. "
        "If graphkit's was meant, import graphkit.datasets; if another package of that name was, start from "
        "another folder or set PYTHONSAFEPATH=1, and run pytest, not python -m pytest"
    )

# Imports below register what they define; keep them sorted.
from graphkit.datasets import (
    algebra,
    builtin,
    clutrr,
    countries,
    csl,
    custom,
    digit_graphs,
    graphlog,
    inductive_kg,
    kgqa_files,
    kgqa_folder,
    metaqa,
    nci,
    ogb,
    ogb_graphs,
    ogb_mag,
    ogb_papers,
    pathquestion,
    pcqm4m,
    peptides,
    planetoid,
    pyg_graphs,
    reasoning,
    smiles_csv,
    tu,
    zinc,
)

__all__ = [
    "algebra",
    "builtin",
    "clutrr",
    "countries",
    "csl",
    "custom",
    "digit_graphs",
    "graphlog",
    "inductive_kg",
    "kgqa_files",
    "kgqa_folder",
    "metaqa",
    "nci",
    "ogb",
    "ogb_graphs",
    "ogb_mag",
    "ogb_papers",
    "pathquestion",
    "pcqm4m",
    "peptides",
    "planetoid",
    "pyg_graphs",
    "reasoning",
    "smiles_csv",
    "tu",
    "zinc",
]
