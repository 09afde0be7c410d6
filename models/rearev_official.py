"""Weights of the authors' ReaRev under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_official"]

RENAMED = (
    (r"instruction\.question_emb", "project"),
    (r"instruction\.node_encoder", "lstm"),
    (r"instruction\.question_linear(\d+)", r"decoder.question.\1"),
    (r"instruction\.cq_linear", "decoder.combine"),
    (r"instruction\.ca_linear", "decoder.attention"),
    (r"self_att_r\.attn_linear", "relation_text.attention"),
    (r"relation_linear", "relation_embedding.project"),
    (r"type_layer\.kb_self_linear", "start"),
    (r"reasoning\.rel_linear(\d+)", r"layers.\1.relation"),
    (r"reasoning\.e2e_linear(\d+)", r"layers.\1.update"),
    (r"reasoning\.score_func", "score"),
)


def from_official(
    weights: Mapping[str, Tensor], *, embedding: bool, update: bool = True
) -> dict[str, Tensor]:
    """Returns the weights that take part in an answer, by our names.

    Two thirds of the authors' parameters take no part; they are left out.

    Args:
        weights: State of their model.
        embedding: Whether relations have embeddings; their tables exist, unused, with texts too.
        update: Whether instructions are revised: with one iteration they aren't, though the weights exist.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, ours in RENAMED:
            match = re.fullmatch(rf"{pattern}\.(\w+)", name)
            if match is not None:
                tail = match.group(match.lastindex or 0)
                found[f"{match.expand(ours)}.{tail}"] = tensor
    unused = "relation_text." if embedding else "relation_embedding."
    found = {name: tensor for name, tensor in found.items() if not name.startswith(unused)}
    channels = weights["type_layer.kb_self_linear.weight"].size(0)
    for name, tensor in found.items():
        if re.fullmatch(r"layers\.\d+\.update\.weight", name):
            found[name] = _columns(tensor, channels)
    if embedding:
        tables = [weights[f"relation_embedding{end}.weight"][:-1] for end in ("", "_inv")]
        found["relation_embedding.table"] = torch.stack(tables)  # without the line of padding
    layer = 0
    while f"reasoning.pos_emb{layer}.weight" in weights:
        offsets = [weights[f"reasoning.pos_emb{end}{layer}.weight"] for end in ("", "_inv")]
        found[f"layers.{layer}.offset"] = torch.stack(offsets)
        layer += 1
    for letter, ours in (("r", "value"), ("g", "gate")) if update else ():
        maps: list[Tensor] = []
        while f"reform{len(maps)}.fusion.{letter}.weight" in weights:
            maps.append(weights[f"reform{len(maps)}.fusion.{letter}.weight"].t())
        found[f"update.{ours}"] = torch.stack(maps)
    return found


def _columns(weight: Tensor, channels: int) -> Tensor:
    """Brings the columns [h, fwd_1, inv_1, fwd_2, ...] into our order [h, fwd_1, .., inv_1, ..]."""
    own, near = weight[:, :channels], weight[:, channels:]
    near = near.view(weight.size(0), -1, 2, channels).transpose(1, 2)
    return torch.cat([own, near.flatten(1)], 1)
