r"""A knowledge graph and questions of one's own, in a folder.

``kb.tsv`` has a fact a line: head, relation and tail, parted by tabs. ``questions.jsonl`` has a question a
line::

    {"question": "which languages are spoken in France?", "entities": ["France"], "answers": ["French"]}

``split`` (train, valid or test) and ``hop`` may be there too; without any ``split`` questions are dealt out
by chance. Entities that a question names may be marked in it instead, as "what is spoken in [France]?". A
folder in the published form of WebQSP and ComplexWebQuestions is read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from graphkit.data import Benchmark, Processed, Split, cached
from graphkit.datasets.graph_sets import Texts, join_texts
from graphkit.datasets.kgqa_benchmark import MASK, Missing, kgqa_benchmark, some_of
from graphkit.datasets.kgqa_files import has_published, lines_of, load_published, placed
from graphkit.errors import UserError, did_you_mean
from graphkit.files import sha256
from graphkit.incomplete import Scope, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet
from graphkit.registry import register_dataset

__all__ = ["FolderQuestions", "dealt", "load_kgqa_folder", "masked", "read_facts", "read_folder_questions"]

VERSION = 1
SPLITS = ("train", "valid", "test")
_MARKED = re.compile(r"\[([^\[\]]+)\]")


def read_facts(path: Path) -> tuple[list[str], list[str], npt.NDArray[np.int64]]:
    """Reads facts, one a line: head, relation and tail, parted by tabs.

    Returns:
        Names of entities and of relations, each sorted, and ``[F, 3]`` int64 ids, each fact once, sorted.

    Raises:
        UserError: A line that isn't a fact, or no fact at all.
    """
    rows = []
    for number, line in lines_of(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 3 or not all(cells):
            raise UserError(f"{path}, line {number}: head, relation and tail with tabs between were expected")
        rows.append(cells)
    if not rows:
        raise UserError(f"{path} holds no facts")
    entities = sorted({cells[end] for cells in rows for end in (0, 2)})
    relations = sorted({cells[1] for cells in rows})
    entity, relation = ({name: k for k, name in enumerate(names)} for names in (entities, relations))
    facts = [(entity[head], relation[name], entity[tail]) for head, name, tail in rows]
    return entities, relations, np.unique(np.asarray(facts, dtype=np.int64), axis=0)


@dataclass
class FolderQuestions:
    """Questions of a file, in ids of the entities."""

    texts: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    seeds: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    hop: list[int] = field(default_factory=list)
    split: list[str] = field(default_factory=list)


def masked(text: str, names: Sequence[str], mask: str = MASK) -> str:
    """Returns a question with ``mask`` in place of the names, longer ones first, whatever their case."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: mask, text, flags=re.IGNORECASE)
    return text


def read_folder_questions(path: Path, entities: Mapping[str, int]) -> FolderQuestions:
    """Reads questions.

    Args:
        path: JSON lines.
        entities: Id of each entity's name.

    Raises:
        UserError: A damaged line or an unknown entity; the message says where.
    """
    found = FolderQuestions()
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} isn't JSON: {error}") from error
        if not isinstance(row, dict) or not str(row.get("question", "")).strip():
            raise UserError(f'{where}: {{"question": ..., "entities": [...], "answers": [...]}} was expected')
        text = " ".join(str(row["question"]).split())
        for key in ("entities", "answers"):
            if not isinstance(row.get(key, []), list):
                raise UserError(f"{where}: '{key}' is {json.dumps(row[key])}; a list of names was expected")
        named = row.get("entities")
        if named is None:
            named = _MARKED.findall(text)
            text = _MARKED.sub(r"\1", text)
        if not named:
            raise UserError(f"{where} names no entity: list some in 'entities' or mark them as [name]")
        split, hop = row.get("split", ""), row.get("hop", 0)
        if split not in ("", *SPLITS) or not isinstance(hop, int) or not 0 <= hop < 128:
            raise UserError(
                f"{where}: split '{split}' and hop {hop}; train, valid, test and 0 to 127 are known"
            )
        found.texts.append(text)
        found.masked.append(masked(text, [str(name) for name in named]))
        found.seeds.append([_known(name, entities, where) for name in named])
        found.answers.append([_known(name, entities, where) for name in row.get("answers", ())])
        found.hop.append(hop)
        found.split.append(split)
    if not found.texts:
        raise UserError(f"{path} holds no questions")
    if len({bool(split) for split in found.split}) > 1:
        lacking = found.split.index("")
        raise UserError(f"{path}: question {lacking + 1} has no 'split', which others have")
    return found


def _known(name: Any, entities: Mapping[str, int], where: str) -> int:
    key = str(name).strip()
    if key not in entities:
        near = did_you_mean(key, entities) if len(entities) < 10_000 else ""
        raise UserError(f"{where}: no fact is about '{key}'{near}")
    return entities[key]


