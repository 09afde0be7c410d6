"""Every model equals its reference implementation on stored arrays, forward and backward.

One sub-folder a family of models; a file without a check fails, so that none is overlooked.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data

from graphkit.kernels import tt_lookup
from graphkit.models.grit import GRIT, RRWP, WalkEncoding, from_official
from graphkit.nn.embedding import TTEmbedding, TTShape
from graphkit.nn.embedding.tt_engines import Engine
from graphkit.nn.embedding.tt_init import orthogonal_cores
from graphkit.nn.pairs import PairStructure, Rows
from graphkit.registry import MODELS
from graphkit.sparse import CSRGraph

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared" / "golden"


def golden_root() -> Path:
    named = os.environ.get("GRAPHKIT_GOLDEN")
    return Path(named) if named else SHARED if SHARED.is_dir() else TESTS / "golden"


def golden_files() -> Iterator[Any]:
    for path in sorted({*golden_root().rglob("*.npz"), *(TESTS / "golden").rglob("*.npz")}):
        place = "repository" if TESTS in path.parents else "shared"
        yield pytest.param(path, id=f"{place}-{path.parent.name}-{path.stem}")


# --- NCN and its relatives ---------------------------------------------------------------------------------

EXACT = {"atol": 1e-12, "rtol": 1e-12}
FORWARD, BACKWARD = {"atol": 1e-5, "rtol": 1e-5}, {"atol": 2e-5, "rtol": 1e-4}
ENCODER_KEYS = {"xemb.1": "input", "xemb.0.weight": "input.table", "jkparams": "jumping"}
BLOCKS = {
    "xlin": ("node_mlp", {"0": "0", "3": "2", "4": "3"}),
    "xcnlin": ("common_mlp", {"0": "0", "3": "2", "4": "3", "7": "4"}),
    "xcn12lin": ("second_mlp", {"0": "0", "3": "2", "4": "3", "7": "4"}),
    "xcnreslin": ("second_mlp", {"0": "0", "3": "2", "4": "3", "7": "4"}),
    "xijlin": ("pair_mlp", {"0": "0", "1": "1", "4": "2"}),
    "ptlin": ("prior_mlp", {"0": "0", "2": "2"}),
}
MODEL_OF = {"cn0": "gae", "cn1": "ncn", "incn1cn1": "ncnc"}
VARIANT_OF = {
    "scn1": "gae-cn",
    "catscn1": "gae-cn-concat",
    "sincn1cn1": "gae-cnc",
    "cn1.5": "ncn2",
    "cn1res": "ncn-diff",
}


def our_key(key: str, two_layers: bool) -> tuple[str, bool]:
    """Returns our name of a reference parameter, and whether ours is its transpose."""
    part, name = key.split(".", 1)
    if part == "enc":
        for old, new in ENCODER_KEYS.items():
            if name.startswith(old):
                return f"encoder.{name.replace(old, new)}", old == "xemb.1" and name.endswith("weight")
        name = name.replace(".lin.weight", ".weight").replace("lins.", "norms.")
        parts = name.split(".")
        if parts[0] == "norms":
            name = f"norms.{parts[1]}.{parts[3]}"
        return f"encoder.{name}", parts[0] == "convs" and name.endswith("weight")
    block, *rest = name.split(".")
    if block == "lin":
        last = "4" if two_layers else "2"
        at = {"0": "0", "1": "1", "4": "2", "5": "3", "8": last}[rest[0]]
        return f"predictor.head.{at}.{rest[1]}", False
    if block in BLOCKS:
        new, places = BLOCKS[block]
        return f"predictor.{new}.{places[rest[0]]}.{rest[1]}", False
    return f"predictor.{name}", False


def build_link_model(meta: dict[str, Any], arrays: Any) -> torch.nn.Module:
    encoder, predictor, options = meta["encoder"], meta["predictor"], meta["predictor_kwargs"]
    embedded = encoder.get("max_x", -1) >= 0
    arguments: dict[str, Any] = {
        "in_channels": None if embedded else meta["in_dim"],
        "num_nodes": encoder["max_x"] + 1 if embedded else None,
        "hidden_channels": meta["hidden"],
        "num_layers": encoder["num_layers"],
        "conv": encoder["conv_fn"],
        "layer_norm": encoder["ln"],
        "residual": encoder["res"],
        "jumping": encoder["jk"],
        "predictor_norm": options.get("ln", False),
        "tail_activation": options.get("tailact", False),
        "two_layer_head": options.get("twolayerlin", False),
    }
    if predictor != "cn0":
        arguments |= {
            "node_mlp": options.get("use_xlin", False),
            "beta": options.get("beta", 1.0),
            "parity": True,
        }
    if predictor in ("incn1cn1", "sincn1cn1"):
        arguments |= {
            "depth": options.get("depth", 1),
            "scale": options["scale"],
            "offset": options["offset"],
            "prior": options["pt"],
            "ceiling": options["alpha"],
            "learn_prior": options.get("learnablept", False) or "grad.pred.ptlin.0.weight" in arrays,
            "chunk_bytes": 6 * 4 * meta["hidden"] * 256,
        }
    name = MODEL_OF.get(predictor, "ncn-ablation")
    if name == "ncn-ablation":
        arguments["variant"] = VARIANT_OF[predictor]
    return MODELS.create(name, **arguments)


def stored_rows(arrays: Any, prefix: str, count: int) -> Rows:
    row, col = torch.tensor(arrays[f"{prefix}_row"]), torch.tensor(arrays[f"{prefix}_col"], dtype=torch.int32)
    ptr = torch.zeros(count + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=count), 0, out=ptr[1:])
    return Rows(ptr, col, torch.tensor(arrays[f"{prefix}_val"]))


def stored_structure(arrays: Any, call: str, count: int) -> PairStructure:
    """The lists that the reference drew at random, in place of our own draw."""
    only_i, only_j = (stored_rows(arrays, f"{call}/{side}", count) for side in ("res_i", "res_j"))
    inner = []
    for number, side in enumerate((only_i, only_j)):
        inner.append(stored_rows(arrays, f"{call}/sub{number}/cn", side.node.numel()))
    ptr = torch.cat([inner[0].ptr, inner[1].ptr[1:] + inner[0].ptr[-1]])
    both = Rows(ptr, *(torch.cat(pair) for pair in list(zip(*inner, strict=True))[1:]))
    return PairStructure(stored_rows(arrays, f"{call}/cn", count), only_i, only_j, PairStructure(both))


def assert_rows(rows: Rows, arrays: Any, prefix: str) -> None:
    row, order = rows.owner().numpy(), np.lexsort((rows.node.numpy(), rows.owner().numpy()))
    assert np.array_equal(row[order], arrays[f"{prefix}_row"])
    assert np.array_equal(rows.node.numpy()[order], arrays[f"{prefix}_col"])


def check_ncn(path: Path) -> None:
    arrays = np.load(path)
    meta = json.loads(str(arrays["meta_json"]))
    model = build_link_model(meta, arrays).eval()
    two_layers = meta["predictor_kwargs"].get("twolayerlin", False)
    ours = dict(model.named_parameters())
    gradients: dict[str, Tensor] = {}
    for key in arrays.files:
        if not key.startswith(("enc.", "pred.")):
            continue
        name, transposed = our_key(key, two_layers)
        if name not in ours:
            assert f"grad.{key}" not in arrays.files, (
                f"{key} is trained by the reference, but we have no {name}"
            )
            continue
        value = torch.tensor(arrays[key])
        ours[name].data.copy_(value.t() if transposed else value)
        expected = torch.tensor(arrays[f"grad.{key}"])
        gradients[name] = expected.t() if transposed else expected
    assert gradients.keys() == ours.keys()

    graph = CSRGraph.from_edge_index(torch.tensor(arrays["msg_edges"]).t(), meta["num_nodes"])
    assert np.array_equal(graph.rowptr.numpy(), arrays["adj_rowptr"])
    assert np.array_equal(graph.col.numpy(), arrays["adj_col"])
    pairs = torch.tensor(arrays["targets"]).t().contiguous()
    sampled = meta["predictor_kwargs"].get("cndeg", 0) > 0
    structure = stored_structure(arrays, "stage/call", pairs.size(1)) if sampled else None

    h = model.encode(torch.tensor(arrays["x"]), graph)
    h.retain_grad()
    score = model.score(h, graph, pairs, structure)
    torch.testing.assert_close(h, torch.tensor(arrays["h"]), **FORWARD)
    torch.testing.assert_close(score, torch.tensor(arrays["score"]).squeeze(1), **FORWARD)
    loss = F.softplus(-score[:4]).mean() + F.softplus(score[4:]).mean()
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(arrays["loss"]).reshape(()), **FORWARD)
    torch.testing.assert_close(h.grad, torch.tensor(arrays["grad_h"]), **BACKWARD)
    for name, expected in gradients.items():
        torch.testing.assert_close(ours[name].grad, expected, **BACKWARD, msg=lambda m, n=name: f"{n}: {m}")
    if not sampled:
        check_stages(model, h.detach(), graph, pairs, arrays)


@torch.no_grad()
def check_stages(model: Any, h: Tensor, graph: CSRGraph, pairs: Tensor, arrays: Any) -> None:
    call, predictor = "stage/call", model.predictor
    structure = predictor.structure(graph, pairs)
    pair_in = h[pairs[0]] * h[pairs[1]]
    torch.testing.assert_close(pair_in, torch.tensor(arrays[f"{call}/xijlin_in"]), **FORWARD)
    torch.testing.assert_close(
        predictor.pair_mlp(pair_in), torch.tensor(arrays[f"{call}/xijlin_out"]), **FORWARD
    )
    if structure is None:
        return
    kept = model.score(h, graph, pairs, structure)
    torch.testing.assert_close(kept, torch.tensor(arrays["score"]).squeeze(1), **FORWARD)
    assert_rows(structure.common, arrays, f"{call}/cn")
    if f"{call}/res_i_row" in arrays.files:
        assert_rows(structure.only_i, arrays, f"{call}/res_i")
        assert_rows(structure.only_j, arrays, f"{call}/res_j")
    if f"{call}/res_i_prob" in arrays.files:
        nodes = predictor._nodes(h)
        found = predictor._completion(nodes, graph, pairs, structure, predictor.depth)
        expected = np.concatenate([arrays[f"{call}/res_{side}_prob"].ravel() for side in "ij"])
        torch.testing.assert_close(found, torch.tensor(expected), **FORWARD)


# --- tensor-train embeddings -------------------------------------------------------------------------------


def tt_module(arrays: Any, engine: Any, dtype: torch.dtype) -> TTEmbedding:
    p, q, ranks = (arrays[name].tolist() for name in ("p", "q", "ranks"))
    sizes = {"rank": ranks[1:-1], "row_factors": p, "column_factors": q}
    emb = TTEmbedding(int(arrays["N"]), math.prod(q), engine=engine, **sizes).to(dtype)
    for k, core in enumerate(emb.cores):
        core.data.copy_(torch.tensor(arrays[f"core{k}"]).transpose(0, 1))
    return emb


def assert_tt_gradients(emb: TTEmbedding, loss: Tensor, arrays: Any, name: str, **tolerance: float) -> None:
    torch.testing.assert_close(loss.double(), torch.tensor(arrays[f"loss_{name}"]).reshape(()), **tolerance)
    for k, found in enumerate(torch.autograd.grad(loss, list(emb.cores))):
        expected = torch.tensor(arrays[f"grad_{name}_core{k}"]).transpose(0, 1)
        torch.testing.assert_close(found.double(), expected, **tolerance)


def check_tt(path: Path) -> None:
    arrays = np.load(path)
    if "gauss0" in arrays.files:
        return check_tt_start(arrays)
    ids = torch.tensor(arrays["idx"])
    for engine, dtype in itertools.product(get_args(Engine), (torch.float64, torch.float32)):
        exact = dtype is torch.float64
        forward = {"atol": 1e-12, "rtol": 1e-12} if exact else {"atol": 1e-5, "rtol": 1e-5}
        backward = {"atol": 1e-10, "rtol": 1e-10} if exact else {"atol": 1e-3, "rtol": 1e-4}
        emb = tt_module(arrays, engine, dtype)
        rows = emb(ids)
        torch.testing.assert_close(rows.double(), torch.tensor(arrays["rows"]), **forward)
        linear = (rows * torch.tensor(arrays["w"]).to(dtype)).sum()
        assert_tt_gradients(emb, linear, arrays, "linear", **backward)
        assert_tt_gradients(emb, 0.5 * emb(ids).square().sum(), arrays, "quadratic", **backward)
        if "table" in arrays.files:
            torch.testing.assert_close(emb.weight().double(), torch.tensor(arrays["table"]), **forward)


def check_tt_start(arrays: Any) -> None:
    p, q, ranks = (tuple(arrays[name].tolist()) for name in ("p", "q", "ranks"))
    shape = TTShape(math.prod(p), math.prod(q), p, q, ranks)
    cores = orthogonal_cores(shape, gaussians=[torch.tensor(arrays[f"gauss{k}"]) for k in range(len(p))])
    table = tt_lookup(cores, torch.arange(shape.capacity))
    for k, core in enumerate(cores):
        torch.testing.assert_close(core.transpose(0, 1), torch.tensor(arrays[f"core{k}"]), **EXACT)
    torch.testing.assert_close(table, torch.tensor(arrays["table_padded"]), **EXACT)
    torch.testing.assert_close(table.t() @ table, torch.eye(table.size(1)).double(), **EXACT)


# --- GRIT --------------------------------------------------------------------------------------------------

GRIT_FORWARD = {torch.float64: EXACT, torch.float32: {"atol": 5e-5, "rtol": 1e-5}}
# The signed root turns a rounding error of 1e-7 near 0 into 3e-4, and its derivative is unbounded there: in
# float32 what is right behind it, and gradients beside the largest one, are less exact.
GRIT_ROOT = {torch.float64: EXACT, torch.float32: {"atol": 1e-3, "rtol": 1e-5}}
GRIT_GRADIENT = {torch.float64: 1e-11, torch.float32: 1e-2}


def build_grit(meta: dict[str, Any]) -> GRIT:
    settings = meta["settings"]
    node, edge = settings["dataset.node_encoder_name"], settings["dataset.edge_encoder_name"]
    return GRIT(
        None if node == "TypeDictNode" else meta["dim_in"],
        meta["dim_out"],
        node_categories=[settings["dataset.node_encoder_num_types"]] if node == "TypeDictNode" else None,
        edge_categories=[settings["dataset.edge_encoder_num_types"]] if edge == "TypeDictEdge" else None,
        hidden_channels=meta["D"],
        num_layers=meta["layers"],
        heads=meta["H"],
        walk_steps=meta["K"],
        duplicates="overwrite",
        full_attention=settings.get("gt.attn.full_attn", True),
        attention_dropout=0.0,
        norm="layer" if settings["gt.layer_norm"] else "batch",
        pair_norm=settings.get("gt.attn.norm_e", True),
        pair_map=settings.get("gt.attn.O_e", True),
        edge_enhance=settings.get("gt.attn.edge_enhance", True),
        degree_scaler=settings.get("gt.attn.deg_scaler", True),
        update_pairs=settings.get("gt.update_e", True),
        clamp=settings.get("gt.attn.clamp", 5.0),
        bn_momentum=settings.get("gt.bn_momentum", 0.1),
        pooling={"add": "sum"}.get(settings.get("model.graph_pooling"), "mean"),
        head={"san_graph": "san", "default": "mlp", "inductive_node": "node"}[settings["gnn.head"]],
        head_layers=settings.get("gnn.layers_post_mp", 1),
        head_l2norm=True,
        unused_parameters=True,
    )


def check_grit(path: Path) -> None:
    arrays = np.load(path)
    meta = json.loads(str(arrays["meta_json"]))
    exact = path.stem.endswith("_f64")
    dtype = torch.float64 if exact else torch.float32
    # double precision comes without weights and inputs of its own, unless the file stands alone
    alone = any(name.startswith("w/") for name in arrays.files)
    source = arrays if alone else np.load(path.with_name(path.name.replace("_f64", "")))
    inputs = {name: torch.tensor(source[name]) for name in source.files if name != "meta_json"}
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    weights = {name[2:]: value for name, value in inputs.items() if name.startswith("w/")}
    model = build_grit(meta).to(dtype)
    model.load_state_dict(from_official(weights))
    check_walks(inputs, meta["K"])
    for mode in ("eval", "train"):
        model.load_state_dict(from_official(weights))
        model.zero_grad()
        check_grit_mode(model.train(mode == "train"), mode, inputs, arrays, dtype)
    found = model.state_dict()
    for name, expected in from_official(stored_group(arrays, "train/after/")).items():
        torch.testing.assert_close(
            found[name], expected, **GRIT_FORWARD[dtype], msg=lambda m, n=name: f"{n}: {m}"
        )


def stored_group(arrays: Any, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.tensor(arrays[name])
        for name in arrays.files
        if name.startswith(prefix)
    }


def check_walks(inputs: dict[str, Tensor], steps: int) -> None:
    """Our encodings of every graph, and of all together, are those stored."""
    for graph in ("g0", "g1", "g2", "in"):
        if f"{graph}/x" not in inputs:
            continue
        data = Data(edge_index=inputs[f"{graph}/edge_index"], num_nodes=inputs[f"{graph}/x"].size(0))
        if graph == "in":
            data.ptr = inputs["in/ptr"]
        made = RRWP(steps, duplicates="overwrite")(data)
        for name in WalkEncoding._fields:
            expected = inputs[f"{graph}/{name}"]
            torch.testing.assert_close(made[name].to(expected.dtype), expected, atol=1e-6, rtol=1e-6)


def check_grit_mode(
    model: GRIT, mode: str, inputs: dict[str, Tensor], arrays: Any, dtype: torch.dtype
) -> None:
    def assert_equal(found: Tensor, name: str) -> None:
        if not whole and f"{mode}/{name}" not in arrays.files:
            return
        expected = torch.tensor(arrays[f"{mode}/{name}"])
        tolerance = (GRIT_ROOT if name.endswith("attn_e") else GRIT_FORWARD)[dtype]
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda m: f"{mode}/{name}: {m}")

    whole = f"{mode}/enc_rel/pair" in arrays.files  # the repository's own file is a part, to keep it small
    x, edge_index, edge_attr = inputs["in/x"], inputs["in/edge_index"], inputs.get("in/edge_attr")
    walks = WalkEncoding(*(inputs[f"in/{name}"] for name in WalkEncoding._fields))
    sizes = inputs["in/ptr"].diff()
    structure = model.structure(edge_index, sizes, walks)
    source, target = torch.tensor(arrays["train/enc_rel/pair_index"])
    rows = structure.pairs.find(target, source)  # theirs are sorted by source
    assert torch.equal(rows.sort().values, torch.arange(structure.pairs.num_pairs))

    h, state = model.encode(x, edge_attr, structure)
    assert_equal(h, "enc_abs/x")
    assert_equal(state.normalised()[rows], "enc_rel/pair")
    updates = model.layers[0].update_pairs
    for number, layer in enumerate(model.layers):
        if f"{mode}/layer{number}/alpha" in arrays.files:
            alpha, hat = layer.attention(h, state, structure.pairs)
            assert_equal(alpha[rows, :, None], f"layer{number}/alpha")
            assert_equal(hat[rows], f"layer{number}/attn_e")
            layer.eval()  # running statistics move once only
            o = layer.attend(h, state, structure.pairs)[0]
            layer.train(model.training)
            assert_equal(o.unflatten(1, (layer.heads, -1)), f"layer{number}/attn_h")
        # theirs compute pairs that nobody reads, and count them in running statistics
        layer.update_pairs = True
        h, following = layer(h, state, structure.pairs, structure.log_degree)
        state = following if updates else state
        layer.update_pairs = updates and number < len(model.layers) - 1
        assert_equal(h, f"layer{number}/x")
        assert_equal(state.normalised()[rows], f"layer{number}/pair")
    prediction = model.readout(h, None, sizes)
    assert_equal(prediction, "pred")
    loss = F.mse_loss(prediction, inputs["in/y"])
    loss = loss + 0.1 * h.square().mean() + 0.1 * state.normalised().square().mean()
    assert_equal(loss, "loss")
    if whole:
        loss.backward()
        check_grit_gradients(model, mode, arrays, dtype)
    if mode == "eval":
        assert_equal(model(x, edge_index, edge_attr, sizes=sizes, walks=walks), "pred")
        own = model(x, edge_index, edge_attr, sizes=sizes)  # theirs were computed in float32
        torch.testing.assert_close(own, prediction, atol=1e-4, rtol=1e-4)


def check_grit_gradients(model: GRIT, mode: str, arrays: Any, dtype: torch.dtype) -> None:
    expected = from_official(stored_group(arrays, f"{mode}/grad/"))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        off = float((parameter.grad - expected[name]).abs().max())
        assert off <= GRIT_GRADIENT[dtype] * max(largest, 1e-3), (
            f"{mode}: the gradient of {name} is off by {off}"
        )


# --- one row a family --------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Path], None]] = {"grit": check_grit, "ncnc": check_ncn, "tt": check_tt}
NOT_YET = {"epignn", "rearev"}  # families whose model isn't in the zoo so far


@pytest.mark.parametrize("path", list(golden_files()))
def test_model_reproduces_its_reference(path: Path) -> None:
    family = path.parent.name
    if family in NOT_YET:
        pytest.skip(f"{family} isn't in the zoo yet")
    assert family in CHECKS, f"no check reads {path.name}; add a row to CHECKS"
    CHECKS[family](path)


@pytest.mark.parametrize("family", sorted(NOT_YET))
def test_no_registered_model_goes_without_its_check(family: str) -> None:
    assert not MODELS.names(f"{family}*"), f"{family} is registered: move it from NOT_YET to CHECKS"
