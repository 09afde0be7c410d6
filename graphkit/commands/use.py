"""``evaluate`` and ``predict``: what a finished run is good for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from graphkit.commands.parser import Parser
from graphkit.errors import UserError
from graphkit.files import atomic_write
from graphkit.inference import Predictor, load

__all__ = ["evaluate", "predict"]


def evaluate(argv: Sequence[str]) -> int:
    """Evaluates a run's best weights; returns the exit code."""
    parser = _parser("evaluate", "Evaluates a run's best weights and prints the metrics as JSON.")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="default: test")
    options = parser.parse_args(argv)
    predictor = load(options.run, data_root=options.data_root, device=options.device)
    if "neg_edge_label_index" not in predictor.benchmark.splits[options.split] and options.split == "train":
        raise UserError(
            f"{predictor.config.dataset_name} has no negatives for its training split; take valid or test"
        )
    metrics = predictor.evaluate(options.split)
    print(json.dumps({"run": str(predictor.run.folder), "split": options.split, **metrics}, indent=1))
    stored = (predictor.run.result or {}).get(options.split)
    if stored is not None and stored != metrics:
        print(f"these differ from the run's result.json: {json.dumps(stored)}")
        return 1
    return 0


def predict(argv: Sequence[str]) -> int:
    """Predicts links with a run's best weights; returns the exit code."""
    parser = _parser(
        "predict", "Predicts with a run's best weights: new neighbours of a node, or scores of pairs."
    )
    parser.add_argument(
        "--source", metavar="NODE", help="id or name of a node whose likeliest new links are listed"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many of them (default 10)")
    parser.add_argument("--pairs", metavar="FILE", help="CSV or TSV with two node ids or names a line")
    parser.add_argument("--out", metavar="FILE", help="write CSV there instead of printing it")
    options = parser.parse_args(argv)
    if (options.source is None) == (options.pairs is None):
        raise UserError("predict: give either --source NODE or --pairs FILE")
    if options.top < 1:
        raise UserError(f"--top is {options.top}; it must be at least 1")
    predictor = load(options.run, data_root=options.data_root, device=options.device)
    rows = (
        _scores(predictor, options.pairs)
        if options.source is None
        else _top(predictor, options.source, options.top)
    )
    table = io.StringIO()
    header = ["source", "target", "logit", "probability"]
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    text = table.getvalue()
    if options.out is None:
        print(text, end="")
    else:
        atomic_write(Path(options.out), text)
        print(f"{len(rows)} rows written to {options.out}")
    return 0


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description)
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, or runs/<model>-<dataset> for its newest run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--data-root", default="data", metavar="DIR", help="folder of the data sets (default data)"
    )
    return parser


def _top(predictor: Predictor, source: str, k: int) -> list[list[str]]:
    names = predictor.node_names()
    node = _node(source, names, "--source")
    targets, logits = predictor.top(node, k)
    return [_row(node, int(t), float(s), names) for t, s in zip(targets, logits, strict=True)]


def _scores(predictor: Predictor, file: str) -> list[list[str]]:
    names = predictor.node_names()
    pairs = _read_pairs(Path(file), names)
    logits = predictor.score(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t())
    return [_row(i, j, float(s), names) for (i, j), s in zip(pairs, logits, strict=True)]


def _read_pairs(path: Path, names: list[str] | None) -> list[tuple[int, int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {error}") from error
    index = {name: number for number, name in enumerate(names)} if names is not None else None
    pairs = []
    for number, line in enumerate(
        csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ","), start=1
    ):
        cells = [cell.strip() for cell in line if cell.strip()]
        if not cells or (number == 1 and not _is_node(cells[0], index)):
            continue
        if len(cells) < 2:
            raise UserError(f"{path}, line {number}: two nodes expected, got {line!r}")
        where = f"{path}, line {number}"
        pairs.append((_node(cells[0], names, where, index), _node(cells[1], names, where, index)))
    return pairs


def _is_node(text: str, index: dict[str, int] | None) -> bool:
    return text in index if index is not None else _is_id(text)


def _is_id(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def _node(text: str, names: list[str] | None, where: str, index: dict[str, int] | None = None) -> int:
    if names is None:
        if not _is_id(text):
            raise UserError(f"{where}: '{text}' is no node id")
        return int(text)
    found = index.get(text) if index is not None else (names.index(text) if text in names else None)
    if found is None:
        raise UserError(f"{where}: the graph has no node '{text}'")
    return found


def _row(i: int, j: int, logit: float, names: list[str] | None) -> list[str]:
    first, second = (names[i], names[j]) if names is not None else (str(i), str(j))
    probability = 1.0 / (1.0 + float(torch.tensor(-logit).exp()))
    return [first, second, f"{logit:.6f}", f"{probability:.6f}"]
