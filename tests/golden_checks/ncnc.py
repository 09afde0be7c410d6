"""NCN, NCNC and their ablations: equal to the reference on its stored arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphkit.nn.pairs import PairStructure, Rows
from graphkit.registry import MODELS
from graphkit.sparse import CSRGraph

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


def check(path: Path) -> None:
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
