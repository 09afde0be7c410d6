"""MetaQA: questions about movies, of one, two and three hops (Zhang et al., AAAI 2018, arXiv:1709.04071).

Each question names one entity in brackets; its subgraph holds the best entities around that one by
personalised PageRank, as in the published preparation (He et al., WSDM 2021): :mod:`graphkit.ppr`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from graphkit.data import Benchmark, Processed, cached
from graphkit.datasets.graph_sets import Texts, join_texts, split_at
from graphkit.datasets.kgqa_benchmark import MASK, Missing, kgqa_benchmark, some_of
from graphkit.datasets.kgqa_files import placed
from graphkit.datasets.metaqa_files import (
    Base,
    Question,
    find,
    part_file,
    read_base,
    read_part,
    read_types,
    regenerated,
    type_file,
)
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.incomplete import Scope, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet
from graphkit.registry import register_dataset

__all__ = ["Training", "load_metaqa"]

Training = Literal["auto", "official", "regenerated"]

VERSION = 1
SOURCE = "https://github.com/yuyuz/MetaQA"
COUNTS = {1: (96106, 9992, 9947), 2: (118980, 14872, 14872), 3: (114196, 14274, 14274)}
"""Questions of training, validation and test, by hops, as published."""
PARTS = {"train": "train", "valid": "dev", "test": "test"}
CITATION = (
    "Zhang, Dai, Kozareva, Smola, Song: Variational Reasoning for Question Answering with Knowledge Graph, "
    "AAAI 2018, arXiv:1709.04071"
)


def load_metaqa(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    hops: list[int],
    path: str | None = None,
    max_entities: int = 500,
    training: Training = "auto",
    num_train: int | None = None,
    num_valid: int | None = None,
    mask: bool = True,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """MetaQA: questions about movies, with a knowledge base of 43,234 entities and 133,582 facts.

    Args:
        root: Its folder ``metaqa`` holds the files, in the layout of the official archive or in ids; see
            :mod:`graphkit.datasets.metaqa_files`. They can't be fetched without a browser.
        task: ``"kgqa"``.
        seed: Draws the questions of ``num_train`` and ``num_valid``, and makes those that are regenerated.
        hops: Which questions.
        path: Another folder with the files.
        max_entities: The most entities of a subgraph.
        training: ``official`` questions; ``regenerated`` ones from the templates of validation and test, of
            the types that official ones have, none about what validation and test ask; or ``auto``, the
            former if there are any.
        num_train: The most questions to train on; all by default.
        num_valid: The most questions to validate on; all by default.
        mask: Whether models read "NE" in place of the entity's name. Its subgraph tells what it is, and all
            questions of a template then have one text.
        incomplete: Share of the facts that are missing.
        incomplete_seed: Seeds which ones.
        incomplete_scope: ``global`` thins out the knowledge base, before subgraphs are extracted; others the
            subgraphs. See :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: Missing or damaged files, a value out of range.
    """
    if training not in get_args(Training):
        raise UserError(f"training is '{training}'; it is one of: {', '.join(get_args(Training))}")
    home = Path(root) / "metaqa"
    folder = home if path is None else Path(path)
    _check_files(folder, hops)
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    thin = missing if missing.rate and missing.scope == "global" else Missing()
    official = training == "official" or (
        training == "auto" and all(part_file(folder, "train", hop) for hop in hops)
    )
    sets: list[QuestionSet] = []
    arrays: dict[str, list[str]] = {"texts": [], "masked": []}
    counts = {part: 0 for part in PARTS}
    base: Processed | None = None
    order: list[tuple[str, int]] = [(part, hop) for part in PARTS for hop in hops]
    for part, hop in order:
        made = _kept(home, folder, part, hop, official, seed, max_entities, thin)
        base = made
        sets.append(QuestionSet.of(made.tensors))
        counts[part] += len(sets[-1])
        for name in arrays:
            arrays[name].extend(Texts(made.tensors[name]))
    assert base is not None
    splits = split_at(*counts.values())
    splits["train"] = {"index": some_of(splits["train"]["index"], num_train, seed)}
    splits["valid"] = {"index": some_of(splits["valid"]["index"], num_valid, seed)}
    info: dict[str, Any] = {
        "training": "official" if official else "regenerated",
        "hops": list(hops),
        "max_entities": max_entities,
        "restart": 0.8,
        "mask": MASK if mask else None,
        **thin.facts(),
    }
    wanted = [sum(COUNTS[hop][k] for hop in hops) for k in range(3)]
    info["published_counts"] = list(counts.values()) == wanted
    return kgqa_benchmark(
        f"metaqa-{'-'.join(map(str, hops))}",
        QuestionSet.join(sets),
        splits,
        arrays["texts"],
        list(Texts(base.tensors["entities"])),
        base.info["relations"],
        info=info,
        citation=CITATION,
        question_texts=arrays["masked"] if mask else None,
        graph=(base.tensors["kg_edge_index"], base.tensors["kg_edge_type"]),
        missing=Missing() if thin.rate else missing,
    )


def _check_files(folder: Path, hops: Sequence[int]) -> None:
    """Complains of a folder without knowledge base, or without validation or test questions."""
    lacking = [] if find(folder, "kb.txt", "kb/train.txt") else ["kb.txt"]
    for hop in hops:
        if hop not in COUNTS:
            raise UserError(f"hops holds {hop}; MetaQA has 1, 2 and 3")
        lacking += [f"{hop}-hop/vanilla/qa_{p}.txt" for p in ("dev", "test") if not part_file(folder, p, hop)]
    if lacking:
        raise UserError(
            f"{folder} lacks {', '.join(lacking)}; unpack MetaQA there (linked at {SOURCE}), or use "
            "another data set, as countries, which needs no download"
        )


def _kept(
    home: Path,
    folder: Path,
    part: str,
    hop: int,
    official: bool,
    seed: int,
    max_entities: int,
    thin: Missing,
) -> Processed:
    """Returns the questions of one part, with subgraphs, from the cache, which makes them the first time."""
    base_files = [placed(folder, name) for name in ("kb.txt", "kb/train.txt", "kb/entities.dict")]
    made_again = part == "train" and not official
    used = PARTS.values() if made_again else (PARTS[part],)
    files = [*base_files, *(file(folder, p, hop) for p in used for file in (part_file, type_file))]
    hashes = "/".join(sha256(path)[:16] for path in files if path is not None)
    key = f"metaqa/{part}{hop}/{VERSION}/{hashes}/n={max_entities}/{thin}"
    if made_again:
        key += f"/regenerated={seed}"

    def build() -> Processed:
        base = read_base(folder)
        if made_again:
            asked = _regenerated(folder, hop, base, seed)
        else:
            found = read_part(folder, PARTS[part], hop, base)
            if found is None:
                raise UserError(f"{folder} has no official training questions: use training=regenerated")
            asked = found
        return _processed(base, asked, hop, max_entities, thin)

    return cached(home / "processed", key, build)


def _regenerated(folder: Path, hop: int, base: Base, seed: int) -> list[Question]:
    """Makes training questions, of each type as many as the official ones are, or would be in proportion."""
    known = [q for part in ("dev", "test") for q in read_part(folder, part, hop, base) or ()]
    if not all(question.kind for question in known):
        raise UserError(f"{folder} lacks the types of {hop}-hop questions, by which others are made")
    kinds = Counter(read_types(folder, "train", hop))
    if not kinds:
        own = Counter(question.kind for question in known)
        kinds = Counter({kind: n * COUNTS[hop][0] // len(known) for kind, n in own.items()})
    return regenerated(base, known, kinds, seed)


def _processed(
    base: Base, asked: Sequence[Question], hop: int, max_entities: int, thin: Missing
) -> Processed:
    """Extracts subgraphs and lays all out as tensors."""
    edge_index = torch.from_numpy(np.ascontiguousarray(base.facts[:, [0, 2]].T)).int()
    edge_type = torch.from_numpy(base.facts[:, 1].astype(np.int16))
    if thin.rate:
        kept = kept_facts(edge_index, edge_type, thin.rate, thin.seed)
        edge_index, edge_type = edge_index[:, kept], edge_type[kept]
    graph = KnowledgeGraph(edge_index, edge_type, len(base.entities))
    questions = questions_on(
        graph,
        [(question.topic,) for question in asked],
        [question.answers for question in asked],
        [hop] * len(asked),
        max_entities=max_entities,
    )
    names = list(base.entities)
    texts = {
        "texts": [question.text(names[question.topic]) for question in asked],
        "masked": [question.text(MASK) for question in asked],
        "entities": names,
    }
    lines = {name: torch.from_numpy(np.array(join_texts(rows))) for name, rows in texts.items()}
    tensors = {**questions.tensors(), **lines, "kg_edge_index": edge_index, "kg_edge_type": edge_type}
    return Processed(tensors, {"relations": base.relations})


def _registered(hop: int) -> Callable[..., Benchmark]:
    def load(
        *,
        root: str | Path = "data",
        task: str = "kgqa",
        seed: int = 0,
        path: str | None = None,
        max_entities: int = 500,
        training: Training = "auto",
        num_train: int | None = None,
        num_valid: int | None = None,
        mask: bool = True,
        incomplete: float = 0.0,
        incomplete_seed: int = 0,
        incomplete_scope: Scope = "global",
    ) -> Benchmark:
        return load_metaqa(
            root=root,
            task=task,
            seed=seed,
            hops=[hop],
            path=path,
            max_entities=max_entities,
            training=training,
            num_train=num_train,
            num_valid=num_valid,
            mask=mask,
            incomplete=incomplete,
            incomplete_seed=incomplete_seed,
            incomplete_scope=incomplete_scope,
        )

    lines = (load_metaqa.__doc__ or "").splitlines()
    told = [line for line in lines[1:] if "hops: Which questions" not in line]
    load.__doc__ = "\n".join([f"MetaQA, {hop} hop{'s' * (hop > 1)}: questions about movies.", *told])
    return register_dataset(f"metaqa-{hop}", task="kgqa", paper="arXiv:1709.04071")(load)


for _hop in COUNTS:
    _registered(_hop)
