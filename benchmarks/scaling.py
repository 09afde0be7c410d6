"""Training steps on one process and on two that share each batch's gradients: what the second one is worth.

python benchmarks/scaling.py [RECIPE ...] [--data-root DIR] [--steps N] [--json FILE]

Every rank computes batches of the recipe's size: two ranks do twice the work of one. Efficiency is the time
of a step alone over that of a step on two ranks; 100 % would mean that messages cost nothing. Processes have
one thread each and talk over gloo. Shown are medians: of the CPU time of a rank's process, in which waiting
doesn't count, and of wall time, which is worth something on a machine with nothing else to do only. Two
processes that share caches and memory are slower than one, whatever they do: `apart` is a step of one of two
processes that know nothing of each other, and the second efficiency is measured from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from graphkit.commands.reproduce import recipe_config
from graphkit.distributed.ranks import gather_rows
from graphkit.environment import rank_and_world
from graphkit.experiment import build
from graphkit.files import atomic_write
from graphkit.recipes import find_recipe
from graphkit.report import format_table
from graphkit.testing import on_ranks
from graphkit.train import Trainer

RECIPES = ["ncnc/cora", "grit/zinc", "epignn/rcc8"]
WARM = 5


def measure(name: str, root: Path, steps: int, found: Path) -> None:
    """Takes steps of a recipe on the ranks at hand; rank 0 writes their times."""
    recipe = find_recipe(*name.split("/", 1))
    assert recipe is not None, name
    config = recipe_config(recipe, 0)
    experiment = build(config, data_root=root)
    trainer = Trainer(experiment.model, experiment.task, config)
    assert trainer.optimizer is not None
    times = []
    for step in range(WARM + steps):
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.gradients(*divmod(step, trainer.steps))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        times.append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
    middle = [statistics.median(column) for column in zip(*times[WARM:], strict=True)]
    every = torch.cat(gather_rows(torch.tensor([middle], dtype=torch.float64))).mean(0)
    if rank_and_world()[0] == 0:
        atomic_write(found, json.dumps(every.tolist()))


def apart(work: Callable[[], None]) -> list[int]:
    """Runs work in two forked processes at once, which know nothing of each other."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    """Reads arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", nargs="*", default=RECIPES)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.recipe:
        times = {}
        for way in ("alone", "apart", "together"):
            with tempfile.TemporaryDirectory() as folder:
                found = Path(folder) / "times.json"
                work = (name, options.data_root, options.steps, found)
                if way == "apart":
                    codes = apart(lambda work=work: measure(*work))
                else:
                    world = 1 if way == "alone" else 2
                    codes = on_ranks(world, lambda rank, work=work: measure(*work), Path(folder), seconds=600)
                if any(codes):
                    raise SystemExit(f"{name} failed, {way}")
                times[way] = json.loads(found.read_text())
        for column, what in enumerate(("CPU", "wall")):
            row: dict[str, object] = {"recipe": name, "ms": what}
            row |= {way: values[column] for way, values in times.items()}
            for way in ("alone", "apart"):
                row[f"of {way}"] = f"{100 * times[way][column] / times['together'][column]:.0f} %"
            rows.append(row)
    print(format_table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
