"""ReaRev: equal to the reference on its stored arrays, at every stage, with gradients and a step of Adam."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.models.rearev import ReaRev
from graphkit.models.rearev_official import from_official

FORWARD = {"atol": 2e-5, "rtol": 2e-5}
PEAKED = {"atol": 5e-5, "rtol": 5e-5}  # where scores are large


def build_rearev(config: dict[str, Any], relations: int, text_channels: int) -> ReaRev:
    reads = config["lm"] == "lstm"
    return ReaRev(
        relations,
        text_channels,
        hidden_channels=config["entity_dim"],
        instructions=config["num_ins"],
        layers=config["num_gnn"],
        iterations=config["num_iter"],
        relation_features="text" if config["relation_word_emb"] else "embedding",
        relation_channels=2 * config["kg_dim"],
        question_encoder="lstm" if reads else "states",
        normalized=config["normalized_gnn"],
        norm_rel=config["norm_rel"],
        pos_emb=config["pos_emb"],
        mask_seeds=config["name"] != "cwq",
        parity=True,
    ).eval()


class Stored:
    """The arrays of a file: padded there, and of entities that exist here."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.config = json.loads(str(self.arrays["meta.config"]))
        self.peaked = path.stem.startswith(("c2", "c4"))
        sizes = self["in.num_local_entity"]
        width = self["in.local_entity"].size(1)
        place = torch.arange(width)
        self.real = (place < sizes[:, None]).flatten()  # of all slots
        self.ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        self.place = self.real.cumsum(0) - 1

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.tensor(self.arrays[name])
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    def group(self, prefix: str) -> dict[str, Tensor]:
        names = (name for name in self.arrays.files if name.startswith(prefix))
        return {name.removeprefix(prefix): self[name] for name in names}

    def entities(self, name: str) -> Tensor:
        """An array of all slots, ``[B, N, ...]``, of those that are entities, ``[n, ...]``."""
        return self[name].flatten(0, 1)[self.real]

    def question(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the model is called with: the graph, and the texts."""
        loop = self["in.num_relation_with_selfloop"] - 1
        given = self["in.fact_rel"] != loop
        ends = torch.stack([self["in.fact_head"], self["in.fact_tail"]])[:, given]
        graph = {
            "edge_index": self.place[ends],
            "edge_type": self["in.fact_rel"][given],
            "ptr": self.ptr,
            "seed": self.entities("in.query_entities").nonzero().squeeze(1),
        }
        mask = self["stage.question_mask"] > 0
        if self.config["lm"] == "lstm":
            return graph, {
                "question": self["in.word_emb_table"][self["in.question_tokens"]],
                "question_mask": mask,
            }
        # the reference masks reversed texts as those that aren't; its line of padding is left out
        mask_r = (self["in.rel_tokens"] != self["in.lm_pad_id"])[:-1]
        return graph, {
            "question": self["in.question_lm_hidden"],
            "question_mask": mask,
            "relation": self["in.rel_lm_hidden"][:-1],
            "relation_mask": mask_r,
            "relation_inverse": self["in.rel_lm_hidden_inv"][:-1],
            "relation_inverse_mask": mask_r,
        }

    def assert_same(self, found: Tensor, name: str, expected: Tensor | None = None) -> None:
        expected = self[name] if expected is None else expected
        tolerance = PEAKED if self.peaked else FORWARD
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda m: f"{name}: {m}")


def check(path: Path) -> None:
    stored = Stored(path)
    graph, texts = stored.question()
    relations = int(stored["in.num_relation_with_selfloop"]) - 1
    model = build_rearev(stored.config, relations, texts["question"].size(2))
    embedding, update = model.relation_text is None, model.update is not None
    state = from_official(stored.group("w."), embedding=embedding, update=update)
    model.load_state_dict(state)
    with torch.no_grad():
        check_stages(model, stored, graph, texts)

    p = model(**graph, **texts)
    stored.assert_same(p, "out.dist", stored.entities("out.dist"))
    widest = torch.zeros_like(stored.real, dtype=p.dtype).masked_scatter(stored.real, p)
    assert torch.equal(widest.view(len(stored["out.pred"]), -1).argmax(1), stored["out.pred"])
    loss = reference_loss(p, stored)
    stored.assert_same(loss, "out.loss")
    loss.backward()
    check_gradients(model, stored, embedding, update)
    check_step(model, stored, embedding, update)


def reference_loss(p: Tensor, stored: Stored) -> Tensor:
    """The divergence of answers from p, over all questions, those without an answer inside included."""
    answer = stored.entities("in.answer_dist")
    batch = torch.repeat_interleave(torch.arange(stored.ptr.numel() - 1), stored.ptr.diff())
    count = torch.zeros(stored.ptr.numel() - 1).index_add(0, batch, answer)
    y = answer / count.clamp(min=1)[batch]
    return (torch.xlogy(y, y) - y * (p + 1e-8).log()).sum() / count.numel()


def check_stages(model: ReaRev, stored: Stored, graph: dict[str, Tensor], texts: dict[str, Tensor]) -> None:
    question, mask = texts["question"], texts["question_mask"]
    x, c = model.encode(question, mask)
    stored.assert_same(x, "stage.question_hidden")
    stored.assert_same(c, "stage.question_node")
    plan = model.plan(**graph)
    told = model.relations(plan, **{name: t for name, t in texts.items() if name.startswith("relation")})
    for name, vectors in zip(("stage.rel_features", "stage.rel_features_inv"), told, strict=True):
        stored.assert_same(vectors, name, stored[name][plan.types])
    stored.assert_same(model.first_states(told[0], plan), "stage.h0", stored.entities("stage.h0"))

    given = model.explain(**graph, **texts, plan=plan)
    stored.assert_same(given.attention, "stage.instr_attn")
    stored.assert_same(given.steps[0].instructions, "stage.instr_decode")
    for step in given.steps:
        name = f"stage.t{step.iteration}"
        if f"{name}.l{step.layer}.h" not in stored.arrays.files:
            continue
        stored.assert_same(step.instructions, f"{name}.instructions")
        name = f"{name}.l{step.layer}"
        layer = model.layers[step.layer]
        messages = layer.messages(layer.relations(*told, plan.types), step.instructions, plan)
        near = layer.gather(messages, step.prior, plan)
        score = torch.nn.functional.linear(step.state, model.score.weight, model.score.bias).squeeze(1)
        for end, found in (
            ("dist_in", step.prior),
            ("nb_fwd", near[:, 0]),
            ("nb_inv", near[:, 1]),
            ("h", step.state),
            ("score_unmasked", score),
            ("dist", step.prob),
        ):
            stored.assert_same(found, f"{name}.{end}", stored.entities(f"{name}.{end}"))
        pre = stored.entities(f"{name}.pre_relu")
        stored.assert_same(step.state, f"{name}.pre_relu", pre.relu())


def check_gradients(model: ReaRev, stored: Stored, embedding: bool, update: bool) -> None:
    dead = set(stored.arrays["meta.params_without_grad"].tolist())
    raw = {name: g for name, g in stored.group("grad.").items() if name not in dead}
    expected = from_official(raw, embedding=embedding, update=update)
    found = dict(model.named_parameters())
    assert set(found) == set(expected), "a parameter has no gradient in the reference"
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        flat = 1e-5 if name.endswith(("attention.bias", "score.bias")) else 0.0  # rounding: they are truly 0
        torch.testing.assert_close(
            found[name].grad,
            gradient,
            rtol=1e-3,
            atol=max(1e-3 * largest, flat),
            msg=lambda m, n=name: f"gradient of {n}: {m}",
        )


def check_step(model: ReaRev, stored: Stored, embedding: bool, update: bool) -> None:
    """Clipping and a step of Adam; whose first steps have the length lr whatever the gradient."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.testing.assert_close(norm, stored["out.grad_norm_before_clip"], rtol=1e-4, atol=1e-5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.optim.Adam(model.parameters(), lr=5e-4).step()
    after = from_official(stored.group("w_after_adam."), embedding=embedding, update=update)
    for name, parameter in model.named_parameters():
        clear = parameter.grad.abs() > 1e-6  # below, the sign of rounding decides
        moved, expected = parameter.detach() - before[name], after[name] - before[name]
        torch.testing.assert_close(
            moved[clear],
            expected[clear],
            atol=2e-5,
            rtol=1e-2,
            msg=lambda m, n=name: f"step of {n}: {m}",
        )
