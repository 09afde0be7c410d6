"""The layer of GRIT and its formula, the folded norm of pairs, what recomputing keeps."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.models.grit import GRITLayer
from graphkit.nn.node_pairs import NodePairs
from graphkit.nn.relative import PairBatchNorm, PairState, layers_per_group, run_layers

EXACT = {"atol": 1e-10, "rtol": 1e-10}


# --- The formula -------------------------------------------------------------------------------------------


def naive_layer(layer: GRITLayer, x: Tensor, e: Tensor, pairs: NodePairs, log_degree: Tensor) -> tuple:
    """The formula of the file's head, without dropout, one query and one head at a time."""
    c, heads = layer.score.shape
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    both = layer.pair(e).view(-1, heads, 2, c)
    rows, hats = [], []
    for i in range(x.size(0)):
        part = slice(int(pairs.rowptr[i]), int(pairs.rowptr[i + 1]))
        keys, results, updated = pairs.key[part].long(), [], []
        for h in range(heads):
            own = slice(h * c, (h + 1) * c)
            t = (q[i, own] + k[keys][:, own]) * both[part, h, 0]
            hat = torch.sign(t) * t.abs().sqrt() + both[part, h, 1]
            hat = hat.relu() if layer.attention_activation == "relu" else hat
            score = hat @ layer.score[:, h]
            score = score if layer.clamp is None else score.clamp(-layer.clamp, layer.clamp)
            alpha = score.softmax(0)
            o = alpha @ v[keys][:, own]
            if layer.relation is not None:
                o = o + (alpha @ hat) @ layer.relation[:, h]
            results.append(o)
            updated.append(hat)
        rows.append(torch.cat(results))
        hats.append(torch.cat(updated, 1))
    o, hat = torch.stack(rows), torch.cat(hats)
    if layer.degree is not None:
        o = o * layer.degree[0] + log_degree[:, None] * o * layer.degree[1]
    h = layer.norm(x + layer.out(o))
    act = F.relu if layer.activation == "relu" else F.gelu
    h = layer.ffn_norm(h + layer.ffn_out(act(layer.ffn_in(h))))
    if not layer.update_pairs:
        return h, e
    e = e + (hat if layer.pair_out is None else layer.pair_out(hat))
    return h, e if layer.pair_norm is None else layer.pair_norm(e)


LAYER_OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "layer norm": {"norm": "layer"},
    "gelu, biases": {"activation": "gelu", "use_bias": True},
    "no activation, no clamp": {"attention_activation": "none", "clamp": None},
    "tight clamp": {"clamp": 0.2},
    "bare": {"pair_norm": False, "pair_map": False, "edge_enhance": False, "degree_scaler": False},
    "constant pairs": {"update_pairs": False},
    "momentum": {"bn_momentum": 0.3},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", LAYER_OPTIONS)
def test_layer_computes_the_formula_and_its_gradient(case: str, training: bool) -> None:
    layer = GRITLayer(6, 2, **LAYER_OPTIONS[case]).double().train(training)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.is_floating_point():  # no norm sits at its start
            tensor.data.add_(0.3 * torch.rand_like(tensor) + (0.5 if name.endswith("var") else 0))
    other = copy.deepcopy(layer)
    pairs = NodePairs.of(*torch.randint(7, (2, 40)), 7)
    pairs = NodePairs.of(
        torch.cat([pairs.query(), torch.arange(7)]), torch.cat([pairs.key, torch.arange(7)]), 7
    )
    x, e, degree = (
        torch.randn(7, 6).double(),
        torch.randn(pairs.num_pairs, 6).double(),
        torch.rand(7).double(),
    )
    losses, gradients = [], []
    for module, run in ((layer, layer), (other, lambda *args: naive_layer(other, *args))):
        leaves = [x.clone().requires_grad_(), e.clone().requires_grad_()]
        h, pair = run(*leaves, pairs, degree)
        losses.append((h, pair))
        loss = (h * torch.linspace(-1, 1, 6)).sum() + (pair.square() * torch.linspace(0, 1, 6)).sum()
        wanted = [*leaves, *module.parameters()]
        gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(losses[0], losses[1], **EXACT)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-8, rtol=1e-8)
    for (name, found), expected in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, expected, **EXACT, msg=name)


