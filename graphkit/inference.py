"""A finished run, opened for use: ``graphkit.load(run).score(pairs)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.config import RunConfig
from graphkit.data import Benchmark, files_kept
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.mapped import MappedEmbedding
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.experiment import build, pick_device
from graphkit.nn.embedding.elsewhere import without_tables
from graphkit.nn.embedding.partition_range import range_of
from graphkit.run import Run
from graphkit.tasks.base import Task
from graphkit.train.checkpoint import BestWeights, open_best
from graphkit.train.sharded import StoredRows

__all__ = ["Predictor", "load"]


class Predictor:
    """A trained model with its data set.

    Attributes:
        run: The run's folder.
        model: The model with its best weights, in evaluation mode.
        benchmark: The data set.
    """

    def __init__(self, run: Run, benchmark: Benchmark, task: Task, model: nn.Module) -> None:
        self.run, self.benchmark, self.task, self.model = run, benchmark, task, model

    @property
    def config(self) -> RunConfig:
        return self.run.config

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Returns the metrics of a split.

        Raises:
            UserError: There is no such split, or it can't be evaluated.
        """
        self.task.check_split(split)
        return self.task.evaluate(self.model, split)

    def score(self, pairs: Tensor | np.ndarray[Any, Any] | Sequence[Sequence[int]]) -> Tensor:
        """Returns the logit of each node pair, ``[B]`` float32.

        Args:
            pairs: ``[2, B]`` or ``[B, 2]`` node ids (two pairs are read as ``[2, B]``).

        Raises:
            UserError: Not a link model, or ids that the graph doesn't have.
        """
        ids = torch.as_tensor(np.asarray(pairs)) if not isinstance(pairs, Tensor) else pairs
        if ids.numel() == 0:
            return torch.zeros(0)
        if ids.is_floating_point() or ids.dim() != 2 or 2 not in ids.shape:
            raise UserError(
                f"pairs must be integers of shape [2, B] or [B, 2], not {ids.dtype} {tuple(ids.shape)}"
            )
        ids = ids.long() if ids.size(0) == 2 else ids.long().t()
        scores: Tensor = self._task_method("score")(self.model, ids)
        return scores

    def top(self, source: int, k: int = 10) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` likeliest new neighbours of a node and their logits, best first."""
        result: tuple[Tensor, Tensor] = self._task_method("top")(self.model, source, k)
        return result

    def classify(self, nodes: Tensor | Sequence[int]) -> Tensor:
        """Returns the class (or label) probabilities of nodes ``[n]``, ``[n, C]`` float32.

        Raises:
            UserError: Not a node model, or ids that the graph doesn't have.
        """
        ids = torch.as_tensor(nodes, dtype=torch.int64).reshape(-1)
        probabilities: Tensor = self._task_method("probabilities", "classify nodes")(self.model, ids)
        return probabilities

    def predict(self, graphs: str | Data | Sequence[str | Data]) -> Tensor:
        """Returns the predictions for molecules or other graphs, ``[B, T]``.

        Values in the targets' unit, or the probabilities of labels or classes; where nodes are predicted
        ``[n, T]``, those of all nodes.

        Args:
            graphs: SMILES, or graphs with the features of the data set; one or several.

        Raises:
            UserError: Not a graph model, a SMILES that is none, or a data set that isn't made of molecules.
        """
        several = [graphs] if isinstance(graphs, str | Data) else list(graphs)
        method = self._task_method("predictions", "predict graphs")
        if not several:
            return torch.zeros(0, self.benchmark.spec.out_channels or 0)
        values: Tensor = method(self.model, several)
        return values

    def answer(self, question: str, *, entities: Sequence[str] | None = None, top: int = 10) -> Any:
        """Answers a question in words; see :meth:`graphkit.tasks.kgqa.KgqaTask.answer`.

        Args:
            question: What is asked.
            entities: Names of those that it is about; found in its words by default.
            top: Answers at most.

        Raises:
            UserError: Not a model of questions, or a question that names nothing known.
        """
        method = self._task_method("answer", "answer questions")
        return method(self.model, question, entities=entities, top=top)

    def node_names(self) -> list[str] | None:
        """Returns the names of a graph that came with names instead of ids."""
        names = self.benchmark.node_names
        return None if names is None else list(names)

    def _task_method(self, name: str, deed: str = "") -> Any:
        method = getattr(self.task, name, None)
        if method is None:
            raise UserError(
                f"{self.run.name} was trained for {self.config.task_name}; it can't "
                f"{deed or f'{name} node pairs'}"
            )
        return method


def load(run: str | Path, *, data_root: str | Path | None = None, device: str = "cpu") -> Predictor:
    """Opens a run with its best weights, which are verified first.

    The user's own files, which the data set was made from, may be gone while it is in the data root's cache.
    The rows of a partitioned table, whichever number of ranks trained it, stay in their files on the CPU:
    they are mapped into memory, and a look-up reads its own.

    Args:
        run: The run's folder, or ``runs/<model>-<dataset>`` for the newest run in it.
        data_root: Folder of the data sets; by default the one that the run used, ``data`` if that is gone.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        UserError: No run, no checkpoint yet, a damaged one, or data that isn't what the run was trained on.
    """
    opened = Run.open(run)
    root = _data_root(opened) if data_root is None else Path(data_root)
    place = pick_device(device)
    with without_tables(), files_kept(_data_facts(opened).get("files", {})):
        benchmark, task, model = build(opened.config, data_root=root, device=place, orders=False)
    _check_data(opened, benchmark)
    if any(True for _ in model.parameters()):
        best = open_best(opened.checkpoints)
        try:
            _put_in(model, best, task.device)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(f"{opened.checkpoints} is of another model: {error}") from error
    return Predictor(opened, benchmark, task, model.to(task.device).eval())


def _put_in(model: nn.Module, best: BestWeights, device: torch.device) -> None:
    """Gives a model the best weights of a run; tables by rows are mapped where that is possible.

    Raises:
        RuntimeError: They are another model's.
    """
    _put_in_rows(model, best.rows, device)
    tables = tuple(f"{name}.part" for name, part in model.named_modules() if type(part) is MappedEmbedding)
    missing, unexpected = model.load_state_dict(best.tensors, strict=False)
    missing = [name for name in missing if name not in best.rows and not name.startswith(tables)]
    missing += [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise RuntimeError(f"missing are {missing}, unexpected {unexpected}")


def _put_in_rows(model: nn.Module, tables: Mapping[str, StoredRows], device: torch.device) -> None:
    """Puts stored tables in the place of partitioned parameters: of each, the rows of this process."""
    rank, world = rank_and_world()
    for name, stored in tables.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module.get_parameter(own)
        rows, count = range_of(stored.shape[0], rank, world)
        if tuple(parameter.shape) != (count, *stored.shape[1:]):
            raise RuntimeError(f"'{name}' has shape {list(stored.shape)}, not {list(parameter.shape)}")
        parts = [part for _, part, _ in stored.parts if len(part)]
        mappable = world == 1 and device.type == "cpu" and path != ""
        if mappable and len(parts) > 1 and isinstance(module, PartitionedEmbedding):
            mapped = MappedEmbedding(module, parts)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, mapped)
            continue
        fresh = nn.Parameter(stored.read(rows.start, rows.start + count).to(device))
        fresh.partitioned, fresh.rows = True, rows  # type: ignore[attr-defined]
        setattr(module, own, fresh)


def _data_root(run: Run) -> Path:
    """Returns the root that a run took its data from, where it is known and still there."""
    stored = getattr(run, "data_root", None)
    return Path(stored) if stored is not None and Path(stored).is_dir() else Path("data")


def _data_facts(run: Run) -> dict[str, Any]:
    """Returns what the result of a finished run says of its data."""
    facts: dict[str, Any] = (run.result or {}).get("data", {})
    return facts


def _check_data(run: Run, benchmark: Benchmark) -> None:
    """Refuses a data set that isn't what a finished run was trained on; runs of old didn't say."""
    stored = _data_facts(run)
    before, now = stored.get("fingerprint"), benchmark.fingerprint
    if before is None or before == now:
        return
    facts = [
        f"{name} was {stored[name]} and is {benchmark.info[name]}"
        for name in stored
        if name in benchmark.info and isinstance(stored[name], int) and stored[name] != benchmark.info[name]
    ]
    raise UserError(
        f"data set '{benchmark.name}' is no longer what {run.name} was trained on: "
        + (", ".join(facts) if facts else f"its content differs ({now}, was {before})")
        + "; restore its files (or give their folder with --data-root), or train a new run"
    )
