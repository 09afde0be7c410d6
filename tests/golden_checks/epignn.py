"""EpiGNN: equal to the reference on its stored arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.models.epignn import EpiGNN

EPIGNN_TOLERANCE = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-11},
    torch.float32: {"atol": 2e-6, "rtol": 2e-5},
}


def build_epignn(meta: dict[str, Any]) -> EpiGNN:
    score = "cross_entropy_left" if meta["outs_as_left_arg"] else "cross_entropy"
    if meta["score_fn"].lower() == "kl":
        score = "kl"
    return EpiGNN(
        meta["relations"],
        facets=meta["facets"],
        facet_channels=meta["n"],
        pooling={"min": "min", "mul": "product"}[meta["aggr"]],
        rounds=meta["layers"],
        readout="forward" if meta["fw_only"] else "backward" if meta["bw_only"] else "both",
        score=score if meta["use_margin_loss"] else "cosine",
        margin=meta["margin"],
        negatives=meta["nneg"],
        comp_norm="official",
        probabilities=not meta["ablate_probas"],
        bilinear=not meta["ablate_compose"],
    )


def epignn_parameters(model: EpiGNN) -> dict[str, torch.nn.Parameter]:
    """Our parameters by the names of the arrays."""
    found = {"rel": model.relation, "comp": model.composition.weight}
    if model.mlp is not None:
        for number, layer in enumerate(model.mlp.map[::2]):
            found |= {f"mlp_w{number}": layer.weight, f"mlp_b{number}": layer.bias}
    return found


def check(path: Path) -> None:
    arrays = np.load(path)
    meta = json.loads(str(arrays["meta"]))
    model = build_epignn(meta).to(torch.tensor(arrays["param_rel"]).dtype)
    model._warned = True  # some paths are longer than the rounds
    parameters = epignn_parameters(model)
    assert set(parameters.values()) == set(model.parameters())
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.tensor(arrays[f"param_{name}"]))
    if meta["use_margin_loss"]:
        assert_same(arrays, "rel_prob", model.relation.softmax(2))
    with torch.no_grad():
        check_epignn_rounds(model, arrays)

    edges = torch.tensor(arrays["edge_index"]), torch.tensor(arrays["edge_type"])
    ends, y = torch.tensor(arrays["query"]), torch.tensor(arrays["target"])
    node, graph = torch.tensor(arrays["path_nodes"]), torch.tensor(arrays["path_graph"])
    given = {"num_nodes": arrays["node_graph"].size, "path_node": node, "path_graph": graph}
    out = model.answer(*edges, *ends, **given)
    scores = model.score(out)
    torch.testing.assert_close(model(*edges, *ends, **given), scores)
    if meta["use_margin_loss"]:
        assert_same(arrays, "out", out)
        assert_same(arrays, "scores", scores)
        loss = model.margin_loss(scores, y, torch.tensor(arrays["neg_idx"])).mean()
    else:
        assert_same(arrays, "logits", scores)
        loss = model.training_loss(*edges, *ends, y, **given).mean()
    assert_same(arrays, "loss", loss)
    loss.backward()
    for name, parameter in parameters.items():
        if arrays[f"grad_{name}"].size:
            assert_same(arrays, f"grad_{name}", parameter.grad)
        else:
            assert parameter.grad is None


def assert_same(arrays: Any, name: str, found: Tensor | None, number: int | None = None) -> None:
    expected = torch.tensor(arrays[name] if number is None else arrays[name][number])
    tolerance = EPIGNN_TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, **tolerance, msg=lambda m: f"{name} {number}: {m}")


def check_epignn_rounds(model: EpiGNN, arrays: Any) -> None:
    """Compares every round: what enters it, the messages of the first, and what leaves it.

    What leaves is stored before anchors are put back: here each has a twin that hears what the anchor hears.
    """
    a, relation = model.composition.tensor(), model.relation.softmax(2)
    assert_same(arrays, "A", a)
    edges, kind = torch.tensor(arrays["edge_index"]), torch.tensor(arrays["edge_type"])
    ends, path = torch.tensor(arrays["query"]), torch.tensor(arrays["path_nodes"])
    nodes, rounds, final = arrays["node_graph"].size, model.propagation.rounds, []
    for name, letters, anchor, row in (("forward", "fw", ends[0], 1), ("backward", "bw", ends[1], 0)):
        twin = torch.full((nodes,), -1)
        twin[anchor] = torch.arange(nodes, nodes + anchor.numel())
        heard = twin[edges[row]] >= 0
        copies = edges[:, heard].clone()
        copies[row] = twin[copies[row]]
        union, kinds = torch.cat([edges, copies], 1), torch.cat([kind, kind[heard]])
        for number in range(rounds):
            model.propagation.rounds = number + 1
            every = nodes + anchor.numel()
            state = model._beliefs(relation, a, (union, kinds), (name,), [anchor], every, None)
            after = state[:nodes].index_copy(0, anchor, state[nodes:])
            assert_same(arrays, f"h_{letters}_out", after, number)
            if number + 1 < rounds:
                assert_same(arrays, f"h_{letters}_in", state[:nodes], number + 1)
        final.append(state[path])
        start = torch.tensor(arrays[f"h_{letters}_in"][0])
        told = start[edges[1 - row]], relation[kind]
        compose = model.composition if model.mlp is None else model.mlp
        assert_same(arrays, f"msg_{letters}_0", compose(*(told if row else told[::-1])))
    assert_same(arrays, "path_compose", model.composition(*final))
