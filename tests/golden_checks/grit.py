"""GRIT: equal to the reference on its stored arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data

from graphkit.models.grit import GRIT, RRWP, WalkEncoding, from_official

EXACT = {"atol": 1e-12, "rtol": 1e-12}
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


def check(path: Path) -> None:
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
