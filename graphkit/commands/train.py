"""``train``: one run, or one run a seed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from torch import nn

from graphkit.commands.catalogue import plain
from graphkit.commands.parser import Parser
from graphkit.config import RunConfig
from graphkit.distributed.launch import attempt, launch_id
from graphkit.distributed.ranks import same_everywhere
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.experiment import build, choose_task, pick_device
from graphkit.files import atomic_write
from graphkit.logging import RunLogger
from graphkit.nn.embedding import Embedding, EmbeddingConfig
from graphkit.parsing import from_file, make_parser, resolve, sectioned, set_values
from graphkit.recipes import default_recipe, find_recipe
from graphkit.registry import DATASETS, MODELS, TASKS
from graphkit.report import aggregate, format_table, plot_curves
from graphkit.run import Run
from graphkit.train.guard import replay
from graphkit.train.loop import Trainer
from graphkit.train.result import Result

__all__ = ["parse_seeds", "run_once", "train"]

DESCRIPTION = """Trains a model by name.

  train ncnc                                its first recipe
  train ncnc --dataset cora --seeds 10      seeds 0 to 9, mean and deviation
  train ncnc --model.depth 2 --optim.lr 0.01 --train.epochs 50
  train --resume runs/ncnc-cora             continue the newest run there

train MODEL --help lists every parameter of that model."""


def train(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    options, flags = _options().parse_known_args(_model_first(argv))
    options.dataset, flags = from_file(options.dataset, flags)
    if options.help:
        return _help(options.model, options.dataset)
    if options.replay is not None:
        return _replay(Path(options.replay), options)
    if options.resume is not None:
        return _resume(options, flags)
    if options.seed is not None and options.seeds is not None:
        raise UserError("give either --seed or --seeds")
    seeds = parse_seeds(options.seeds) if options.seeds is not None else [options.seed]
    configs = [
        resolve(
            options.model, options.dataset, flags, task_name=options.task_name, file=options.config, seed=seed
        )
        for seed in seeds
    ]
    results = []
    for number, config in enumerate(configs):
        results.append(
            run_once(
                config,
                options.runs,
                options.data_root or "data",
                options.device,
                announce=number == 0,
                tensorboard=options.tensorboard,
            )
        )
    if len(results) > 1:
        print(summary_table(results))
    return 0


def run_once(
    config: RunConfig,
    runs: str | Path,
    data_root: str | Path,
    device: str,
    run: Run | None = None,
    *,
    announce: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Trains a configuration, or goes on with a run of it, and stores everything in the run's folder.

    Args:
        config: Complete.
        runs: Folder of all runs; a new one is made there if ``run`` isn't given.
        data_root: Folder of the data sets.
        device: ``auto`` or a torch device.
        run: A run to go on with.
        announce: Print the configuration before training.
        tensorboard: Write event files for TensorBoard into the run's folder as well.

    Raises:
        UserError: The run is in use, or what the configuration names can't be built; no new folder is left.
    """
    launch = None if launch_id() is None else {"job": launch_id(), "config": config.hash()}
    earlier = run
    if run is None and launch is not None and attempt() > 0:  # torchrun starts a job again as it began
        earlier = same_everywhere(Run.of_launch(runs, config, launch))
    config = config if earlier is None or earlier is run else earlier.config
    begun = None if earlier is None else earlier.ranks
    experiment = build(config, data_root=data_root, device=pick_device(device), ranks=begun)
    config = _settled(config, experiment.model)
    Trainer.check(experiment.model, experiment.task, config)  # complains before a folder is made
    opened = earlier
    if opened is None:
        made = Run.create(runs, config, data_root, launch=launch) if rank_and_world()[0] == 0 else None
        opened = same_everywhere(made)
    if announce:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False), flush=True)
    logger = RunLogger(opened, tensorboard=tensorboard)
    try:
        result = Trainer(experiment.model, experiment.task, config, opened, logger).fit()
    except BaseException:
        if earlier is None and rank_and_world()[0] == 0:
            opened.discard_if_empty()
        raise
    if rank_and_world()[0] == 0:
        if result.epochs:
            plot_curves(opened)
        for name, picture in experiment.task.pictures({"valid": result.valid, "test": result.test}).items():
            atomic_write(opened.folder / name, picture)
    print(f"{result_line(result)}\n{opened.folder}", flush=True)
    return result


def _settled(config: RunConfig, model: nn.Module) -> RunConfig:
    """Puts what a plan has chosen in place of an embedding's ``auto``: other numbers of ranks may load it."""
    asked = config.model.get("embedding")
    if EmbeddingConfig.of(asked).kind != "auto":
        return config
    chosen = next(m.config for m in model.modules() if isinstance(m, Embedding) and m.config is not None)
    return replace(config, model={**config.model, "embedding": asdict(chosen)})


def result_line(result: Result) -> str:
    """Returns the outcome in one line."""
    metric = result.metric
    when = f", best epoch {result.best_epoch} of {result.epochs}" if result.best_epoch is not None else ""
    return (
        f"{result.model} on {result.dataset}, seed {result.seed}: test {metric} {result.test[metric]:.4f}, "
        f"valid {result.valid[metric]:.4f}{when}, {result.parameters:,} parameters, {result.seconds:.1f} s"
    )


def summary_table(results: Sequence[Result]) -> str:
    """Returns mean and unbiased deviation of every metric over seeds, as a table."""
    summary = aggregate([result.to_dict() for result in results])
    metrics = [
        {"metric": name, **{split: summary[split][name] for split in summary}} for name in summary["test"]
    ]
    return format_table(metrics)