def test_layer_takes_and_returns_plain_pairs_or_pairs_whose_norm_is_to_come() -> None:
    layer, pairs = GRITLayer(8, 2).eval(), NodePairs.full(torch.tensor([3, 2]))
    x, value, degree = torch.randn(5, 8), torch.randn(13, 8), torch.rand(5)
    scale, shift = torch.rand(8), torch.rand(8)
    h, state = layer(x, PairState(value, scale, shift), pairs, degree)
    same, pair = layer(x, value * scale + shift, pairs, degree)
    torch.testing.assert_close(h, same)
    torch.testing.assert_close(state.normalised(), pair)
    assert state.scale is not None
    with pytest.raises(ValueError, match="log_degree is None"):
        layer(x, value, pairs)


@pytest.mark.parametrize("rows", [50, 2, 1, 0])
def test_folded_norm_is_batch_normalisation_of_the_rows(rows: int) -> None:
    folded, plain = PairBatchNorm(4, momentum=0.2).double(), nn.BatchNorm1d(4, momentum=0.2).double()
    nn.init.normal_(folded.weight)
    nn.init.normal_(folded.bias)
    folded.running_mean += 0.5
    plain.load_state_dict(folded.state_dict())
    for training in (True, True, False):
        y = (3 + 2 * torch.randn(rows, 4).double()).requires_grad_()
        wide = y.detach().clone().requires_grad_()
        moments = torch.stack([y.sum(0), y.square().sum(0)])
        scale, shift = folded.train(training).fold(moments, rows)
        found = y * scale + shift
        expected = plain.train(training and rows > 1)(wide)
        torch.testing.assert_close(found, expected, **EXACT)
        g = torch.randn(rows, 4).double()
        for parts in zip(
            torch.autograd.grad(found, [y, folded.weight, folded.bias], g),
            torch.autograd.grad(expected, [wide, plain.weight, plain.bias], g),
            strict=True,
        ):
            torch.testing.assert_close(*parts, **EXACT)
    torch.testing.assert_close(folded.state_dict(), plain.state_dict(), **EXACT)
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_weights_start_as_published() -> None:
    d, heads = 96, 4
    layer, c = GRITLayer(d, heads, use_bias=True), d // heads
    expected = {
        "query.weight": math.sqrt(2 / (2 * d)),
        "value.weight": math.sqrt(2 / (2 * d)),
        "pair.weight": math.sqrt(2 / (3 * d)),
        "score": math.sqrt(2 / (heads + c)),
        "relation": math.sqrt(2 / (heads * c + c * c)),
        "degree": math.sqrt(2 / (2 * d + 2)),
        "out.weight": 1 / math.sqrt(3 * d),
    }
    for name, std in expected.items():
        assert layer.get_parameter(name).std().item() == pytest.approx(std, rel=0.2), name
    assert layer.query.bias.abs().max() <= 1 / math.sqrt(d)


# --- Memory ------------------------------------------------------------------------------------------------


def test_groups_are_as_large_as_the_budget_allows() -> None:
    assert layers_per_group(10, 100, None) == 10
    assert layers_per_group(10, 100, 1000) == 10
    assert layers_per_group(10, 100, 900) == 7  # 2 inputs of groups and 7 within one
    assert layers_per_group(10, 100, 700) == 5
    assert layers_per_group(16, 100, 1) == 4
    assert layers_per_group(1, 100, 1) == 1


def test_recomputing_keeps_fewer_states_of_pairs() -> None:
    pairs, kept = NodePairs.full(torch.tensor([9])), []
    layers = nn.ModuleList(GRITLayer(8, 2) for _ in range(9))
    for group in (9, 3):
        stored: set[int] = set()

        def note(tensor: Tensor, stored: set[int] = stored) -> Tensor:
            if tensor.dim() == 2 and tensor.size(0) == pairs.num_pairs:
                stored.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            state = PairState(torch.randn(81, 8, requires_grad=True))
            x, _ = run_layers(layers, torch.randn(9, 8), state, pairs, torch.rand(9), group=group)
        kept.append(len(stored))
        x.sum().backward()
    assert kept[1] <= kept[0] // 2
