"""What iterations, instructions, layers and the update of instructions are worth to ReaRev on MetaQA.

python benchmarks/rearev_ablation.py --data-root DIR [--hops H] [--questions N] [--epochs N] [--seeds N]
    [--settings NAME ...]

One setting at a time departs from K = 3 instructions, L = 3 layers, T = 2 iterations. All have the same
training questions in the same order, the schedule of the recipe ``metaqa-3`` and the same test questions, a
part of the published ones. So figures compare settings under little training; none is the best that a setting
can reach. A seed decides the weights at the start and the order of questions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from graphkit.datasets.metaqa import load_metaqa
from graphkit.models.rearev import ReaRev
from graphkit.tasks.kgqa import KgqaTask

COMMON: dict[str, Any] = {
    "instructions": 3,
    "relation_features": "embedding",
    "relation_channels": 200,
    "dropout": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "K = 3, L = 3, T = 2": {},
    "T = 1": {"iterations": 1},
    "T = 3": {"iterations": 3},
    "K = 1": {"instructions": 1},
    "K = 2": {"instructions": 2},
    "L = 1": {"layers": 1},
    "L = 2": {"layers": 2},
    "without update": {"update": False},
}
WARM = 50  # steps over which the learning rate rises


def trained(task: KgqaTask, seed: int, epochs: int, lr: float, options: dict[str, Any]) -> ReaRev:
    """Trains a model, with a learning rate that falls to nothing."""
    torch.manual_seed(seed)
    spec = task.benchmark.spec
    model = ReaRev(spec.num_relations, spec.text_channels, **{**COMMON, **options}).to(task.device)
    optimizer = torch.optim.Adam(model.parameters())
    total = epochs * task.steps_per_epoch
    for number in range(total):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((number + 1) / WARM, 1 - number / total)
        loss = task.loss(model, task.batch(*divmod(number, task.steps_per_epoch)))
        optimizer.zero_grad()
        (loss.total / loss.divisor).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def main() -> None:
    """Prints a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--hops", type=int, default=3)
    parser.add_argument("--questions", type=int, default=4000, help="training questions")
    parser.add_argument("--entities", type=int, default=200, help="of a training question's subgraph")
    parser.add_argument("--test", type=int, default=2000, help="test questions")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default="sentence:all-MiniLM-L6-v2")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME")
    args = parser.parse_args()
    benchmark = load_metaqa(
        root=args.data_root,
        hops=[args.hops],
        num_train=args.questions,
        num_valid=1,
        num_test=args.test,
        train_entities=args.entities,
    )
    index = benchmark.splits["test"]["index"]
    print(f"{args.questions:,} questions, {args.epochs} epochs, {index.numel():,} test questions\n")
    print("| setting | Hits@1 | F1 | parameters | CPU s |\n|---|---|---|---|---|")
    for name in args.settings:
        hits, f1s, start = list[float](), list[float](), time.process_time()
        for seed in range(args.seeds):
            task = KgqaTask(benchmark, seed, 8, 32, encoder=args.encoder)
            model = trained(task, seed, args.epochs, args.lr, SETTINGS[name])
            found = task.evaluate(model, "test")
            hits.append(100 * found["hits@1"])
            f1s.append(100 * found["f1"])
        cost = (time.process_time() - start) / args.seeds
        spread = f" ± {statistics.stdev(hits):.1f}" if len(hits) > 1 else ""
        size = sum(p.numel() for p in model.parameters())
        cells = [f"{statistics.mean(hits):.1f}{spread}", f"{statistics.mean(f1s):.1f}", f"{size:,}"]
        print(f"| {name} | {' | '.join(cells)} | {cost:.0f} |", flush=True)


if __name__ == "__main__":
    main()
