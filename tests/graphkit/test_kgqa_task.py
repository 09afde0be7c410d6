"""The task of answering questions: loss, batches, metrics, texts, and questions asked in words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation.kgqa import KgqaEvaluator, retrieve, score_retrieved
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet
from graphkit.tasks import kgqa
from graphkit.tasks.kgqa import KgqaTask
from graphkit.text import make_encoder

LAND = {
    "France": ("Paris", "French", ["Spain", "Germany", "Italy"]),
    "Spain": ("Madrid", "Spanish", ["France", "Portugal"]),
    "Germany": ("Berlin", "German", ["France", "Austria"]),
    "Italy": ("Rome", "Italian", ["France", "Austria"]),
    "Austria": ("Vienna", "German", ["Germany", "Italy"]),
    "Portugal": ("Lisbon", "Portuguese", ["Spain"]),
}
RELATIONS = ["capital", "spoken_language", "borders"]
NAMES = sorted({*LAND, *(c for c, *_ in LAND.values()), *(t for _, t, _ in LAND.values()), "Atlantis"})
ID = {name: number for number, name in enumerate(NAMES)}


def world(**changes: Any) -> Benchmark:
    """Countries with capitals, languages and neighbours, and questions about them; Atlantis has no facts."""
    facts = []
    asked: list[tuple[str, str, list[str], int]] = []
    for land, (capital, language, neighbours) in LAND.items():
        facts += [(land, 0, capital), (land, 1, language), *((land, 2, other) for other in neighbours)]
        asked += [
            (f"what is the capital of {land}", land, [capital], 1),
            (f"who borders {land}", land, neighbours, 1),
            (f"what is spoken beside {land}", land, [LAND[other][1] for other in neighbours], 2),
        ]
    edges = torch.tensor([[ID[a], ID[b]] for a, _, b in facts]).t().contiguous()
    types = torch.tensor([r for _, r, _ in facts])
    questions = questions_on(
        KnowledgeGraph(edges, types, len(NAMES)),
        [[ID[land]] for _, land, _, _ in asked],
        [[ID[a] for a in answers] for _, _, answers, _ in asked],
        [hop for *_, hop in asked],
        max_entities=8,
    )
    index = torch.arange(len(asked))
    parts = {"train": index[index % 3 != 2], "valid": index[::3], "test": index}
    values: dict[str, Any] = {
        "name": "world",
        "task": "kgqa",
        "data": Data(num_nodes=len(NAMES), kg_edge_index=edges, kg_edge_type=types, **questions.tensors()),
        "splits": {name: {"index": part} for name, part in parts.items()},
        "spec": DataSpec(num_relations=len(RELATIONS)),
        "metric": "hits@1",
        "maximize": True,
        "evaluator": KgqaEvaluator(),
        "node_names": NAMES,
        "target_names": RELATIONS,
        "questions": [text for text, *_ in asked],
        "info": {"max_entities": 8},
    }
    return Benchmark(**{**values, **changes})


def make_task(batch_size: int = 4, eval_batch_size: int = 5, **options: Any) -> KgqaTask:
    of = options.pop("of", None) or world()
    return KgqaTask(of, 0, batch_size, eval_batch_size, **{"encoder": "hash:16", **options})


class Toy(nn.Module):
    """A model of one step: what a seed's facts say, as far as their relations are like the question."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        ptr: Tensor,
        seed: Tensor,
        question: Tensor,
        question_mask: Tensor,
        relation: Tensor,
        relation_mask: Tensor,
        relation_inverse: Tensor,
        relation_inverse_mask: Tensor,
    ) -> Tensor:
        n = int(ptr[-1])
        graph = torch.repeat_interleave(torch.arange(ptr.numel() - 1), ptr.diff())
        like = self.project(question[:, 0]) @ relation[:, 0].t() / 16
        from_seed = torch.isin(edge_index[0], seed)
        sent = like[graph[edge_index[0]], edge_type] * from_seed
        score = torch.zeros(n).index_add(0, edge_index[1], sent)
        score = score.masked_fill(torch.isin(torch.arange(n), seed), -1e9)
        weight = (score - score.max().detach()).exp()
        total = torch.zeros(ptr.numel() - 1).index_add(0, graph, weight)
        return weight / total[graph]


