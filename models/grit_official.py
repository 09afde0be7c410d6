"""The authors' names of GRIT's weights, in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_official"]

# Parts of a name, in order: the first pattern that matches decides.
_RULES = [
    (r"encoder\.node_encoder\.encoder\.(.*)", r"node_features.encoder.\1"),
    (r"encoder\.edge_encoder\.encoder\.(.*)", r"edge_features.encoder.\1"),
    (r"rrwp_abs_encoder\.fc\.(.*)", r"absolute.\1"),
    (r"rrwp_rel_encoder\.fc\.(.*)", r"relative.\1"),
    (r"(layers\.\d+)\.attention\.Q\.(.*)", r"\1.query.\2"),
    (r"(layers\.\d+)\.attention\.K\.(.*)", r"\1.key.\2"),
    (r"(layers\.\d+)\.attention\.V\.(.*)", r"\1.value.\2"),
    (r"(layers\.\d+)\.attention\.E\.(.*)", r"\1.pair.\2"),
    (r"(layers\.\d+)\.attention\.Aw", r"\1.score"),
    (r"(layers\.\d+)\.attention\.VeRow", r"\1.relation"),
    (r"(layers\.\d+)\.deg_coef", r"\1.degree"),
    (r"(layers\.\d+)\.O_h\.(.*)", r"\1.out.\2"),
    (r"(layers\.\d+)\.O_e\.(.*)", r"\1.pair_out.\2"),
    (r"(layers\.\d+)\.FFN_h_layer1\.(.*)", r"\1.ffn_in.\2"),
    (r"(layers\.\d+)\.FFN_h_layer2\.(.*)", r"\1.ffn_out.\2"),
    (r"(layers\.\d+)\.(?:batch|layer)_norm1_h\.(.*)", r"\1.norm.\2"),
    (r"(layers\.\d+)\.(?:batch|layer)_norm2_h\.(.*)", r"\1.ffn_norm.\2"),
    (r"(layers\.\d+)\.(?:batch|layer)_norm1_e\.(.*)", r"\1.pair_norm.\2"),
    (r"post_mp\.FC_layers\.(\d+)\.(.*)", r"head.layers.\1.\2"),
    (r"post_mp\.layer_post_mp\.model\.0\.Layer_(\d+)\.layer\.model\.(.*)", r"head.layers.\1.\2"),
    (r"post_mp\.layer_post_mp\.model\.(\d+)\.model\.(.*)", r"head.layers.last.\2"),
]
_TABLE = re.compile(r"encoder\.(node|edge)_encoder\..*?(?:atom|bond)_embedding_list\.(\d+)\.weight")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a model of the authors', to load them into ours.

    From github.com/LiamMa/GRIT::

        model = GRIT(..., unused_parameters=True)
        model.load_state_dict(from_official(torch.load(path, weights_only=True)["model_state"]))

    Args:
        state: Their state dictionary; a prefix ``model.`` of all names is dropped.

    Returns:
        A state dictionary for a :class:`~graphkit.models.grit.GRIT` of the same sizes and options, built with
        ``unused_parameters=True`` since theirs keeps the weights of every layer.

    Raises:
        ValueError: If a name isn't known.
    """
    made: dict[str, Tensor] = {}
    tables: dict[str, dict[int, Tensor]] = {}
    for full, value in state.items():
        name = full.removeprefix("model.")
        if name == "rrwp_rel_encoder.padding":  # zeros, for pairs without a walk
            continue
        if table := _TABLE.fullmatch(name):
            tables.setdefault(f"{table[1]}_features.encoder.weight", {})[int(table[2])] = value
            continue
        ours = next((re.sub(old, new, name) for old, new in _RULES if re.fullmatch(old, name)), None)
        if ours is None:
            raise ValueError(f"'{full}' is no weight of GRIT's that is known")
        made[ours] = value
    for ours, parts in tables.items():
        made[ours] = torch.cat([parts[k] for k in sorted(parts)])
    hidden = sum(name.endswith(".weight") for name in made if name.startswith("head.layers."))
    for name in [name for name in made if ".layers.last." in name]:
        made[name.replace("last", str(hidden - 1))] = made.pop(name)
    for name, value in made.items():  # theirs have a dimension of size 1
        if name.endswith(".score"):
            made[name] = value.squeeze(2)
        elif name.endswith(".degree"):
            made[name] = value.squeeze(0).t()
    return made