def parse_seeds(text: str) -> list[int]:
    """Reads ``10`` as the seeds 0 to 9, and ``0,3,5`` or ``2-4`` as they stand.

    Raises:
        UserError: It is none of these.
    """
    try:
        if text.isdigit():
            seeds = list(range(int(text)))
        else:
            seeds = []
            for part in text.split(","):
                first, _, last = part.partition("-")
                seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is '{text}'; it must be a number of seeds (10) or a list (0,1,4-6)")
    return seeds


def _model_first(argv: Sequence[str]) -> list[str]:
    """Turns a leading model name into an option, so that no flag's value is taken for it."""
    return ["--model-name", argv[0], *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


def _options() -> Parser:
    parser = Parser("train", DESCRIPTION, add_help=False)
    parser.add_argument("--model-name", dest="model", help=argparse.SUPPRESS)
    parser.add_argument(
        "--dataset", metavar="NAME", help="data set; default: that of the model's first recipe"
    )
    parser.add_argument("--task-name", metavar="NAME", help="task, where the data set serves several")
    parser.add_argument("--seed", type=int, default=None, help="seed of the run (default 0)")
    parser.add_argument("--seeds", metavar="N|LIST", help="several runs: 10 means seeds 0 to 9; or 0,1,4-6")
    parser.add_argument("--config", metavar="FILE", help="YAML file in the form of a run's config.yaml")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run; its configuration wins")
    parser.add_argument(
        "--replay", metavar="DIR", help="compute a dumped step (RUN/failures/...) again, without an update"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of the data sets (default: data; on resume, the run's)"
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default runs)")
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=importlib.util.find_spec("tensorboard") is not None,
        help="event files in the run's folder (default: if TensorBoard is installed)",
    )
    parser.add_argument("-h", "--help", action="store_true", help=argparse.SUPPRESS)
    return parser


def _resume(options: argparse.Namespace, flags: Sequence[str]) -> int:
    for flag in ("seeds", "config", "task_name"):
        if getattr(options, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} doesn't go with --resume: the run's configuration is stored"
            )
    run = Run.open(options.resume)
    stored = run.config
    for key, given in (
        ("model_name", options.model),
        ("dataset_name", options.dataset),
        ("seed", options.seed),
    ):
        if given is not None and given != getattr(stored, key):
            raise UserError(f"{key} is {getattr(stored, key)!r} in {run.folder} and can't become {given!r}")
    config = _with_flags(stored, flags) if flags else stored
    run.check_same(config)
    runs = run.folder.parent.parent
    data_root = options.data_root or run.data_root or "data"
    run_once(config, runs, data_root, options.device, run, tensorboard=options.tensorboard)
    return 0


def _replay(folder: Path, options: argparse.Namespace) -> int:
    try:
        dump = json.loads((folder / "step.json").read_text())
        config = RunConfig.from_dict(dump["config"])
        epoch, step = int(dump["epoch"]), int(dump["step"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no dump of a step that can be read: {error}") from error
    experiment = build(config, data_root=options.data_root or "data", device=pick_device(options.device))
    trainer = Trainer(experiment.model, experiment.task, config)
    found = replay(trainer, epoch, step, folder / "model.safetensors")
    print(json.dumps({"epoch": epoch, "step": step, **found}, indent=1))
    return 0


def _with_flags(stored: RunConfig, flags: Sequence[str]) -> RunConfig:
    """Lays flags over a stored configuration, which takes the place of recipe and file."""
    flags = sectioned(DATASETS.get(stored.dataset_name), flags)
    parsed = resolve(
        stored.model_name, stored.dataset_name, flags, task_name=stored.task_name, seed=stored.seed
    ).to_dict()
    given = {flag.split("=", 1)[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    values = stored.to_dict()
    for name in given:
        section, key, *item = name.split(".", 2)
        new = parsed[section][key]
        if item:  # one entry of a dictionary
            new = {**values[section][key], item[0]: new[item[0]]}
        values[section] = {**values[section], key: new}
    return replace(RunConfig.from_dict(values), seed=stored.seed)


def _help(model_name: str | None, dataset_name: str | None) -> int:
    parser = _options()
    if model_name is None:
        parser.usage = "train MODEL [--dataset NAME] [options] [--section.key value ...]"
        parser.print_help()
        print(f"\nmodels: {', '.join(MODELS.names())}\ndata sets: {', '.join(DATASETS.names())}")
        return 0
    model = MODELS.get(model_name)
    recipe = default_recipe(model.name)
    fitting = [name for name in DATASETS.names() if set(DATASETS.get(name).tasks) & set(model.tasks)]
    named = dataset_name.partition("@")[0] if dataset_name else None
    dataset = DATASETS.get(named or (recipe.dataset_name if recipe else fitting[0]))
    run_parser = make_parser(f"train {model.name}", model, dataset, TASKS.get(choose_task(model, dataset)))
    run_parser.usage = f"train {model.name} [--dataset NAME] [options] [--section.key value ...]"
    chosen = find_recipe(model.name, dataset_name or dataset.name)
    if chosen is not None:  # its values are the defaults that count
        set_values(run_parser, chosen.values, f"recipe {chosen.name}")
    parser.usage, parser.description = argparse.SUPPRESS, argparse.SUPPRESS
    print(plain(run_parser.format_help()), end="")
    print(f"\nthe run (data sets for {model.name}: {', '.join(fitting)}):")
    parser.print_help(sys.stdout)
    return 0