class Telling(Toy):
    """A model that tells that all was sent along the facts of seeds, in one iteration of two layers."""

    def explain(self, edge_index: Tensor, edge_type: Tensor, ptr: Tensor, seed: Tensor, *rest: Tensor) -> Any:
        p = self(edge_index, edge_type, ptr, seed, *rest)
        shares = torch.isin(edge_index[0], seed).float()
        start = torch.zeros_like(p)
        start[seed] = 1 / seed.numel()
        shares /= 2 * shares.sum()
        first = SimpleNamespace(iteration=0, prior=start, prob=p, forward=shares, inverse=0 * shares)
        second = SimpleNamespace(iteration=0, prior=p, prob=p, forward=0 * shares, inverse=0 * shares)
        return SimpleNamespace(prob=p, steps=[first, second])


# --- Loss and batches -------------------------------------------------------------------------------------


def test_loss_is_the_divergence_from_the_answers_inside() -> None:
    task, model = make_task(), Toy()
    batch = task.batch(0, 0)
    union = task.questions.batch(batch.ids)
    p, total = task.probabilities(model, union), 0.0
    for b in range(batch.ids.numel()):
        gold = p[union.ptr[b] : union.ptr[b + 1]][union.answer[union.ptr[b] : union.ptr[b + 1]]]
        total += sum((math.log(1 / len(gold)) - math.log(x + 1e-8)) / len(gold) for x in gold.tolist())
    loss = task.loss(model, batch)
    assert loss.divisor == 4
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)


def test_a_question_without_an_answer_inside_counts_in_the_divisor_alone() -> None:
    of = world()
    of.data.answer = torch.full_like(of.data.answer, ID["Atlantis"])
    task, model = make_task(of=of), Toy()
    loss = task.loss(model, task.batch(0, 0))
    assert (float(loss.total.detach()), loss.divisor) == (0, 4)


@pytest.mark.parametrize("fact_drop", [0.0, 0.4])
def test_shards_add_up_to_the_batch(fact_drop: float) -> None:
    task, model = make_task(fact_drop=fact_drop), Toy()
    whole = task.batch(1, 1)
    parts = [task.loss(model, task.shard(whole, i, 3)) for i in range(3)]
    assert all(part.divisor == 4 for part in parts)
    expected = task.loss(model, whole).total
    torch.testing.assert_close(torch.stack([part.total for part in parts]).sum(), expected)


def test_an_epoch_has_every_training_question_once_in_an_order_of_its_own() -> None:
    task = make_task(5)
    orders = []
    for epoch in (0, 1):
        steps = [task.batch(epoch, step).ids for step in range(task.steps_per_epoch)]
        orders.append(torch.cat(steps).tolist())
        assert sorted(orders[-1]) == sorted(task.train_index.tolist())
    assert orders[0] != orders[1]
    assert make_task(5).batch(1, 2).ids.equal(task.batch(1, 2).ids)


def test_dropped_facts_are_a_share_of_each_question_and_fixed_by_its_seed() -> None:
    task = make_task(fact_drop=0.5)
    union = task.questions.batch(torch.tensor([0, 4, 4]))
    seeds = torch.tensor([11, 22, 33])
    left = kgqa._without_facts(union, seeds, 0.5)

    def facts(of: Any, b: int) -> list[tuple[int, ...]]:
        mine = (of.edge_index[0] >= of.ptr[b]) & (of.edge_index[0] < of.ptr[b + 1])
        ends = (of.edge_index[:, mine] - of.ptr[b]).tolist()
        return list(zip(*ends, of.edge_type[mine].tolist(), strict=True))

    for b in range(3):
        assert len(facts(left, b)) == len(facts(union, b)) // 2
        assert set(facts(left, b)) < set(facts(union, b))
    alone = kgqa._without_facts(task.questions.batch(torch.tensor([4])), seeds[1:2], 0.5)
    assert facts(alone, 0) == facts(left, 1)
    assert facts(left, 1) != facts(left, 2)


def test_training_learns_the_answers() -> None:
    torch.manual_seed(0)
    task, model = make_task(12), Toy()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for epoch in range(60):
        loss = task.loss(model, task.batch(epoch, 0))
        optimizer.zero_grad()
        (loss.total / loss.divisor).backward()
        optimizer.step()
    found = task.evaluate(model, "train")
    assert found["hits@1"] == 1
    assert found["f1"] > 0.9


# --- Evaluation -------------------------------------------------------------------------------------------


def test_metrics_are_those_of_all_questions_at_once() -> None:
    task, model = make_task(eval_batch_size=4), Toy()
    found = task.evaluate(model, "test")
    index = task.benchmark.splits["test"]["index"]
    union = task.questions.batch(index)
    with torch.no_grad():
        p = task.probabilities(model, union)
    retrieved = retrieve(p, union.ptr, union.seed, max_entities=int(union.ptr.diff().max()))
    scores = score_retrieved(retrieved, union.entity, *task.questions.answers(index))
    expected = KgqaEvaluator()(scores, task.questions.hop)
    assert found == pytest.approx(expected)
    assert {"hits@1@hop1", "f1@hop2"} < set(found)
    assert task.evaluation_splits == ("train", "valid", "test")


