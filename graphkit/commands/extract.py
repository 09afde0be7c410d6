"""``extract``: subgraphs of questions, written in the published form that every reader of it knows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from graphkit.commands.parser import Parser
from graphkit.data import Benchmark, load_dataset
from graphkit.errors import UserError
from graphkit.files import atomic_write, make_folder
from graphkit.questions import QuestionSet

__all__ = ["extract"]

DESCRIPTION = """Extracts the subgraph of each question by personalised PageRank and writes questions with
their subgraphs as JSON lines, in the form that WebQSP's published files have.

  extract my_folder --out extracted                     kb.tsv and questions.jsonl of your own
  extract my_folder --max-entities 500 --restart 0.5 --out extracted
  extract my_folder --incomplete 0.5 --out half         with half of the facts missing

The folder that is written holds train.json, dev.json, test.json, entities.txt and relations.txt, and can be
trained on: train rearev --dataset kgqa-folder --data.path extracted."""
FILES = {"train": "train.json", "valid": "dev.json", "test": "test.json"}


def extract(argv: Sequence[str]) -> int:
    """The command; returns the exit code.

    Raises:
        UserError: A folder without the files, damaged ones, or a value out of range.
    """
    options = _parser().parse_args(_folder_first(argv))
    if options.folder is None:
        raise UserError("the folder comes first: extract FOLDER --out FOLDER")
    if options.out is None:
        raise UserError(f"where shall they go? extract {options.folder} --out FOLDER")
    if options.threads is not None:
        if options.threads < 1:
            raise UserError(f"--threads is {options.threads}; it must be at least 1")
        torch.set_num_threads(options.threads)
    benchmark = load_dataset(
        "kgqa-folder",
        root=options.root,
        seed=options.seed,
        path=options.folder,
        max_entities=options.max_entities,
        restart=options.restart,
        incomplete=options.incomplete,
        incomplete_seed=options.seed,
        incomplete_scope=options.scope,
    )
    out = make_folder(options.out)
    questions = QuestionSet.of(benchmark.data)
    for part, name in FILES.items():
        lines = _lines(benchmark, questions, benchmark.splits[part]["index"])
        atomic_write(out / name, "".join(lines))
    for name, rows in (("entities.txt", benchmark.node_names), ("relations.txt", benchmark.target_names)):
        atomic_write(out / name, "".join(f"{row}\n" for row in rows or ()))
    print(_report(questions, out))
    return 0


def _lines(benchmark: Benchmark, questions: QuestionSet, index: torch.Tensor) -> Iterator[str]:
    """Yields a line for each question, in ids; answers by name, as ``kb_id`` and ``text``."""
    names, texts = benchmark.node_names or (), benchmark.questions or ()
    for number in index.tolist():
        one = questions.batch(torch.tensor([number]))
        entity = one.entity.tolist()
        facts = torch.stack([one.entity[one.edge_index[0]], one.edge_type, one.entity[one.edge_index[1]]], 1)
        gold = [names[answer] for answer in questions.answers(one.ids)[0].tolist()]
        row = {
            "id": str(number),
            "question": texts[number],
            "entities": one.entity[one.seed].tolist(),
            "answers": [{"kb_id": name, "text": name} for name in gold],
            "subgraph": {"entities": entity, "tuples": facts.tolist()},
            "hop": int(questions.hop[number]),
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _report(questions: QuestionSet, out: Path) -> str:
    """Returns what was written, and how many questions and answers the subgraphs hold."""
    inside = found = gold = 0
    for ids in torch.arange(len(questions)).split(1024):
        batch = questions.batch(ids)
        owner = torch.repeat_interleave(torch.arange(ids.numel()), batch.ptr.diff())
        counts = torch.bincount(owner[batch.answer], minlength=ids.numel())
        inside, found = inside + int((counts > 0).sum()), found + int(counts.sum())
        gold += questions.answers(ids)[0].numel()
    entities = float(questions.num_entities().double().mean())
    facts = float(questions.fact_ptr.diff()[questions.graph.long()].double().mean())
    share, recall = 100 * inside / max(len(questions), 1), 100 * found / max(gold, 1)
    return (
        f"{len(questions):,} questions written to {out}: {entities:,.0f} entities and {facts:,.0f} facts "
        f"each on average; {share:.1f} % have an answer inside, {recall:.1f} % of answers are"
    )


def _folder_first(argv: Sequence[str]) -> list[str]:
    """Turns a leading name into an option, so that no flag's value is taken for it."""
    return ["--folder", argv[0], *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


def _parser() -> Parser:
    parser = Parser("extract", DESCRIPTION)
    parser.usage = "extract FOLDER [options] --out FOLDER"
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--out", metavar="FOLDER", help="where the files go; created if need be")
    parser.add_argument("--max-entities", type=int, default=2000, help="of a subgraph (default 2000)")
    parser.add_argument("--restart", type=float, default=0.8, help="of the random walk (default 0.8)")
    parser.add_argument("--incomplete", type=float, default=0.0, help="share of facts that go missing (0)")
    parser.add_argument("--scope", default="global", help="global, per_question or published (global)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of missing facts (default 0)")
    parser.add_argument("--threads", type=int, help="as many as there are cores by default")
    parser.add_argument("--root", default="data", help="where what was made is kept (default data)")
    return parser
