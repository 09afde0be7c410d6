"""Prediction for whole graphs, or for every node of them: regression, binary labels, classes."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark
from graphkit.distributed.ranks import Each, in_turn, share_out
from graphkit.errors import UserError
from graphkit.graphs import GraphSet, collate, ragged_index
from graphkit.registry import register_task
from graphkit.sampling import seed_order
from graphkit.tasks import graph_prediction
from graphkit.tasks.base import Loss, Task, derive_seed, generator, portions, wide
from graphkit.tasks.graph_loss import Standard, class_weights, divisor, sum_of_losses

__all__ = ["GraphBatch", "GraphModelProtocol", "GraphTask", "SmilesModelProtocol"]

_LOSSES = {
    "regression": ("auto", "mae", "mse"),
    "binary": ("auto", "cross_entropy", "weighted"),
    "classes": ("auto", "cross_entropy", "weighted"),
}


class GraphModelProtocol(Protocol):
    """What the graph task calls.

    ``x`` ``[n, F]`` floating point, ``[n, C]`` integers or ``None``; ``edge_index`` ``[2, E]`` of a disjoint
    union; ``edge_attr`` ``[E, D]`` or ``None``; ``batch`` ``[n]`` int64, the graph of each node, ascending;
    ``sizes`` ``[B]`` int64, the number of nodes of each graph, on the CPU. Returns ``[B, T]``, or ``[n, T]``
    where nodes are predicted.

    A model may have ``loss(data, batch) -> Loss`` of its own, which gets the gathered graphs (with ``sizes``
    beside PyG's names) and the :class:`GraphBatch`, and ``pair_attention`` of the same arguments as the call
    for pictures: ``(pairs [2, P], alpha [L, P, H])``.
    """

    def __call__(
        self,
        x: Tensor | None,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor: ...


@runtime_checkable
class SmilesModelProtocol(Protocol):
    """A model of molecules that is fitted in one go and has no parameters; ``wants_smiles`` marks it.

    ``y`` is ``[n, T]`` with NaN where unknown, or ``[n]`` int64 classes; ``kind`` is the benchmark's
    ``targets``; predictions are ``[n, T]`` values, logits or class scores.
    """

    wants_smiles: bool

    def fit(self, smiles: Sequence[str], y: Tensor, kind: str) -> None: ...

    def predict(self, smiles: Sequence[str]) -> Tensor: ...


class GraphBatch(NamedTuple):
    """One shard of a batch.

    Attributes:
        ids: ``[b]`` int64 graphs.
        divisor: What the loss of the whole batch is divided by.
        weights: Weight of each class, ``[C]`` (``[T, 2]`` of binary labels), from the whole batch's labels.
    """

    ids: Tensor
    divisor: float
    weights: Tensor | None = None


@register_task("graph")
class GraphTask(Task):
    r"""Prediction for graphs, or for all nodes of many graphs.

    Over the known targets :math:`K` of a batch (graphs, or nodes, by targets), with prediction :math:`p`:

    .. math:: L = \frac{1}{|K|} \sum_{(i,t) \in K} \ell(p_{it}, y_{it}), \qquad
              \ell = |p - z|, \; (p - z)^2, \; \ln(1 + e^{-(2y-1)p}), \; -\ln \mathrm{softmax}(p_i)_{y_i}

    where :math:`z = (y - \mu_t) / \sigma_t` if targets are standardised. ``loss="weighted"`` weights each
    term by :math:`w_c = (V - V_c) / V` of its class, 0 for absent classes, :math:`V_c` of the V labels of the
    batch being of class c, and divides classes (not binary labels) by the sum of weights; it is the loss of
    PATTERN and CLUSTER (arXiv:2003.00982).

    Shards are normalised by the whole batch, so they add up to it exactly where a model treats each graph by
    itself (batch norm doesn't).

    Args:
        benchmark: A graph benchmark; the indices of its splits are graphs.
        seed: Seeds the order of graphs.
        batch_size: Graphs of one global batch at most. Those of an epoch differ by one at most, so that
            none is too small for a batch normalisation.
        eval_batch_size: Graphs computed at once in evaluation.
        device: Where batches are put; the data stay where they are.
        loss: ``auto`` is ``mae`` for regression that is judged by it, else ``mse``; and the logistic loss or
            cross entropy.
        standardize: Regression: learn targets of mean 0 and deviation 1 over the training split. Predictions
            are in the user's unit all the same.
        bucket: Fill batches with graphs of like size, sorted within pools of so many batches; 0 for none.
            Batches are then less alike, which batch norm may feel.

    Raises:
        UserError: Data that this task can't predict.
        ValueError: Options out of range.
    """

    name = "graph"
    defaults = portions(32, 128)

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
        *,
        loss: Literal["auto", "mae", "mse", "cross_entropy", "weighted"] = "auto",
        standardize: bool = True,
        bucket: int = 0,
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        if benchmark.targets not in _LOSSES:
            raise UserError(f"{benchmark.name} doesn't say what its graphs' targets are")
        if loss not in _LOSSES[benchmark.targets]:
            allowed = ", ".join(_LOSSES[benchmark.targets])
            raise ValueError(f"task.loss is {loss!r}; for {benchmark.targets} it must be one of {allowed}")
        if bucket < 0:
            raise ValueError(f"task.bucket is {bucket}; it must be at least 0")
        self.graphs = GraphSet(benchmark.data)
        self.kind, self.bucket = benchmark.targets, bucket
        self.y = self._checked(benchmark.data.y)
        self.loss_name = loss
        if loss == "auto" and self.kind == "regression":
            self.loss_name = "mae" if benchmark.metric == "mae" else "mse"
        self.train_index = benchmark.splits["train"]["index"]
        if self.train_index.numel() == 0:
            raise UserError(f"{benchmark.name} has no training graphs")
        self.standard: Standard | None = None
        if standardize and self.kind == "regression":
            self.standard = Standard.of(self._truth(self.train_index)).to(self.device)
        self._order: tuple[int, Sequence[Tensor]] | None = None
        self._fitted: WeakSet[nn.Module] = WeakSet()

    def _checked(self, y: Tensor) -> Tensor:
        """Returns the targets as ``[rows]`` int64 classes or ``[rows, T]`` floating point."""
        given = list(y.shape)
        y = y.squeeze(1) if self.kind == "classes" and y.dim() == 2 and y.size(1) == 1 else y
        y = y[:, None] if self.kind != "classes" and y.dim() == 1 else y
        fits = not y.is_floating_point() and y.dim() == 1 if self.kind == "classes" else y.dim() == 2
        if not fits or (self.kind == "regression" and not y.is_floating_point()):
            raise UserError(
                f"{self.benchmark.name} has targets {y.dtype} {given}; {self.kind} must be "
                + ("integers [G]" if self.kind == "classes" else "floating point [G, T]")
            )
        return y.long() if self.kind == "classes" else y if y.is_floating_point() else y.float()

    def check(self, model: nn.Module) -> None:
        if getattr(model, "wants_smiles", False):
            if not isinstance(model, SmilesModelProtocol):
                raise UserError(f"{type(model).__name__} wants SMILES: it must have fit and predict")
            if self.benchmark.smiles is None:
                raise UserError(
                    f"{type(model).__name__} reads molecules, and {self.benchmark.name} has no SMILES"
                )
        elif not _takes_graphs(model):
            raise UserError(
                f"{type(model).__name__} can't predict graphs: it must have "
                "forward(x, edge_index, edge_attr, batch, sizes)"
            )

    # Batches

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_index.numel() / self.batch_size)

    def batch(self, epoch: int, step: int) -> GraphBatch:
        return self.whole(self._epoch(epoch)[step])

    def whole(self, ids: Tensor) -> GraphBatch:
        """Returns the batch of the given graphs, with what its loss is divided by."""
        y = self._truth(ids)
        weights = class_weights(y, self.width) if self.loss_name == "weighted" else None
        return GraphBatch(ids, divisor(y, weights), weights)

    def shard(self, batch: GraphBatch, index: int, parts: int) -> GraphBatch:
        return batch._replace(ids=batch.ids[index::parts])

    def is_empty(self, shard: GraphBatch) -> bool:
        return shard.ids.numel() == 0

    def gather(self, ids: Tensor, graphs: GraphSet | None = None) -> Data:
        """Returns the union of some graphs on the device; ``sizes`` ``[b]`` stays on the CPU."""
        store = self.graphs if graphs is None else graphs
        data = store.batch(ids).to(self.device)
        data.sizes = store.sizes(ids)
        return data

    def _epoch(self, epoch: int) -> Sequence[Tensor]:
        """Returns the batches of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            batches = seed_order(self.train_index, self.seed, epoch).tensor_split(self.steps_per_epoch)
            self._order = (epoch, self._bucketed(batches, epoch) if self.bucket else batches)
        return self._order[1]

    def _bucketed(self, batches: Sequence[Tensor], epoch: int) -> list[Tensor]:
        """Sorts the graphs of each pool of batches by size, cuts them again, then shuffles all batches."""
        found: list[Tensor] = []
        for first in range(0, len(batches), self.bucket):
            pool = batches[first : first + self.bucket]
            graphs = torch.cat(list(pool))
            by_size = graphs[self.graphs.sizes(graphs).argsort(stable=True)]
            found += by_size.split([part.numel() for part in pool])
        shuffle = torch.randperm(len(found), generator=generator(self.seed, "bucket order", epoch))
        return [found[k] for k in shuffle.tolist()]

    def _truth(self, ids: Tensor) -> Tensor:
        """Returns the targets of some graphs, or of all their nodes."""
        return self.y[ragged_index(self.graphs.ptr, ids)[0] if self.graphs.per_node else ids]

    # Loss

    def loss(self, model: nn.Module, batch: GraphBatch) -> Loss:
        if batch.ids.numel() == 0:  # fewer graphs than shards
            return Loss(torch.zeros((), device=self.device), batch.divisor)
        data = self.gather(batch.ids)
        own = getattr(model, "loss", None)
        if own is not None:
            result: Loss = own(data, batch)
            return result
        y, out = self._truth(batch.ids).to(self.device), self._call(model, data)
        total = sum_of_losses(out, y, self.kind, self.loss_name, batch.weights, self.standard)
        return Loss(total, batch.divisor)

    def _call(self, model: nn.Module, data: Data) -> Tensor:
        """Returns the model's output, float32 or wider, ``[b, T]`` or ``[n, T]``."""
        out: Tensor = model(*_arguments(data))
        return self._fitting(model, out, data.num_nodes if self.graphs.per_node else data.sizes.numel())

    def _fitting(self, model: nn.Module, out: Tensor, rows: int) -> Tensor:
        """Returns an output in float32 or wider, after a look at its shape."""
        if out.shape != (rows, self.width):
            what = "nodes" if self.graphs.per_node else "graphs"
            raise UserError(
                f"{type(model).__name__} gives {list(out.shape)} for {rows} {what} of {self.benchmark.name}; "
                f"[{rows}, {self.width}] is needed"
            )
        return wide(out)

    @property
    def width(self) -> int:
        """Targets, labels or classes: the width of the model's output."""
        if self.kind != "classes":
            return self.y.size(1)
        return self.benchmark.spec.out_channels or int(self.y.max()) + 1

    # Evaluation and prediction

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        index = self.benchmark.splits[split]["index"]
        return self.benchmark.evaluator(self.outputs(model, index, each=share_out), self._truth(index))

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """All of them, since no split needs more than its graphs."""
        return tuple(self.benchmark.splits)

    @torch.no_grad()
    def outputs(
        self, model: nn.Module, ids: Tensor, graphs: GraphSet | None = None, *, each: Each = in_turn
    ) -> Tensor:
        """Returns what the evaluator compares, on the CPU: a row for each graph (or node), in order.

        Args:
            model: Put into evaluation mode.
            ids: ``[b]`` int64 graphs.
            graphs: Where they are, the benchmark's by default.
            each: Goes through the portions.

        Returns:
            ``[b, T]`` (or ``[n, T]``) values in the targets' unit, logits or class scores.
        """
        model.eval()
        if getattr(model, "wants_smiles", False):
            if graphs is not None:
                raise UserError(f"{type(model).__name__} predicts from SMILES alone")
            assert self.benchmark.smiles is not None
            return self._from_smiles(model, [self.benchmark.smiles[i] for i in ids.tolist()])
        portions = [part for part in ids.split(self.eval_batch_size) if part.numel()]
        parts = each(portions, lambda part: self._call(model, self.gather(part, graphs)).cpu())
        out = torch.cat(parts) if parts else torch.zeros(0, self.width)
        return out if self.standard is None else self.standard.undo(out)

    def _from_smiles(self, model: Any, smiles: Sequence[str]) -> Tensor:
        """Returns the predictions of a model that reads SMILES, which is fitted when first asked."""
        if model not in self._fitted:
            assert self.benchmark.smiles is not None
            train = [self.benchmark.smiles[i] for i in self.train_index.tolist()]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, "fit"))
                model.fit(train, self._truth(self.train_index), self.kind)
            self._fitted.add(model)
        return self._fitting(model, model.predict(smiles), len(smiles)).cpu()

    def make_graph(self, smiles: str) -> Data:
        """Returns a molecule as a graph with the features of this data set.

        Raises:
            UserError: It is no SMILES, or the data set isn't made of molecules.
        """
        if self.benchmark.from_smiles is None:
            raise UserError(f"{self.benchmark.name} isn't made of molecules; it takes no SMILES")
        return self.benchmark.from_smiles(smiles)

    def read(self, graphs: Sequence[str | Data]) -> GraphSet:
        """Lays out molecules, given by SMILES, or other graphs with the features of this data set."""
        made = []
        for graph in graphs:
            graph = self.make_graph(graph) if isinstance(graph, str) else graph
            kept = {name: graph[name] for name in ("x", "edge_attr") if graph.get(name) is not None}
            made.append(Data(edge_index=graph.edge_index, num_nodes=graph.num_nodes, **kept))
        return GraphSet(collate(made))

    @torch.no_grad()
    def predictions(self, model: nn.Module, graphs: Tensor | Sequence[str | Data]) -> Tensor:
        """Returns values in the targets' unit, or the probabilities of labels or classes.

        Args:
            model: Put into evaluation mode.
            graphs: Numbers ``[b]`` int64 of graphs of the data set; or SMILES; or graphs with its features.

        Returns:
            A row for each graph (or node), in order, ``[b, T]``.
        """
        if isinstance(graphs, Tensor):
            out = self.outputs(model, graphs)
        elif getattr(model, "wants_smiles", False) and all(isinstance(graph, str) for graph in graphs):
            out = self._from_smiles(model, [str(graph) for graph in graphs])
        else:
            store = self.read(graphs)
            out = self.outputs(model, torch.arange(len(store)), store)
        if self.kind == "regression":
            return out
        return out.softmax(-1) if self.kind == "classes" else out.sigmoid()

    @torch.no_grad()
    def attention(self, model: nn.Module, graph: str | Data) -> tuple[Tensor, Tensor]:
        """Returns a graph's pairs ``[2, P]`` and the attention that each gets, ``[L, P, H]``, on the CPU.

        Raises:
            UserError: The model has no attention between pairs.
        """
        weigh = getattr(model, "pair_attention", None)
        if weigh is None:
            raise UserError(f"{type(model).__name__} has no attention between pairs of nodes to draw")
        model.eval()
        store = self.read([graph])
        pairs, alpha = weigh(*_arguments(self.gather(torch.arange(1), store)))
        return pairs.cpu(), alpha.float().cpu()

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        graph_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return graph_prediction.predict(self, model, options)


def _arguments(data: Data) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor, Tensor]:
    """Returns what a model is called with."""
    return data.get("x"), data.edge_index, data.get("edge_attr"), data.batch, data.sizes


def _takes_graphs(model: nn.Module) -> bool:
    """Whether the model can be called with the arguments of :class:`GraphModelProtocol`."""
    try:
        inspect.signature(model.forward).bind(*range(5))
    except TypeError:
        return False
    return "edge_index" in inspect.signature(model.forward).parameters