def test_probabilities_of_the_wrong_shape_are_refused() -> None:
    class Wrong(Toy):
        def forward(self, *arguments: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(*arguments)[:, None]

    with pytest.raises(UserError, match=r"Wrong gives probabilities \[40, 1\]; there are 40 entities"):
        make_task().evaluate(Wrong(), "test")
    with pytest.raises(UserError, match="Linear can't answer questions: it must have forward"):
        make_task().check(nn.Linear(2, 2))


# --- Texts ------------------------------------------------------------------------------------------------


def test_the_encoder_decides_the_width_that_models_are_built_from() -> None:
    task = make_task(encoder="hash:24")
    assert task.benchmark.spec.text_channels == task.encoder.width == 24
    assert task.question_states.width == 24


def test_relations_are_encoded_forwards_and_backwards() -> None:
    task = make_task()
    states = task.relation_states
    plain = make_encoder("hash:16").encode(["capital", "spoken language", "borders"])
    assert torch.equal(states.relation, plain.hidden)
    assert torch.equal(states.relation_mask, plain.mask)
    assert torch.equal(states.relation_inverse[1, 1:], states.relation[1, 1:].flip(0))
    named = make_task(of=world(target_texts=["seat of power", "tongue", "touches"]))
    assert named.relation_texts == ["seat of power", "tongue", "touches"]


def test_models_read_masked_questions_where_there_are_any() -> None:
    read = [f"what about NE {number}" for number in range(18)]
    task = make_task(of=world(question_texts=read, info={"max_entities": 8, "mask": "NE"}))
    expected = make_encoder("hash:16").encode(read[3:5])
    assert torch.equal(task.question_states.batch(torch.tensor([3, 4])).hidden, expected.hidden)
    asked: list[str] = []
    task.text_states = lambda model, texts: asked.extend(texts) or task.encoder.encode(texts)
    task.answer(Toy(), "who borders [France]?")
    assert asked == ["who borders NE?"]


@pytest.mark.parametrize(
    ("changes", "options", "hint"),
    [
        ({"question_texts": ["who"]}, {}, "no texts of its 18 questions"),
        ({"questions": None}, {}, "no texts of its 18 questions"),
        ({"questions": ["who"]}, {}, "no texts of its 18 questions"),
        ({"spec": DataSpec()}, {}, "doesn't say how many relations"),
        ({"data": Data(num_nodes=3)}, {}, "no questions with subgraphs"),
        ({}, {"encoder": "hsah"}, "unknown text encoder 'hsah'"),
        ({}, {"finetune": True}, "task.finetune needs a language model"),
        ({}, {"fact_drop": 1.0}, "fact_drop is 1.0"),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make_task(of=world(**changes), **options)


class Small:
    """A language model of one embedding for each letter, that can be trained."""

    name, width, identity = "small", 16, "small"

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return Letters()

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        length = max(map(len, texts))
        token = torch.tensor([[ord(c) % 64 for c in text.ljust(length)] for text in texts])
        return token, torch.ones_like(token, dtype=torch.bool)

    def encode(self, texts: Sequence[str]) -> Any:
        token, mask = self.tokens(texts)
        return kgqa.TokenStates(self.module()(token, mask).detach(), mask)


class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 16)

    def forward(self, token: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.table(token)
        return states.cumsum(1) * mask[..., None] / 8


def test_finetuning_makes_the_language_model_a_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kgqa, "make_encoder", lambda name, device: Small())
    frozen, tuned, model = make_task(), make_task(finetune=True), Toy()
    frozen.check(model)
    assert not hasattr(model, "text")
    batch = frozen.batch(0, 0)
    before = frozen.loss(model, batch).total
    tuned.check(model)
    after = tuned.loss(model, batch).total
    torch.testing.assert_close(after, before)  # it starts from the published weights
    after.backward()
    assert model.text.table.weight.grad.any()
    told = tuned.answer(model, "who borders France")
    assert [m.name for m in told.mentions] == ["France"]


# --- Questions in words -----------------------------------------------------------------------------------


def test_an_answer_has_names_probabilities_and_paths() -> None:
    task, model = make_task(), Telling()
    told = task.answer(model, "Who borders France?", top=50)
    assert [(m.text, m.name, m.exact) for m in told.mentions] == [("France", "France", True)]
    values = [c.probability for c in told.candidates]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert "France" not in {c.name for c in told.candidates}
    assert told.names == [c.name for c in told.candidates if c.retrieved]
    spain = next(c for c in told.candidates if c.name == "Spain")
    assert str(spain.paths[0]) == "France -[borders]-> Spain"
    assert spain.paths[0].weights == pytest.approx((1.0,))
    assert spain.history == pytest.approx((spain.probability,))
    assert f"France -[borders]-> Spain   [{spain.paths[0].support:.2f}]" in str(told)


def test_a_model_that_tells_nothing_still_has_shortest_paths() -> None:
    told = make_task().answer(Toy(), "what is spoken beside Portugal", top=50)
    paths = {c.name: str(c.paths[0]) for c in told.candidates}
    assert paths["Spanish"] == "Portugal -[borders]-> Spain -[spoken_language]-> Spanish"
    assert all(not c.history and not c.paths[0].weights for c in told.candidates)


def test_a_set_without_a_whole_graph_is_asked_on_its_questions_facts() -> None:
    of = world()
    of.data.kg_edge_index = of.data.kg_edge_type = None
    of.data = Data(num_nodes=of.data.num_nodes, **QuestionSet.of(of.data).tensors())
    whole, joined = make_task().knowledge, make_task(of=of).knowledge

    def facts(of: KnowledgeGraph) -> set[tuple[int, ...]]:
        return set(zip(*of.edge_index.tolist(), of.edge_type.tolist(), strict=True))

    assert facts(joined) == facts(whole)


@pytest.mark.parametrize(
    ("question", "entities", "hint"),
    [
        ("", None, "the question is empty"),
        ("  ?", None, "the question is empty"),
        ("who borders Mordor", None, "names no entity that the graph has: 'who borders Mordor'"),
        ("who borders it", ["Mordor"], "there is no entity 'Mordor'"),
        ("who borders it", ["#99"], "there is no entity #99; ids go up to #17"),
        ("who borders Atlantis", None, "the graph has no facts about 'Atlantis'"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    question: str, entities: list[str] | None, hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        make_task().answer(Toy(), question, entities=entities)


def test_entities_without_names_cannot_be_asked_about() -> None:
    with pytest.raises(UserError, match="entities of world have no names"):
        make_task(of=world(node_names=None)).answer(Toy(), "who borders France")


@pytest.fixture
def ask() -> Callable[..., list[list[str]]]:
    """Predicts by arguments of the command line; the first row is the header."""

    def run(*argv: str) -> list[list[str]]:
        parser = argparse.ArgumentParser()
        KgqaTask.add_predict_arguments(parser)
        torch.manual_seed(0)
        header, rows = make_task().predict(Telling(), parser.parse_args(argv))
        assert {len(header)} == {len(row) for row in rows}
        return [header, *rows]

    return run


def test_predict_gives_a_row_for_each_answer(ask: Callable[..., list[list[str]]]) -> None:
    header, *rows = ask("who borders Frnace?", "--top", "3")
    assert header == ["rank", "answer", "probability", "retrieved", "path", "support", "iteration 1"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(row[4].startswith("France -[") for row in rows)
    assert ask("who borders it", "--entity", "France", "--top", "3")[1:] != rows  # another question
    assert len(ask("who borders [Austria]", "--top", "1", "--paths", "2")) == 2  # it tells of one path only


def test_predict_gives_a_row_for_each_question_of_a_split(ask: Callable[..., list[list[str]]]) -> None:
    header, *rows = ask("--split", "test")
    assert header == ["number", "question", "answer", "probability", "retrieved", "hit", "f1"]
    assert [row[1] for row in rows] == list(world().questions or ())
    hits = sum(row[5] == "yes" for row in rows) / len(rows)
    torch.manual_seed(0)
    assert hits == pytest.approx(make_task().evaluate(Telling(), "test")["hits@1"])


@pytest.mark.parametrize("name", ["answer.svg", "answer.png"])
def test_the_subgraph_is_drawn(ask: Callable[..., list[list[str]]], tmp_path: Path, name: str) -> None:
    ask("who borders France", "--draw", str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    assert b"<svg" in content if name.endswith("svg") else content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], "ask a question"),
        (["who borders France", "--split", "test"], "ask a question"),
        (["--split", "tset"], "can't be evaluated on split 'tset'"),
        (["--split", "test", "--draw", "a.png"], "go with one question"),
        (["who borders France", "--draw", "a.gif"], r"must end in \.svg or \.png"),
        (["who borders France", "--top", "0"], "--top is 0"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    ask: Callable[..., list[list[str]]], argv: list[str], hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        ask(*argv)
