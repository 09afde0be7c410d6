"""Answers to questions in words, with the paths that lead to them, as a table and as a picture."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from graphkit.data import Benchmark
from graphkit.errors import UserError
from graphkit.evaluation.kgqa import retrieve
from graphkit.files import atomic_write
from graphkit.ppr import KnowledgeGraph, extract_subgraphs
from graphkit.questions import QuestionBatch, QuestionSet, pointer
from graphkit.tasks.entity_links import COMMON, EntityIndex, Mention, reworded
from graphkit.tasks.kgqa_paths import Reason, Walks
from graphkit.tasks.kgqa_support import supports
from graphkit.text import words_of

if TYPE_CHECKING:
    from graphkit.tasks.kgqa import KgqaTask

__all__ = [
    "Answer",
    "AnswerPath",
    "Candidate",
    "add_arguments",
    "answer",
    "index_of",
    "knowledge_of",
    "predict",
]

_log = logging.getLogger("graphkit")
_TOP = 10
_DRAWN = 18  # entities at most in a picture
_OTHERS = 5  # answers drawn whether they are retrieved or not
STEM = 5  # letters by which a word is known: "borders" where training has "border"
_LEAST = 1e-3  # probability of an answer that isn't retrieved and shown nevertheless
_COLUMN = 8  # entities at most of one distance
_ENTITIES, _RESTART = 2000, 0.8  # of a subgraph, where the data set doesn't say how its own were made


class AnswerPath(NamedTuple):
    """A path from an entity of the question to an answer, in words.

    Attributes:
        nodes: Names of entities, that of the question first.
        moves: The relation from each to the next, and whether it holds in this direction.
        weights: Its share in all walks to the answer, in each iteration; see
            :mod:`graphkit.tasks.kgqa_paths`.
        support: What the answer's probability loses without it; see :mod:`graphkit.tasks.kgqa_support`.
    """

    nodes: tuple[str, ...]
    moves: tuple[tuple[str, bool], ...]
    weights: tuple[float, ...]
    support: float

    def __str__(self) -> str:
        text = self.nodes[0]
        for (relation, along), node in zip(self.moves, self.nodes[1:], strict=True):
            text += f" -[{relation}]-> {node}" if along else f" <-[{relation}]- {node}"
        return text


class Candidate(NamedTuple):
    """A possible answer.

    Attributes:
        name: Of the entity.
        entity: Its id.
        probability: What the model gives it.
        history: What it had at the end of each iteration; empty if the model doesn't tell.
        retrieved: Whether it belongs to the answer: the likeliest entities with more than 95 % in sum.
        paths: That lead to it, the best supported first; none beyond the first ``top`` candidates.
    """

    name: str
    entity: int
    probability: float
    history: tuple[float, ...]
    retrieved: bool
    paths: list[AnswerPath]


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        question: As it was asked.
        mentions: The entities that it names.
        candidates: Possible answers, the likeliest first: all that are retrieved, and others down to a
            probability of 0.001 while there are fewer than ``top``.
        num_entities: Of the subgraph that was searched.
        facts: Head, relation and tail of each fact of it, by name.
    """

    question: str
    mentions: list[Mention]
    candidates: list[Candidate]
    num_entities: int
    facts: list[tuple[str, str, str]]

    @property
    def names(self) -> list[str]:
        """The retrieved entities."""
        return [candidate.name for candidate in self.candidates if candidate.retrieved]

    def __str__(self) -> str:
        lines = [self.question]
        for candidate in self.candidates:
            mark = "*" if candidate.retrieved else " "
            lines.append(f"{mark} {candidate.probability:.4f}  {candidate.name}")
            for path in candidate.paths[:1]:
                lines.append(f"            {path}   [{path.support:.2f}]")
        return "\n".join(lines)

    def draw(self, file: str | Path) -> None:
        """Draws the paths to the likeliest answers and the facts between their entities.

        Raises:
            UserError: A file that can't be written, or whose name ends neither in ``.png`` nor in ``.svg``.
        """
        _draw(self, str(file))


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds the question, ``--entity``, ``--top``, ``--paths``, ``--draw`` and ``--split``."""
    parser.add_argument(
        "question", metavar="QUESTION", nargs="?", help='in words: "who are the neighbours of France?"'
    )
    parser.add_argument(
        "--entity",
        metavar="NAME",
        action="append",
        help="an entity that the question is about, by name or #id, if it isn't found by itself",
    )
    parser.add_argument("--top", type=int, default=_TOP, metavar="K", help=f"answers shown (default {_TOP})")
    parser.add_argument(
        "--paths", type=int, default=1, metavar="K", help="paths shown for an answer (default 1)"
    )
    parser.add_argument("--draw", metavar="FILE", help="draw the paths to the answers (.svg, .png)")
    parser.add_argument("--split", help="all questions of a split: train, valid or test")


def predict(
    task: KgqaTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: answers with probabilities and paths, the likeliest first.

    A path's support is what its answer's probability loses without it, its weights, a column an iteration,
    are its shares in all walks to the answer. Of a split there is one row a question, with the likeliest
    answer.

    Raises:
        UserError: Not exactly one of a question and ``--split``; a question that can't be answered.
    """
    if (options.question is None) == (options.split is None):
        raise UserError('predict: ask a question, predict RUN "who ...?", or give --split SPLIT')
    if options.split is not None:
        if options.draw is not None or options.entity is not None:
            raise UserError("predict: --draw and --entity go with one question")
        return _split_table(task, model, options.split)
    for name in ("top", "paths"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.draw is not None:
        from graphkit.pictures import picture_format

        picture_format(options.draw)  # complains before the work is done
    found = answer(
        task, model, options.question, entities=options.entity, top=options.top, paths=options.paths
    )
    about = ", ".join(f"{m.name}" for m in found.mentions)
    _log.info(f"about {about}: {found.num_entities} entities and {len(found.facts)} facts searched")
    if len(found.names) > options.top:
        _log.info(f"{options.top} of {len(found.names)} answers shown; --top {len(found.names)} shows all")
    if options.draw is not None:
        found.draw(options.draw)
    count = max((len(path.weights) for c in found.candidates for path in c.paths), default=0)
    rows = []
    for rank, candidate in enumerate(found.candidates[: options.top], 1):
        retrieved = "yes" if candidate.retrieved else "no"
        own = [str(rank), candidate.name, f"{candidate.probability:.6f}", retrieved]
        cells = [
            [str(path), *(f"{share:.4f}" for share in (path.support, *path.weights))]
            for path in candidate.paths
        ]
        rows += [[*own, *cell, *[""] * (2 + count - len(cell))] for cell in cells or [[]]]
    header = ["rank", "answer", "probability", "retrieved", "path", "support"]
    return [*header, *(f"iteration {number}" for number in range(1, count + 1))], rows


def answer(
    task: KgqaTask,
    model: nn.Module,
    question: str,
    *,
    entities: Sequence[str] | None = None,
    top: int = _TOP,
    paths: int = 3,
) -> Answer:
    """Answers a question in words.

    Entities are found by their names, a subgraph is extracted around them, and the model is asked.

    Args:
        task: Holds the knowledge graph and the encoder.
        model: Put into evaluation mode.
        question: In words.
        entities: Those that it is about, by name or ``#id``; found in the question by default.
        top: Answers returned at most, if no more are retrieved, and explained at most.
        paths: Paths to each at most.

    Raises:
        UserError: An empty question, one that names no entity or an ambiguous one, an entity without facts,
            or a data set whose entities have no names.
    """
    index = task.entity_index
    if not question.strip():
        raise UserError("the question is empty; ask in words and name an entity that the graph has")
    mentions = index.mentions(question) if not entities else [index.named(name) for name in entities]
    for mention in mentions:
        if not mention.exact:
            _log.info(f"'{mention.text}' is taken for '{mention.name}'")
    union = _subgraph(task, [mention.entity for mention in mentions])
    if union.edge_type.numel() == 0:
        about = " and ".join(f"'{mention.name}'" for mention in mentions)
        raise UserError(f"the graph has no facts about {about}, so nothing can be asked about it")
    text = reworded(question, mentions, task.benchmark.info.get("mask"))
    new = _new_words(task, text, mentions)
    if new:
        _log.info(f"no training question says {' or '.join(new)}, so this may answer another question")
    model.eval()
    with torch.no_grad():
        states = task.text_states(model, [text])
        inputs = task.inputs(model, union.to(task.device), states)
        explain = getattr(model, "explain", None)
        told = None if explain is None else explain(*inputs)
        p: Tensor = (model(*inputs) if told is None else told.prob).detach().float().cpu()
    kept = set(retrieve(p, union.ptr, union.seed, max_entities=p.numel()).node.tolist())
    seeds = union.seed.tolist()
    order = [node for node in p.sort(descending=True, stable=True).indices.tolist() if node not in seeds]
    steps = () if told is None else told.steps
    ends_of = {step.iteration: step.prob for step in steps}  # the last layer's stay
    walks = Walks(union.edge_index, p.numel(), seeds, steps)
    names, relations = task.benchmark.node_names or (), task.relation_names
    local = [str(names[entity]) for entity in union.entity.tolist()]
    ends = [[local[i] for i in row] for row in union.edge_index.tolist()]
    types = [relations[r] for r in union.edge_type.tolist()]
    order = [
        node for k, node in enumerate(order) if node in kept or k == 0 or (k < top and p[node] >= _LEAST)
    ]
    led = {node: walks.reasons(node) for node in order[:top]}
    worth = iter(supports(task, model, union, states, [reason for found in led.values() for reason in found]))
    shown = {
        node: [
            _in_words(reason, local, types, support)
            for reason, support in _ranked([(reason, next(worth)) for reason in found])[:paths]
        ]
        for node, found in led.items()
    }
    candidates = [
        Candidate(
            local[node],
            int(union.entity[node]),
            float(p[node]),
            tuple(float(prob[node]) for prob in ends_of.values()),
            node in kept,
            shown.get(node, []),
        )
        for node in order
    ]
    facts = list(zip(ends[0], types, ends[1], strict=True))
    return Answer(question, mentions, candidates, p.numel(), facts)


def _new_words(task: KgqaTask, text: str, mentions: Sequence[Mention]) -> list[str]:
    """Returns the words of a question whose like no training question has, but for names and common ones."""
    mask = task.benchmark.info.get("mask") or ""
    told = COMMON | {word for m in mentions for word in words_of(f"{m.text} {m.name} {mask}")}
    asked = [word for word in dict.fromkeys(words_of(text)) if word not in told]
    return [f"'{word}'" for word in asked if word[:STEM] not in task.known_stems]


def _ranked(reasons: Sequence[tuple[Reason, float]]) -> list[tuple[Reason, float]]:
    """Sorts paths to one entity by support; those that a hundredth doesn't tell apart stay as they came."""
    return sorted(reasons, key=lambda entry: -round(entry[1], 2))


def _in_words(reason: Reason, names: Sequence[str], types: Sequence[str], support: float) -> AnswerPath:
    moves = tuple((types[fact], along) for fact, along in reason.moves)
    return AnswerPath(tuple(names[node] for node in reason.nodes), moves, reason.weights, support)


def knowledge_of(benchmark: Benchmark, questions: QuestionSet) -> KnowledgeGraph:
    """Returns the whole graph of a data set: its own, or all facts of its questions' subgraphs together.

    Raises:
        UserError: Entities have no names, by which questions could be asked.
    """
    names = benchmark.node_names
    if names is None:
        raise UserError(f"the entities of {benchmark.name} have no names that a question could give")
    if "kg_edge_index" in benchmark.data:
        return KnowledgeGraph(benchmark.data.kg_edge_index, benchmark.data.kg_edge_type, len(names))
    graph = torch.repeat_interleave(
        torch.arange(questions.num_graphs), questions.fact_ptr.diff(), output_size=questions.head.numel()
    )
    first = questions.ptr[graph]
    head, tail = (questions.entity[first + ends.long()].long() for ends in (questions.head, questions.tail))
    count = int(questions.relation.max()) + 1 if questions.relation.numel() else 1
    fact = torch.unique((head * count + questions.relation.long()) * len(names) + tail)
    tail, rest = fact % len(names), fact // len(names)
    return KnowledgeGraph(torch.stack([rest // count, tail]), rest % count, len(names))


def _subgraph(task: KgqaTask, entities: Sequence[int]) -> QuestionBatch:
    """Returns the subgraph around some entities, made as the data set's own, as a batch of one question."""
    info = task.benchmark.info
    found = extract_subgraphs(
        task.knowledge,
        [list(entities)],
        max_entities=int(info.get("max_entities", _ENTITIES)),
        restart=float(info.get("restart", _RESTART)),
    )
    del found["score"]
    nothing = torch.zeros(0, dtype=torch.int32)
    asked = QuestionSet(
        **found,
        graph=torch.zeros(1, dtype=torch.int32),
        answer=nothing,
        answer_ptr=pointer(torch.zeros(1, dtype=torch.int64)),
        hop=torch.zeros(1, dtype=torch.int8),
    )
    return asked.batch(torch.zeros(1, dtype=torch.int64))


def index_of(task: KgqaTask) -> EntityIndex:
    """Returns the names of a data set's entities, ready to be looked up."""
    knowledge = task.knowledge  # complains of missing names
    names, relations = list(task.benchmark.node_names or ()), task.relation_names

    def describe(entity: int) -> str:
        ends = knowledge.edge_index
        for row, other in ((0, 1), (1, 0)):
            facts = (ends[row] == entity).nonzero().squeeze(1)
            if facts.numel():
                fact = int(facts[0])
                between = relations[int(knowledge.edge_type[fact])]
                name = names[int(ends[other, fact])]
                return f"{between} {name}" if row == 0 else f"{name} {between} it"
        return "no facts"

    common = {word for text in task.relation_texts for word in text.lower().split()}
    common |= {f"{word}s" for word in common}
    return EntityIndex(names, common=common, describe=describe, aliases=task.benchmark.node_aliases)


def _split_table(task: KgqaTask, model: nn.Module, split: str) -> tuple[list[str], list[list[str]]]:
    task.check_split(split)
    names, texts = task.benchmark.node_names, task.benchmark.questions or ()
    rows = []
    for union, p, found, scores in task.answered(model, task.benchmark.splits[split]["index"]):
        for place, number in enumerate(union.ids.tolist()):
            size = int(scores.size[place])
            first = int(found.node[found.ptr[place]]) if size else -1
            entity = int(union.entity[first]) if size else -1
            name = "" if entity < 0 else str(entity) if names is None else str(names[entity])
            probability = f"{float(p[first]):.6f}" if size else ""
            hit, f1 = "yes" if scores.hit[place] else "no", f"{float(scores.f1[place]):.4f}"
            rows.append([str(number), texts[number], name, probability, str(size), hit, f1])
    return ["number", "question", "answer", "probability", "retrieved", "hit", "f1"], rows


# --- Picture ----------------------------------------------------------------------------------------------


def _draw(found: Answer, file: str) -> None:
    """Draws a path to each retrieved answer, highlighted, then to others while there is room."""
    from graphkit.pictures import Arrow, Spot, draw_paths, picture_format

    kind = picture_format(file)
    shown = dict.fromkeys((mention.name for mention in found.mentions), 0)
    marked, arrows = set(shown), dict[tuple[str, str, str], bool]()
    for number, candidate in enumerate(found.candidates):
        if not candidate.retrieved and number >= _OTHERS:
            continue
        for path in candidate.paths[:1]:
            steps = _steps(path, shown)
            if steps is None:
                continue
            shown |= steps
            marked |= set(path.nodes) if candidate.retrieved else set()
            for (relation, along), a, b in zip(path.moves, path.nodes, path.nodes[1:], strict=False):
                fact = (a, relation, b) if along else (b, relation, a)
                arrows[fact] = arrows.get(fact, False) or candidate.retrieved
    both = set[tuple[str, str, str]]()  # facts that hold in both directions
    for a, relation, b in found.facts:
        if a in shown and b in shown and a != b and (b, relation, a) in arrows:
            both.add((b, relation, a))
        elif a in shown and b in shown and len(arrows) < 2 * _DRAWN:
            arrows.setdefault((a, relation, b), False)
    notes = {c.name: f"{c.probability:.3f}" for c in found.candidates if c.probability >= 5e-4}
    place = {name: number for number, name in enumerate(shown)}
    spots = [Spot(name, step, notes.get(name, ""), name in marked) for name, step in shown.items()]
    lines = [Arrow(place[f[0]], place[f[2]], f[1], on, f in both) for f, on in arrows.items()]
    title = f"{found.question}   ({len(shown)} of {found.num_entities} entities)"
    atomic_write(file, draw_paths(spots, lines, title=title, format=kind))


def _steps(path: AnswerPath, shown: Mapping[str, int]) -> dict[str, int] | None:
    """Returns the column of each new entity of a path, or nothing if a picture has no more room for them."""
    new = {name: step for step, name in enumerate(path.nodes) if name not in shown}
    columns = list(shown.values())
    full = any(columns.count(step) >= _COLUMN for step in new.values())
    return None if full or len(shown) + len(new) > _DRAWN else new
