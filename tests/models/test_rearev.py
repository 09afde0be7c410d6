"""ReaRev against its equations, fact by fact, what its answers don't depend on, and its explanations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from graphkit.models.rearev import ReaRev

Given = dict[str, Any]
R, E = 4, 6  # relations; width of texts


def make(relations: int = R, text_channels: int = E, **options: Any) -> ReaRev:
    """A model in double precision whose answers are far from even."""
    model = ReaRev(relations, text_channels, **{"hidden_channels": 5, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.score.weight.mul_(3)
    return model


def questions(sizes: tuple[int, ...] = (6, 1, 4), facts: int = 7, seeds: int = 2, tokens: int = 5) -> Given:
    """Questions with parallel and reflexive facts, entities without any, and texts of all lengths."""
    start = torch.tensor([0, *sizes]).cumsum(0)
    ends = [torch.randint(int(a), int(b), (2, facts)) for a, b in pairwise(start)]
    named = [torch.randperm(n)[: min(seeds, n)] + a for n, a in zip(sizes, start, strict=False)]
    edge_index = torch.cat([*ends, ends[0][:, :2]], 1)  # two facts are listed twice
    kinds = [torch.randint(R, (facts,)) for _ in sizes]
    lengths = torch.randint(1, tokens + 1, (len(sizes), 1))
    return {
        "edge_index": edge_index,
        "edge_type": torch.cat([*kinds, kinds[0][:2]]),
        "ptr": start,
        "seed": torch.cat(named),
        "question": torch.randn(len(sizes), tokens, E, dtype=torch.float64),
        "question_mask": torch.arange(tokens) < lengths,
        **texts(),
    }


def texts() -> Given:
    made: Given = {}
    for name in ("relation", "relation_inverse"):
        made[name] = torch.randn(R, 3, E, dtype=torch.float64)
        made[f"{name}_mask"] = torch.arange(3) < torch.randint(1, 4, (R, 1))
    return made


def textbook(model: ReaRev, asked: Given, candidate: Tensor | None = None) -> Tensor:
    """The equations, a question and a fact at a time."""
    parts = []
    for b in range(asked["ptr"].numel() - 1):
        first, last = int(asked["ptr"][b]), int(asked["ptr"][b + 1])
        facts = [
            (int(h) - first, int(r), int(t) - first)
            for (h, t), r in zip(asked["edge_index"].t(), asked["edge_type"], strict=True)
            if first <= h < last
        ]
        facts += [(e, R, e) for e in range(last - first)]
        seeds = [int(s) - first for s in asked["seed"] if first <= s < last]
        allowed = torch.ones(last - first, dtype=torch.bool) if candidate is None else candidate[first:last]
        allowed = allowed.clone()
        if model.mask_seeds:
            allowed[seeds] = False
        n = int(asked["question_mask"][b].sum())
        told = (textbook_relations(model, asked, "relation"),)
        told += (textbook_relations(model, asked, "relation_inverse"),)
        instructions = textbook_instructions(model, asked["question"][b, :n])
        parts.append(textbook_reasoning(model, facts, seeds, allowed, instructions, told))
    return torch.cat(parts)


def textbook_relations(model: ReaRev, asked: Given, name: str) -> list[Tensor]:
    if model.relation_embedding is not None:
        table = model.relation_embedding.table[int(name != "relation")]
        return [model.relation_embedding.project(row) for row in table]
    found = []
    for hidden, mask in zip(asked[name], asked[f"{name}_mask"], strict=True):
        y = model.project(hidden[mask])
        found.append(model.relation_text.attention(y).softmax(0).t() @ y)
    return [*(r.squeeze(0) for r in found), model.project.bias]


def textbook_instructions(model: ReaRev, question: Tensor) -> list[Tensor]:
    if model.lstm is not None:
        x, _ = model.lstm(question)
        c = x[-1]
    else:
        x = model.project(question)
        c = x[0]
    i, found = torch.zeros_like(c), []
    for w in model.decoder.question:
        q = w(c)
        z = model.decoder.combine(torch.cat([i, q, q - i, q * i]))
        i = model.decoder.attention(z * x).softmax(0).t().squeeze(0) @ x
        found.append(i)
    return found


def textbook_reasoning(
    model: ReaRev,
    facts: list[tuple[int, int, int]],
    seeds: list[int],
    allowed: Tensor,
    instructions: list[Tensor],
    told: tuple[list[Tensor], list[Tensor]],
) -> Tensor:
    n, d = allowed.numel(), instructions[0].numel()
    sent = [sum(h == e for h, _, _ in facts) for e in range(n)]
    heard = [sum(t == e for _, _, t in facts) for e in range(n)]
    h = list(torch.zeros(n, d).double())
    for head, r, tail in facts:
        share = 1 / sum((head, r) == fact[:2] for fact in facts) if model.norm_rel else 1.0
        h[head] = h[head] + share * model.start(told[0][r])
        h[tail] = h[tail] + share * model.start(told[0][r])
    state = torch.stack(h).relu()
    for iteration in range(model.iterations):
        p = torch.zeros(n).double()
        p[seeds] = 1 / max(len(seeds), 1)
        for layer in model.layers:
            near = torch.zeros(2, len(instructions), n, d).double()
            for head, r, tail in facts:
                w = {"none": (1, 1), "sender": (1 / sent[head], 1 / heard[tail])}.get(
                    model.normalise, (1 / sent[head] ** 2,) * 2
                )
                for way, (source, target) in enumerate(((head, tail), (tail, head))):
                    y = layer.relation(told[way][r])
                    if layer.offset is not None:
                        y = y + layer.offset[way, r]
                    for k, i in enumerate(instructions):
                        near[way, k, target] = near[way, k, target] + w[way] * p[source] * F.relu(y * i)
            parts = [state, *near[0], *near[1]]
            state = layer.update(torch.cat(parts, 1)).relu()
            score = F.linear(state, model.score.weight, model.score.bias).squeeze(1)
            p = torch.zeros(n).double()
            if allowed.any():
                p = p.masked_scatter(allowed, score[allowed].softmax(0))
        if model.update is not None and iteration + 1 < model.iterations:
            e = state[seeds].sum(0)
            for k, i in enumerate(instructions):
                y = torch.cat([i, e, i - e])
                g = (y @ model.update.gate[k]).sigmoid()
                instructions[k] = g * (y @ model.update.value[k]) + (1 - g) * i
    return p


OPTIONS: list[dict[str, Any]] = [
    {},
    {"instructions": 1, "layers": 1, "iterations": 1},
    {"instructions": 3, "layers": 2, "iterations": 3, "mask_seeds": False},
    {"update": False},
    {"normalized": True},
    {"normalized": True, "parity": True},
    {"norm_rel": True, "pos_emb": True},
    {"relation_features": "embedding", "relation_channels": 3},
    {"question_encoder": "lstm"},
    {"question_encoder": "lstm", "relation_features": "embedding"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_and_gradients_are_those_of_the_equations(options: dict[str, Any]) -> None:
    model, asked = make(**options), questions()
    if options.get("question_encoder") == "lstm":
        asked["question_mask"][:] = True if options.get("parity") else asked["question_mask"]
    weight = torch.randn(11, dtype=torch.float64)
    found = []
    for form in (model(**asked), textbook(model, asked)):
        grads = torch.autograd.grad((form * weight).sum(), list(model.parameters()))
        found.append([form, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@settings(max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    facts=st.integers(0, 8),
    seeds=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_any_batch_is_answered_as_the_equations_say(
    sizes: list[int], facts: int, seeds: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model, asked = make(layers=2), questions(tuple(sizes), facts, seeds)
    candidate = torch.rand(sum(sizes)) < 0.7
    with torch.no_grad():
        found, expected = model(**asked, candidate=candidate), textbook(model, asked, candidate)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def test_training_without_dropping_equals_evaluation() -> None:
    """The form that dropout needs, which maps entities and not messages, is the same function."""
    model, asked = make(dropout=1e-7, normalized=True), questions()  # too rare a drop to happen
    torch.testing.assert_close(model.train()(**asked), model.eval()(**asked), atol=1e-12, rtol=1e-10)


def test_the_published_size_is_what_has_gradients() -> None:
    model = ReaRev(R, 384)
    assert sum(p.numel() for p in model.parameters()) == 112_402
    assert not [name for name, _ in ReaRev(R, 384, iterations=1).named_parameters() if "gate" in name]
    assert not [name for name, _ in ReaRev(R, 384, update=False).named_parameters() if "gate" in name]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_has_a_gradient(options: dict[str, Any]) -> None:
    model, asked = make(dropout=0.2, **options).train(), questions()
    model(**asked).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name not in ("score.bias", "decoder.attention.bias"):  # a softmax doesn't see them
            assert parameter.grad.any(), name


def test_a_seed_of_the_generator_decides_dropout() -> None:
    model, asked = make(dropout=0.5).train(), questions()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model(**asked))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_probabilities_sum_to_one_over_candidates_and_are_zero_elsewhere() -> None:
    model, asked = make(), questions((6, 3, 4))
    candidate = torch.ones(13, dtype=torch.bool)
    candidate[6:9] = False  # nothing can answer the second question
    p = model(**asked, candidate=candidate)
    assert not p[asked["seed"]].any()
    assert not p[6:9].any()
    torch.testing.assert_close(torch.stack([p[:6].sum(), p[9:].sum()]), torch.ones(2).double())
    assert torch.autograd.grad(p.square().sum(), model.start.weight)[0].isfinite().all()


def test_seeds_may_answer_where_they_are_not_masked() -> None:
    asked = questions((1,), facts=2, seeds=1)
    assert make(mask_seeds=False)(**asked).item() == 1
    assert make()(**asked).item() == 0


def test_neither_the_order_of_facts_nor_the_numbers_of_entities_matter() -> None:
    model, asked = make(normalized=True, norm_rel=True), questions()
    p = model(**asked)
    order = torch.randperm(asked["edge_type"].numel())
    new = torch.cat([torch.randperm(6), torch.tensor([6]), torch.randperm(4) + 7])
    moved = {
        **asked,
        "edge_index": new[asked["edge_index"][:, order]],
        "edge_type": asked["edge_type"][order],
        "seed": new[asked["seed"]],
    }
    torch.testing.assert_close(model(**moved)[new], p)


def test_questions_side_by_side_are_answered_as_alone() -> None:
    model, asked = make(), questions((5, 4))
    alone = []
    for b in range(2):
        first, last = asked["ptr"][b], asked["ptr"][b + 1]
        mine = (asked["edge_index"][0] >= first) & (asked["edge_index"][0] < last)
        seeds = asked["seed"][(asked["seed"] >= first) & (asked["seed"] < last)]
        own = {
            "edge_index": asked["edge_index"][:, mine] - first,
            "edge_type": asked["edge_type"][mine],
            "ptr": torch.stack([first, last]) - first,
            "seed": seeds - first,
            "question": asked["question"][b : b + 1],
            "question_mask": asked["question_mask"][b : b + 1],
        }
        alone.append(model(**{**asked, **own}))
    torch.testing.assert_close(model(**asked), torch.cat(alone))


@pytest.mark.parametrize("encoder", ["states", "lstm"])
def test_padding_is_never_read(encoder: str) -> None:
    model, asked = make(question_encoder=encoder), questions()
    longer = dict(asked)
    for name in ("question", "relation", "relation_inverse"):
        states, mask = asked[name], asked[f"{name}_mask"]
        states = torch.where(mask[..., None], states, 9.0)
        longer[name] = torch.cat([states, torch.full_like(states[:, :2], 7.0)], 1)
        longer[f"{name}_mask"] = torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)
    torch.testing.assert_close(model(**longer), model(**asked))


def test_with_parity_an_lstm_reads_padding_as_the_reference_does() -> None:
    model, asked = make(question_encoder="lstm", parity=True), questions()
    changed = {**asked, "question": torch.where(asked["question_mask"][..., None], asked["question"], 9.0)}
    assert not torch.allclose(model(**changed), model(**asked))


def test_the_self_loop_may_have_a_text() -> None:
    model, asked = make(), questions()
    zero = {name: F.pad(asked[name], (0, 0, 0, 0, 0, 1)) for name in ("relation", "relation_inverse")}
    masks = {f"{name}_mask": F.pad(asked[f"{name}_mask"], (0, 0, 0, 1)) for name in zero}
    told = {**asked, **zero, **masks}
    torch.testing.assert_close(model(**told), model(**asked))
    told["relation"] = torch.randn_like(told["relation"])
    assert not torch.allclose(model(**told), model(**asked))


def test_fine_tuned_texts_have_gradients() -> None:
    model, asked = make(), questions()
    for name in ("question", "relation", "relation_inverse"):
        asked[name] = asked[name].requires_grad_()
    model(**asked).square().sum().backward()
    assert all(asked[name].grad.any() for name in ("question", "relation", "relation_inverse"))


def test_a_plan_can_be_kept() -> None:
    model, asked = make(), questions()
    plan = model.plan(*(asked[name] for name in ("edge_index", "edge_type", "ptr", "seed")))
    assert torch.equal(model(**asked, plan=plan), model(**asked))


@pytest.mark.parametrize("options", [{}, {"normalized": True}])
def test_an_explanation_ends_in_the_answer_and_begins_at_seeds(options: dict[str, Any]) -> None:
    model, asked = make(layers=2, **options), questions((6, 4))
    told = model.explain(**asked)
    assert torch.equal(told.prob, model(**asked))
    assert [(step.iteration, step.layer) for step in told.steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    torch.testing.assert_close(told.attention.sum(2), torch.ones(2, 2).double())
    assert not told.attention[~asked["question_mask"][:, None].expand_as(told.attention)].any()
    head, tail = asked["edge_index"]
    from_seed, to_seed = torch.isin(head, asked["seed"]), torch.isin(tail, asked["seed"])
    for step in told.steps:
        shares = step.forward + step.inverse
        total = torch.zeros(2).double().index_add(0, (head >= 6).long(), shares)
        assert (total <= 1 + 1e-12).all()
        if step.layer == 0:
            assert not step.forward[~from_seed].any()
            assert not step.inverse[~to_seed].any()
        assert torch.equal(step.prob > 0, (step.prob > 0) & ~torch.isin(torch.arange(10), asked["seed"]))


def test_a_small_batch_is_learned() -> None:
    torch.manual_seed(3)
    model = ReaRev(R, E, hidden_channels=16, layers=1, iterations=1, dropout=0.0).double()
    asked = questions((6, 5, 6), seeds=1)
    first = asked["ptr"][:-1]
    answer = first + (asked["seed"] == first).long()  # the first that isn't a seed
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(-model(**asked)[answer].clamp(min=1e-8).log().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"relations": None}, "num_relations"),
        ({"text_channels": None}, "text_channels"),
        ({"layers": 0}, "layers"),
        ({"iterations": 0}, "iterations"),
        ({"instructions": 0}, "instructions"),
        ({"dropout": 1.0}, "dropout"),
        ({"word_dropout": -0.1}, "word_dropout"),
        ({"relation_features": "both"}, "relation_features"),
        ({"question_encoder": "bert"}, "question_encoder"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("edge_index", torch.tensor([[0], [7]])),  # from one question to another
        ("edge_index", torch.tensor([[0], [11]])),
        ("edge_type", torch.tensor([R])),
        ("seed", torch.tensor([11])),
        ("ptr", torch.tensor([0, 6, 5, 11])),
        ("question_mask", torch.ones(3, 4, dtype=torch.bool)),
        ("relation", torch.zeros(R - 1, 3, E)),
        ("relation_inverse", None),
        ("candidate", torch.ones(10, dtype=torch.bool)),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, value: Tensor | None) -> None:
    asked = {**questions(), "edge_index": torch.tensor([[0], [1]]), "edge_type": torch.tensor([0])}
    with pytest.raises(ValueError, match=name):
        make()(**{**asked, name: value})
