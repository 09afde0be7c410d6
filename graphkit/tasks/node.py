"""Node classification on one graph: whole at once, or in mini-batches of sampled neighbourhoods."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.data import Benchmark
from graphkit.distributed.ranks import Each, in_turn, share_out
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.nn.embedding import order_of
from graphkit.registry import register_task
from graphkit.sampling import NeighborSampler, SampledBatch, clustered_order, seed_order
from graphkit.sparse import Adjacency, SparseRows, as_adjacency, as_features
from graphkit.tasks import node_prediction
from graphkit.tasks.base import Loss, Task, wide

__all__ = ["NodeBatch", "NodeModelProtocol", "NodeTask"]

_EPSILON = 1 - math.log(2)


@runtime_checkable
class NodeModelProtocol(Protocol):
    """What the node task calls; see :class:`graphkit.nn.NodeModel`.

    A model for sampled blocks has ``num_layers`` too.
    """

    def __call__(self, x: Tensor | SparseRows | None, graph: Any, n_id: Tensor | None = None) -> Tensor: ...

    def inference(
        self,
        x: Tensor | SparseRows | None,
        graph: Adjacency,
        n_id: Tensor | None = None,
        *,
        rows: int | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Prefetching(Protocol):
    """A table that takes a request for rows ahead of the look-up of just these ids."""

    def prefetch(self, ids: Tensor) -> None: ...


class NodeBatch(NamedTuple):
    """One shard of a batch.

    Attributes:
        targets: ``[b]`` int64 ids of the nodes whose classes are learnt.
        num_targets: Targets of the whole batch.
        place: Epoch, step, index of the shard and number of shards: what its neighbourhood is sampled by.
    """

    targets: Tensor
    num_targets: int
    place: tuple[int, int, int, int]


@register_task("node")
class NodeTask(Task):
    r"""Classification of the nodes of one graph.

    .. math:: L = \frac{1}{|B|} \sum_{v \in B} \ell(v), \qquad \ell = -\ln \mathrm{softmax}(s_v)_{y_v}

    or, with ``loss="log"``, :math:`\ln(\epsilon + \ell) - \ln \epsilon` with
    :math:`\epsilon = 1 - \ln 2`, which holds outliers back (Wang, Jin, Zhang, Wipf, arXiv 2103.13355).
    Several binary labels a node take the mean of their logistic losses.

    Shards of a sampled batch add up to it exactly where all hops have one fan-out; otherwise a node that one
    shard finds at another hop than the whole would draws by that hop's number, which stays unbiased.

    Args:
        benchmark: A node benchmark.
        seed: Seeds the order of targets and the samples, each on its own.
        batch_size: Targets of one global batch; without ``fanouts`` every batch is the whole training split.
        eval_batch_size: Nodes computed at once in evaluation.
        device: Where the graph, or the sampled blocks, live.
        fanouts: In-neighbours drawn at each hop, the targets' own first, -1 for all; empty for whole-graph
            training.
        eval_fanouts: The same in evaluation; empty for exact inference layer by layer.
        target_share: Share of the training nodes that are targets in an epoch, drawn afresh each time.
        loss: Loss of a target.
        cluster: Targets of a batch are blocks of so many consecutive nodes in the order of the model's
            embedding (or of METIS), which share neighbours and parameters; 0 draws each by itself. Goes with
            ``fanouts``.
        workers: Threads that sample the next batches while the present one is computed.
        reorder: Compute whole-graph passes on nodes renumbered by METIS, so that neighbours lie near each
            other in memory; ids in and out stay the user's. Sums are taken in another order.
    """

    name = "node"
    rows: Adjacency

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
        *,
        fanouts: list[int] = [],  # noqa: B006 - never written
        eval_fanouts: list[int] = [],  # noqa: B006
        target_share: float = 1.0,
        loss: Literal["cross_entropy", "log"] = "cross_entropy",
        cluster: int = 0,
        workers: int = 1,
        reorder: bool = False,
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        if not 0 < target_share <= 1:
            raise ValueError(f"task.target_share is {target_share}; it must lie in (0, 1]")
        if loss not in ("cross_entropy", "log"):
            raise ValueError(f"task.loss is {loss!r}; it must be cross_entropy or log")
        if cluster < 0 or workers < 0:
            raise ValueError(f"task.cluster is {cluster} and task.workers {workers}; they must be at least 0")
        if cluster and not fanouts:
            raise ValueError(f"task.cluster is {cluster}, which goes with task.fanouts alone")
        data = benchmark.data
        if data.y.dim() > 2 or (data.y.dim() == 2 and data.y.size(1) > 1 and not data.y.is_floating_point()):
            raise UserError(
                f"{benchmark.name} has labels {data.y.dtype} {list(data.y.shape)}; they must be integers "
                "[N], or floating point [N, T] for T binary labels"
            )
        rows = benchmark.adjacency
        if rows is None:
            rows = as_adjacency(data.edge_index, num_nodes=int(data.num_nodes))
        self.rows, self.num_nodes = rows, rows.num_rows
        self.sampled = bool(fanouts)
        self.whole_graph = not self.sampled
        self._slot: Tensor | None = None
        self.target_share, self.loss_name, self.cluster, self.workers = target_share, loss, cluster, workers
        self.sampler = NeighborSampler(rows, fanouts, seed=seed) if fanouts else None
        self.eval_sampler = NeighborSampler(rows, eval_fanouts, seed=seed) if eval_fanouts else None
        # whole-graph passes read it on the device; sampling reads rows where they are, and moves blocks
        self.graph = rows if self.sampled and self.eval_sampler else rows.to(self.device)
        self.x = data.x if data.x is None or self.sampled else as_features(data.x).to(self.device)
        self.y = data.y.squeeze(1) if data.y.dim() == 2 and data.y.size(1) == 1 else data.y
        self.train_index = benchmark.splits["train"]["index"]
        if self.train_index.numel() == 0:
            raise UserError(f"{benchmark.name} has no training nodes")
        self.reorder = reorder and not (self.sampled and self.eval_sampler)
        self.wants_order = self.reorder or cluster > 0
        self._old: Tensor | None = None  # the id of each renumbered node
        self._new: Tensor | None = None  # and the other way round
        self._order: tuple[int, Tensor] | None = None
        self._position: Tensor | None = None
        self._ahead: dict[tuple[int, int, int, int], Future[SampledBatch]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def check(self, model: nn.Module) -> None:
        if not isinstance(model, NodeModelProtocol):
            raise UserError(
                f"{type(model).__name__} can't classify nodes: it must have forward(x, graph, n_id) and "
                "inference(x, graph, rows=...)"
            )
        for name, sampler in (("fanouts", self.sampler), ("eval_fanouts", self.eval_sampler)):
            layers = getattr(model, "num_layers", None)
            if sampler is not None and layers is not None and layers != len(sampler.fanouts):
                raise UserError(
                    f"task.{name} has {len(sampler.fanouts)} hops for a model of {layers} layers; "
                    "give one number a layer"
                )
        if self._position is None:
            self._position = order_of(model)

    def renumber(self, position: Tensor) -> None:
        """Renumbers the nodes of whole-graph passes, if they are to be, and cuts clusters by the positions.

        Args:
            position: ``[N]`` distinct integers, as :func:`graphkit.partition.hierarchical_order` gives them.
        """
        self._position = position.cpu()
        if not self.reorder:
            return
        old = torch.argsort(self._position)
        new = torch.empty_like(old)
        new[old] = torch.arange(old.numel())
        edges = new[self.rows.edge_index().cpu()]
        self.graph = Adjacency.from_edge_index(edges, self.num_nodes).to(self.device)
        if self.x is not None and not self.sampled:
            self.x = as_features(self.benchmark.data.x[old]).to(self.device)
        self._old, self._new = old.to(self.device), new.to(self.device)

    def rows_per_step(self) -> int | None:
        if not self.sampled:
            return None
        world = rank_and_world()[1]
        return int(self._draw(self.shard(self.batch(0, 0), 0, world)).n_id.numel())

    def follow_rows(self, slot: Tensor) -> None:
        self._slot = slot.cpu()

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._targets_per_epoch / self.batch_size) if self.sampled else 1

    @property
    def _targets_per_epoch(self) -> int:
        return max(1, round(self.train_index.numel() * self.target_share))

    def batch(self, epoch: int, step: int) -> NodeBatch:
        order = self._targets(epoch)
        if self.sampled:
            order = order[step * self.batch_size : (step + 1) * self.batch_size]
        return NodeBatch(order, order.numel(), (epoch, step, 0, 1))

    def shard(self, batch: NodeBatch, index: int, parts: int) -> NodeBatch:
        epoch, step, _, _ = batch.place
        targets = batch.targets[index::parts]
        if self._slot is not None and parts > 1:  # equally many for each, near the rows that it holds
            near = torch.argsort(self._slot[batch.targets], stable=True)
            targets = batch.targets[near].tensor_split(parts)[index]
        if self.cluster:  # whole blocks
            size = -(-batch.targets.numel() // (self.cluster * parts)) * self.cluster
            targets = batch.targets[index * size : (index + 1) * size]
        return NodeBatch(targets, batch.num_targets, (epoch, step, index, parts))

    def is_empty(self, shard: NodeBatch) -> bool:
        return shard.targets.numel() == 0

    def loss(self, model: nn.Module, batch: NodeBatch) -> Loss:
        own = getattr(model, "loss", None)
        if own is not None:
            result: Loss = own(self.x, batch)
            return result
        if self.sampler is None:
            out = model(self.x, self.graph, self._old)
            logits = out.index_select(0, self._place(batch.targets))
        else:
            logits = self._on_blocks(model, self._sample(batch))
            self._send_ahead(model, batch)
        y = self.y[batch.targets].to(logits.device)
        return Loss(self._losses(wide(logits), y).sum(), float(batch.num_targets))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        index = self.benchmark.splits[split]["index"]
        return self.benchmark.evaluator(self.logits(model, index, each=share_out), self.y[index].cpu())

    @torch.no_grad()
    def logits(self, model: nn.Module, nodes: Tensor, *, each: Each = in_turn) -> Tensor:
        """Returns the logits of some nodes ``[n]``, ``[n, C]`` float32 or wider, on the CPU.

        Exact and layer by layer, or on neighbourhoods sampled by ``eval_fanouts``; a node draws the same
        neighbours each time.
        """
        model.eval()
        if self.eval_sampler is None:
            x = self.x
            if isinstance(x, Tensor):
                x = (x[self._old.cpu()] if self.sampled and self._old is not None else x).to(self.device)
            infer: Any = model.inference
            # layers of other packages need not know of ranks while there is one
            shared = {"each": each} if each is not in_turn and rank_and_world()[1] > 1 else {}
            out = infer(x, self.graph, self._old, rows=self.eval_batch_size, **shared)
            return wide(out.index_select(0, self._place(nodes))).cpu()
        sampler = self.eval_sampler

        def found(part: Tensor) -> Tensor:
            unique, back = torch.unique(part, return_inverse=True)
            return wide(self._on_blocks(model, sampler.sample(unique, -1, 0))).cpu()[back]

        parts = each([part for part in nodes.cpu().split(self.eval_batch_size) if part.numel()], found)
        return torch.cat(parts) if parts else torch.zeros(0, self.benchmark.spec.num_classes or 0)

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """All of them, since no split needs more than its nodes."""
        return tuple(self.benchmark.splits)

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        node_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return node_prediction.predict(self, model, options)

    def probabilities(self, model: nn.Module, nodes: Tensor) -> Tensor:
        """Returns class (or label) probabilities of nodes ``[n]``, ``[n, C]``.

        Raises:
            UserError: If an id is out of range.
        """
        if nodes.numel() and not (int(nodes.min()) >= 0 and int(nodes.max()) < self.num_nodes):
            raise UserError(
                f"nodes are {int(nodes.min())} to {int(nodes.max())}; the graph has ids 0 to "
                f"{self.num_nodes - 1}"
            )
        logits = self.logits(model, nodes)
        return logits.softmax(-1) if self.multi_class else logits.sigmoid()

    @property
    def multi_class(self) -> bool:
        """Whether each node has one class, in contrast to several binary labels."""
        return not self.y.is_floating_point()

    # Losses and batches

    def _losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of each target, ``[b]``."""
        if not self.multi_class:
            return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none").mean(-1)
        losses = F.cross_entropy(logits, y, reduction="none")
        return (_EPSILON + losses).log() - math.log(_EPSILON) if self.loss_name == "log" else losses

    def _targets(self, epoch: int) -> Tensor:
        """Returns the targets of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            if self.cluster:
                order = clustered_order(
                    self.train_index, self._cluster_position(), self.cluster, self.seed, epoch
                )
            elif self.sampled or self.target_share < 1:
                order = seed_order(self.train_index, self.seed, epoch)
            else:
                order = self.train_index
            self._order = (epoch, order[: self._targets_per_epoch])
        return self._order[1]

    def _cluster_position(self) -> Tensor:
        if self._position is None:
            from graphkit.partition import hierarchical_order

            parts = max(2, math.ceil(self.num_nodes / (64 * self.cluster)))
            factors = (parts, -(-self.num_nodes // parts) * 2)
            self._position = hierarchical_order(self.rows, self.num_nodes, factors, seed=self.seed)
        return self._position

    def _place(self, nodes: Tensor) -> Tensor:
        """Returns where whole-graph passes have the given nodes."""
        nodes = nodes.to(self.device)
        return nodes if self._new is None else self._new[nodes]

    def _on_blocks(self, model: nn.Module, sample: SampledBatch) -> Tensor:
        x = self.benchmark.data.x if getattr(model, "uses_features", True) else None
        x = None if x is None else x.index_select(0, sample.n_id).to(self.device)
        moved = sample.to(self.device)
        out: Tensor = model(x, moved.blocks(), moved.n_id)
        return out

    def _sample(self, batch: NodeBatch) -> SampledBatch:
        """Returns the neighbourhood of a shard, and has those of the next steps sampled meanwhile."""
        assert self.sampler is not None
        waiting = self._ahead.pop(batch.place, None)
        epoch, step, index, parts = batch.place
        last = min(step + 1 + 2 * self.workers, self.steps_per_epoch) if self.workers else step + 1
        self._ahead = {place: job for place, job in self._ahead.items() if place[0] == epoch}
        for later in range(step + 1, last):
            place = (epoch, later, index, parts)
            if place not in self._ahead:
                shard = self.shard(self.batch(epoch, later), index, parts)
                self._ahead[place] = self._submit(self._draw, shard)
        return waiting.result() if waiting is not None else self._draw(batch)

    def _send_ahead(self, model: nn.Module, batch: NodeBatch) -> None:
        """Has partitioned tables ask for the next step's rows while this one's gradients are computed."""
        epoch, step, index, parts = batch.place
        place = (epoch, step + 1, index, parts)
        tables = [module for module in model.modules() if isinstance(module, Prefetching)]
        if place not in self._ahead or not tables:
            return
        sample = self._ahead[place].result().to(self.device)
        self._ahead[place] = Future()
        self._ahead[place].set_result(sample)  # the look-up must be given the very same tensor
        for table in tables:
            table.prefetch(sample.n_id)

    def _draw(self, batch: NodeBatch) -> SampledBatch:
        assert self.sampler is not None
        epoch, step, _, _ = batch.place
        return self.sampler.sample(batch.targets, epoch, step)

    def _submit(self, work: Callable[[NodeBatch], SampledBatch], batch: NodeBatch) -> Future[SampledBatch]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="graphkit-sampling")
        return self._pool.submit(work, batch)
