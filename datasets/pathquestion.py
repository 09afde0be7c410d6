"""PathQuestion: questions that follow paths of facts (Zhou et al., COLING 2018, arXiv:1801.04726).

A line of questions is ``words TAB answer(all/answers/) TAB topic#relation#entity#...``; the path ends at the
answer, where some files say so again after ``<end>``. The knowledge base has a fact a line, parted by tabs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from graphkit.data import Benchmark, Processed, Split, cached
from graphkit.datasets.graph_sets import Texts, join_texts
from graphkit.datasets.kgqa_benchmark import MASK, Missing, kgqa_benchmark, some_of
from graphkit.datasets.kgqa_files import lines_of, placed
from graphkit.datasets.kgqa_folder import FolderQuestions, dealt, masked, read_facts
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.incomplete import Scope, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet
from graphkit.registry import register_dataset

__all__ = ["Splitting", "load_pathquestion", "read_path_questions"]

Splitting = Literal["lines", "questions"]

VERSION = 1
SOURCE = "https://github.com/zmtkeke/IRN"
FILES = {
    (False, 2): ("PQ-2H.txt", "2H-kb.txt"),
    (False, 3): ("PQ-3H.txt", "3H-kb.txt"),
    (True, 2): ("PQL-2H.txt", "PQL2-KB.txt"),
    (True, 3): ("PQL-3H.txt", "PQL3-KB.txt"),
}
"""Questions and knowledge base, by whether it is the large one and by hops."""
CITATION = (
    "Zhou, Huang, Zhu: An Interpretable Reasoning Network for Multi-Relation Question Answering, COLING "
    "2018, arXiv:1801.04726"
)


def read_path_questions(path: Path, entities: Mapping[str, int]) -> tuple[FolderQuestions, list[str]]:
    """Reads questions with their paths.

    Args:
        path: The file.
        entities: Id of each entity's name.

    Returns:
        The questions, each with the number of its path's facts, and what each one asks: topic and relations.

    Raises:
        UserError: A damaged line, or an entity that no fact is about; the message says where.
    """
    found, kinds = FolderQuestions(), list[str]()
    for number, line in lines_of(path):
        cells = line.split("\t")
        steps = cells[-1].strip().split("#<end>", 1)[0].split("#")
        if len(cells) != 3 or len(steps) < 3 or len(steps) % 2 == 0:
            raise UserError(f"{path}, line {number}: words, answers and topic#relation#entity were expected")
        first, answers = f"{steps[-1]}(", cells[1].strip()
        if not (answers.startswith(first) and answers.endswith("/)")):
            raise UserError(f"{path}, line {number}: the answers must be {first}...), as its path ends there")
        gold = answers[len(first) : -2].split("/")
        strange = next((name for name in (steps[0], *gold) if name not in entities), None)
        if strange is not None:
            raise UserError(f"{path}, line {number}: no fact is about '{strange}'")
        text = " ".join(cells[0].split())
        found.texts.append(text)
        found.masked.append(masked(text, [steps[0]]))
        found.seeds.append([entities[steps[0]]])
        found.answers.append([entities[name] for name in gold])
        found.hop.append(len(steps) // 2)
        kinds.append("#".join([steps[0], *steps[1::2]]))
    if not found.texts:
        raise UserError(f"{path} holds no questions")
    return found, kinds


def _parts(kinds: Sequence[str], splitting: Splitting, seed: int) -> dict[str, Split]:
    """Deals out lines, or what they ask."""
    if splitting == "lines":
        return dealt([""] * len(kinds), seed)
    number: dict[str, int] = {}
    kind = torch.tensor([number.setdefault(name, len(number)) for name in kinds])
    parts = dealt([""] * len(number), seed)
    return {
        part: {"index": torch.isin(kind, held["index"]).nonzero().squeeze(1)} for part, held in parts.items()
    }


@register_dataset("pathquestion", task="kgqa", paper="arXiv:1801.04726")
def load_pathquestion(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    path: str | None = None,
    hops: int = 2,
    large: bool = False,
    splitting: Splitting = "lines",
    split_seed: int = 0,
    max_entities: int = 500,
    num_train: int | None = None,
    mask: bool = True,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """PathQuestion: 1,908 questions about persons, of 2 hops; others of 3 hops, and the large version.

    Args:
        root: Its folder ``pathquestion`` holds the published files: PQ-2H.txt and 2H-kb.txt, PQL-2H.txt and
            PQL2-KB.txt, and so on. They aren't fetched.
        task: ``"kgqa"``.
        seed: Draws the questions of ``num_train``.
        path: Another folder with the files.
        hops: 2 or 3.
        large: PathQuestion-Large, with more relations and fewer facts for each.
        splitting: There is no official split; 80, 10 and 10 % are dealt out by chance, of ``lines``, as in
            publications, though a question then meets its paraphrases in training; or of ``questions``, all
            wordings of one together.
        split_seed: Deals them out.
        max_entities: The most entities of a subgraph.
        num_train: The most questions to train on; all by default.
        mask: Whether models read "NE" in place of the entity that a question names.
        incomplete: Share of the facts that are missing.
        incomplete_seed: Seeds which ones.
        incomplete_scope: ``global`` thins out the graph, others the subgraphs. See
            :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: Missing or damaged files, a value out of range.
    """
    if splitting not in get_args(Splitting):
        raise UserError(f"splitting is '{splitting}'; it is one of: {', '.join(get_args(Splitting))}")
    if (large, hops) not in FILES:
        raise UserError(f"hops is {hops}; PathQuestion has 2 and 3")
    home = Path(root) / "pathquestion"
    folder = home if path is None else Path(path)
    questions_file, facts_file = (placed(folder, name) for name in FILES[large, hops])
    if questions_file is None or facts_file is None:
        raise UserError(
            f"{folder} lacks {' or '.join(FILES[large, hops])}; put the files of {SOURCE} there, or use "
            "another data set, as countries, which needs no download"
        )
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    thin = missing if missing.rate and missing.scope == "global" else Missing()
    hashes = f"{sha256(questions_file)}/{sha256(facts_file)}"
    made = cached(
        home / "processed",
        f"pathquestion/{VERSION}/{hashes}/n={max_entities}/{thin}",
        lambda: _processed(questions_file, facts_file, max_entities, thin),
    )
    texts = {name: list(Texts(made.tensors[name])) for name in ("texts", "masked", "kinds", "entities")}
    splits = _parts(texts["kinds"], splitting, split_seed)
    splits["train"] = {"index": some_of(splits["train"]["index"], num_train, seed)}
    info: dict[str, Any] = {"splitting": splitting, "split_seed": split_seed, "max_entities": max_entities}
    return kgqa_benchmark(
        "pathquestion",
        QuestionSet.of(made.tensors),
        splits,
        texts["texts"],
        texts["entities"],
        made.info["relations"],
        info=info | {"restart": 0.8, "mask": MASK if mask else None} | thin.facts(),
        citation=CITATION,
        question_texts=texts["masked"] if mask else None,
        graph=(made.tensors["kg_edge_index"], made.tensors["kg_edge_type"]),
        missing=Missing() if thin.rate else missing,
    )


def _processed(questions_file: Path, facts_file: Path, max_entities: int, thin: Missing) -> Processed:
    entities, relations, facts = read_facts(facts_file)
    asked, kinds = read_path_questions(questions_file, {name: k for k, name in enumerate(entities)})
    edge_index = torch.from_numpy(np.ascontiguousarray(facts[:, [0, 2]].T)).int()
    edge_type = torch.from_numpy(facts[:, 1]).int()
    if thin.rate:
        kept = kept_facts(edge_index, edge_type, thin.rate, thin.seed)
        edge_index, edge_type = edge_index[:, kept], edge_type[kept]
    graph = KnowledgeGraph(edge_index, edge_type, len(entities))
    questions = questions_on(graph, asked.seeds, asked.answers, asked.hop, max_entities=max_entities)
    rows = {"texts": asked.texts, "masked": asked.masked, "kinds": kinds, "entities": entities}
    lines = {name: torch.from_numpy(np.array(join_texts(texts))) for name, texts in rows.items()}
    tensors = {**questions.tensors(), **lines, "kg_edge_index": edge_index, "kg_edge_type": edge_type}
    return Processed(tensors, {"relations": relations})
