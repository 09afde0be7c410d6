"""The models of the zoo, installed as ``graphkit.models``."""

if __name__ != "graphkit.models":
    raise ImportError(
        f"this folder is graphkit.models, not '{__name__}': the root of its repository is on sys.path. "
        "If graphkit's was meant, import graphkit.models; if another package of that name was, start from "
        "another folder or set PYTHONSAFEPATH=1, and run pytest, not python -m pytest"
    )

# Imports below register what they define; keep them sorted.
from graphkit.models.epignn import Composition, EpiGNN, EpistemicPropagation, MLPComposition
from graphkit.models.fingerprint import Fingerprint
from graphkit.models.gae import GAE
from graphkit.models.gat import GAT
from graphkit.models.gated_gcn import GatedGCN
from graphkit.models.gcn import GCN
from graphkit.models.gin import GIN
from graphkit.models.graph_gcn import GraphGCN
from graphkit.models.graph_gin import GraphGIN
from graphkit.models.grit import GRIT, RRWP, GRITLayer
from graphkit.models.heuristics import AdamicAdar, CommonNeighbors, ResourceAllocation
from graphkit.models.mlp import MLP
from graphkit.models.nbfnet import NBFNet
from graphkit.models.ncn import NCN, NCNPredictor
from graphkit.models.ncn_ablation import NCNAblation
from graphkit.models.ncnc import NCNC, NCNCPredictor
from graphkit.models.rearev import ReaRev
from graphkit.models.sage import SAGE
from graphkit.models.tt_gnn import TTGNN

__all__ = [
    "GAE",
    "GAT",
    "GCN",
    "GIN",
    "GRIT",
    "MLP",
    "NCN",
    "NCNC",
    "RRWP",
    "SAGE",
    "TTGNN",
    "AdamicAdar",
    "CommonNeighbors",
    "Composition",
    "EpiGNN",
    "EpistemicPropagation",
    "Fingerprint",
    "GRITLayer",
    "GatedGCN",
    "GraphGCN",
    "GraphGIN",
    "MLPComposition",
    "NBFNet",
    "NCNAblation",
    "NCNCPredictor",
    "NCNPredictor",
    "ReaRev",
    "ResourceAllocation",
]