def dealt(split: Sequence[str], seed: int) -> dict[str, Split]:
    """Returns the questions of each part: as they say, or 80, 10 and 10 % of them by chance."""
    if split[0]:
        return {
            part: {
                "index": torch.tensor([k for k, own in enumerate(split) if own == part], dtype=torch.int64)
            }
            for part in SPLITS
        }
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held = len(split) // 10 if len(split) >= 10 else int(len(split) >= 3)
    parts = order.split([len(split) - 2 * held, held, held])
    return {part: {"index": ids.sort().values} for part, ids in zip(SPLITS, parts, strict=True)}


@register_dataset("kgqa-folder", task="kgqa", paper="arXiv:2210.13650")
def load_kgqa_folder(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    path: str | None = None,
    max_entities: int = 2000,
    restart: float = 0.8,
    num_train: int | None = None,
    mask: bool = True,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """Questions of your own: a folder with kb.tsv (facts) and questions.jsonl.

    ``kb.tsv``: head, relation, tail, parted by tabs. ``questions.jsonl``: ``{"question": "...", "entities":
    ["..."], "answers": ["..."]}`` a line, maybe with ``split`` (train, valid, test) and ``hop``. A folder in
    the published form of WebQSP (train.json, dev.json, test.json, entities.txt, relations.txt) will do too.

    Args:
        root: What was made is kept in ``kgqa-folder`` there.
        task: ``"kgqa"``.
        seed: Deals out questions that don't say their split, and draws those of ``num_train``.
        path: The folder.
        max_entities: The most entities of a subgraph.
        restart: Of the personalised PageRank that chooses them.
        num_train: The most questions to train on; all by default.
        mask: Whether models read "NE" in place of the entities that a question names.
        incomplete: Share of the facts that are missing.
        incomplete_seed: Seeds which ones.
        incomplete_scope: ``global`` thins out the graph, others the subgraphs. See
            :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: No folder, missing or damaged files, a value out of range.
    """
    if path is None:
        raise UserError("which folder? kgqa-folder needs --data.path FOLDER with kb.tsv and questions.jsonl")
    folder, cache = Path(path), Path(root) / "kgqa-folder" / "processed"
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    facts_file, questions_file = placed(folder, "kb.tsv"), placed(folder, "questions.jsonl")
    if facts_file is None and has_published(folder):
        return load_published("kgqa-folder", folder, cache, num_train=num_train, seed=seed, missing=missing)
    if facts_file is None or questions_file is None:
        lacks = "kb.tsv" if facts_file is None else "questions.jsonl"
        raise UserError(f"{folder} lacks {lacks}; `graphkit show kgqa-folder` says what belongs there")
    thin = missing if missing.rate and missing.scope == "global" else Missing()
    options = f"n={max_entities}/restart={restart}/{thin}"
    key = f"kgqa-folder/{VERSION}/{sha256(facts_file)}/{sha256(questions_file)}/{options}"
    made = cached(cache, key, lambda: _processed(facts_file, questions_file, max_entities, restart, thin))
    splits = dealt(made.info["split"], seed)
    splits["train"] = {"index": some_of(splits["train"]["index"], num_train, seed)}
    texts = {name: list(Texts(made.tensors[name])) for name in ("texts", "masked", "entities")}
    info = {"source": str(folder), "max_entities": max_entities, "restart": restart}
    return kgqa_benchmark(
        "kgqa-folder",
        QuestionSet.of(made.tensors),
        splits,
        texts["texts"],
        texts["entities"],
        made.info["relations"],
        info=info | {"mask": MASK if mask else None} | thin.facts(),
        citation="",
        question_texts=texts["masked"] if mask else None,
        graph=(made.tensors["kg_edge_index"], made.tensors["kg_edge_type"]),
        missing=Missing() if thin.rate else missing,
    )


def _processed(
    facts_file: Path, questions_file: Path, max_entities: int, restart: float, thin: Missing
) -> Processed:
    entities, relations, facts = read_facts(facts_file)
    asked = read_folder_questions(questions_file, {name: k for k, name in enumerate(entities)})
    edge_index = torch.from_numpy(np.ascontiguousarray(facts[:, [0, 2]].T)).int()
    edge_type = torch.from_numpy(facts[:, 1]).int()
    if thin.rate:
        kept = kept_facts(edge_index, edge_type, thin.rate, thin.seed)
        edge_index, edge_type = edge_index[:, kept], edge_type[kept]
    graph = KnowledgeGraph(edge_index, edge_type, len(entities))
    questions = questions_on(
        graph, asked.seeds, asked.answers, asked.hop, max_entities=max_entities, restart=restart
    )
    rows = {"texts": asked.texts, "masked": asked.masked, "entities": entities}
    lines = {name: torch.from_numpy(np.array(join_texts(texts))) for name, texts in rows.items()}
    tensors = {**questions.tensors(), **lines, "kg_edge_index": edge_index, "kg_edge_type": edge_type}
    return Processed(tensors, {"relations": relations, "split": asked.split})
