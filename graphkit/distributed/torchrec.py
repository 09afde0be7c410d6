"""A partitioned table on TorchRec: its plan, its exchange of ids and rows, FBGEMM's fused updates.

The table answers like :class:`PartitionedEmbedding` and has its names in checkpoints. TorchRec plans where
rows live, sends ids and rows, and gradients back; FBGEMM holds the rows, which on a device may lie in the
host's memory, and updates them with the optimizer's state. What differs from TorchRec's own training:

* Gradients are summed over ranks. TorchRec divides them by the number of ranks unless it is told not to, by
  one switch for the whole process, which is set here.
* FBGEMM would update rows during the backward pass, before anybody has looked at the gradients. Here they
  stop where the rows live and become the parameter's sparse gradient: norms, clipping, several backward
  passes in a step and the search for NaN see them as any other. The fused update follows in
  ``optimizer.step()``, with the learning rate that the optimizer has then. So a gradient that isn't finite
  changes nothing.
* Each rank sends an id once, however often it looks it up.

FBGEMM's rules on the CPU are ``sgd``, ``adagrad`` and ``rowwise_adagrad``. It has Adam on CUDA only, and so
it is refused everywhere.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.exchange import Route, Traffic, fetch_rows, gather_rows
from graphkit.distributed.grouping import group_equal, sum_groups
from graphkit.distributed.torchrec_shard import RULES, import_torchrec, require_torchrec, shard_table
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import range_of

__all__ = ["Sharding", "TorchRecEmbedding"]

Sharding = Literal["row_wise", "column_wise", "table_wise"]

_log = logging.getLogger("graphkit")
_MULTIPLE = 4  # FBGEMM's widths


class _Engine(NamedTuple):
    """TorchRec's part of a table, made for an update rule.

    Attributes:
        rule: See above.
        sharded: ``ShardedEmbeddingCollection``.
        kernel: FBGEMM's operator, which holds the rows; ``None`` where none are.
        states: The optimizer's state by torch's name, views of FBGEMM's memory.
    """

    rule: str
    sharded: Any
    kernel: Any
    states: dict[str, Tensor]


class TorchRecEmbedding(PartitionedEmbedding):
    r"""A table :math:`W \in \mathbb{R}^{N \times D}` that TorchRec spreads over ranks.

    In one process there is nothing to spread: rows are looked up and updated by torch then.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``, a multiple of 4, and of 4 times the number of ranks for ``column_wise``.
        sharding: ``row_wise``: blocks of rows, as :class:`PartitionedEmbedding`. ``column_wise``: all rows,
            each rank some of their columns. ``table_wise``: all of them on rank 0. The last two are updated
            by ``sgd`` alone, since checkpoints keep an optimizer's state by rows; ``state_dict`` and
            ``load_state_dict`` turn their weights into blocks of rows and back, so all ranks call them.
        assignment: As for :class:`PartitionedEmbedding`; with ``row_wise`` only.
        init: Likewise, with any.
        std: Likewise.

    Shapes:
        Parameter ``table`` ``[n, D]`` float32; ``[N, D / W]`` for ``column_wise``; for ``table_wise``
        ``[N, D]`` on rank 0, ``[N, 0]`` elsewhere. From the first look-up on it is a view of FBGEMM's memory.

    Raises:
        UserError: TorchRec isn't installed, or not in versions that go together.
        ValueError: A width, assignment or sharding that can't be.
    """

    sharding: Sharding = "row_wise"
    _engine: _Engine | None = None
    _rule = "sgd"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        sharding: Sharding = "row_wise",
        assignment: Literal["blocks", "hash", "partition"] = "blocks",
        init: Literal["orthogonal", "gaussian"] = "orthogonal",
        std: float | None = None,
    ) -> None:
        world = rank_and_world()[1]
        _check_layout(embedding_dim, sharding, assignment, world)
        super().__init__(num_embeddings, embedding_dim, assignment=assignment, init=init, std=std)
        if not self.table.is_meta:
            require_torchrec()
        if world == 1:
            return
        import_torchrec()
        self.sharding = sharding
        if sharding != "row_wise":
            self.table = nn.Parameter(self._columns_of(self.table.detach()))
            self._mark()
        _tables.add(self)
        _update_at_steps()

    # --- Look-ups ---------------------------------------------------------------------------------------

    def forward(self, ids: Tensor | None = None) -> Tensor:
        if self.world == 1 or ids is None:
            return super().forward(ids)
        self._check_kind(ids)
        flat = ids.detach().reshape(-1)
        self._check_range(flat)
        return self.lookup(self.slots_of(flat)).reshape(*ids.shape, self.embedding_dim)

    def lookup(self, position: Tensor) -> Tensor:
        if self.world == 1:
            return super().lookup(position)
        engine = self._ready()
        groups = group_equal(position)
        request = import_torchrec().KeyedJaggedTensor(
            keys=["ids"],
            values=groups.keys,
            lengths=torch.tensor([groups.keys.numel()], device=position.device),
            stride=1,
        )
        context = engine.sharded.create_context()
        sent = engine.sharded.input_dist(context, request).wait().wait()
        found = engine.sharded.compute_and_output_dist(context, sent).wait()["ids"].values()
        splits = context.sharding_contexts[0]
        route = Route(groups.keys, list(splits.output_splits), list(splits.input_splits), groups)
        return self._counted(found, route)

    def prefetch(self, ids: Tensor) -> None:
        """Does nothing but in one process: TorchRec sends its requests at the look-up."""
        if self.world == 1:
            super().prefetch(ids)

    def _check_range(self, flat: Tensor) -> None:
        """Raises on all ranks if one of them has an id that is out of range."""
        worst = torch.zeros((), dtype=torch.int64, device=flat.device)
        if flat.numel():
            low, high = torch.aminmax(flat)
            worst = ((low < 0) | (high >= self.num_embeddings)).long() * (self.rank + 1)
        dist.all_reduce(worst, dist.ReduceOp.MAX, group=self._channels().rows)
        if int(worst):
            raise IndexError(
                f"rank {int(worst) - 1} looked up ids that are out of range; the table has rows 0 to "
                f"{self.num_embeddings - 1}"
            )

    def _counted(self, found: Tensor, route: Route) -> Tensor:
        """Gives each id its row, and counts bytes: an id takes eight, a row has the width that ranks hold."""
        count, width = self.traffic, self._widths()[0] * found.element_size()
        coming, going = count.count(route, self.rank, 8)
        count.rows_received += coming * width
        count.rows_sent += going * width

        def told(_: Tensor) -> None:
            count.gradients_sent += coming * width
            count.gradients_received += going * width

        if found.requires_grad:
            found.register_hook(told)
        return fetch_rows(found, route, self.rank, self.block, None, Traffic())  # they are here already

    # --- TorchRec ---------------------------------------------------------------------------------------

    def use_rule(self, rule: str) -> None:
        """Chooses the update; a step does so too, but only after the first look-up made a table for ``sgd``.

        Raises:
            UserError: FBGEMM or the sharding doesn't have it.
        """
        if rule not in RULES:
            raise UserError(
                f"optim.rows {rule} isn't among the updates of embedding.engine torchrec, which are "
                f"{', '.join(RULES)}; engine all_to_all has it"
            )
        if rule != "sgd" and self.sharding != "row_wise":
            raise UserError(
                f"embedding.sharding {self.sharding} is updated by sgd alone; row_wise takes {rule} too"
            )
        self._rule = rule

    def _ready(self) -> _Engine:
        """Returns TorchRec's table for the present rule; all ranks come here together."""
        if self._engine is None or self._engine.rule != self._rule:
            if self.table.dtype != torch.float32:
                raise UserError(
                    f"embedding.engine torchrec has tables of float32, and this one is {self.table.dtype}"
                )
            self._engine = self._make(self._rule)
        return self._engine

    @torch.no_grad()
    def _make(self, rule: str) -> _Engine:
        group = self._channels().rows
        rows = self.num_embeddings if self.sharding != "row_wise" else self.block * self.world
        widths, device = self._widths(), self.table.device
        sharded, plan = shard_table(rows, self.embedding_dim, self.sharding, rule, device, group, widths)
        if self.rank == 0 and self._engine is None:
            _log.info("table of %d x %d by torchrec:\n%s", rows, self.embedding_dim, plan)
        (lookup,) = sharded._lookups
        lookup.register_forward_hook(self._stop_gradients)
        kernels = [part for part in lookup.modules() if hasattr(part, "split_optimizer_states")]
        if not kernels:
            return _Engine(rule, sharded, None, {})
        kernel: Any = kernels[0]
        weights = kernel.split_embedding_weights()[0][: len(self.table)]
        weights.copy_(self.table)
        self.table.data = weights
        if rule == "sgd":
            return _Engine(rule, sharded, kernel, {})
        total = kernel.split_optimizer_states()[0][0]
        return _Engine(rule, sharded, kernel, {"sum": total[: len(self.table)]})

    def _stop_gradients(self, lookup: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Gives the rows that FBGEMM found, whose gradient is to be the parameter's."""
        rows: Tensor = _Found.apply(self.table, output.detach(), args[0].values().long())
        return rows

    def update(self, rule: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Takes the parameter's gradient and performs FBGEMM's update with it; all ranks come here together.

        Args:
            rule: ``sgd``, ``adagrad`` or ``rowwise_adagrad``.
            group: The optimizer's group, for its learning rate.
            state: The optimizer's state of the parameter: afterwards it holds FBGEMM's memory. What a
                checkpoint put there is taken over before.

        Raises:
            UserError: A rule that FBGEMM or the sharding doesn't have.
        """
        self.use_rule(rule)
        engine = self._ready()
        if rule != "sgd":
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
            state["step"] += 1
        for name, own in engine.states.items():
            kept = state.get(name)
            if kept is not own:
                own.zero_() if kept is None else own.copy_(kept)
                state[name] = own
        grad, self.table.grad = self.table.grad, None
        if engine.kernel is None or grad is None:
            return
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad._indices()[0], grad._values()
        else:
            rows, values = torch.arange(len(self.table), device=grad.device), grad
        if not rows.numel():
            return
        engine.kernel.set_learning_rate(float(group["lr"]))
        ends = torch.tensor([0, rows.numel()], device=rows.device)
        with torch.enable_grad():  # FBGEMM's update is the backward pass of its look-up
            engine.kernel(indices=rows, offsets=ends).backward(values)

    def _apply(self, fn: Any, recurse: bool = True) -> TorchRecEmbedding:
        self._engine = None  # the parameter may move away from FBGEMM's memory; it is put into new one then
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_engine": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.world > 1:
            _tables.add(self)

    # --- Columns ----------------------------------------------------------------------------------------

    def _widths(self) -> list[int]:
        """Returns how many columns each rank holds."""
        if self.sharding == "column_wise":
            return [self.embedding_dim // self.world] * self.world
        others = self.embedding_dim if self.sharding == "row_wise" else 0
        return [self.embedding_dim, *[others] * (self.world - 1)]

    def _heights(self) -> list[int]:
        """Returns how many rows each rank has where it has blocks of them."""
        return [range_of(self.num_embeddings, rank, self.world)[1] for rank in range(self.world)]

    def _columns_of(self, block: Tensor) -> Tensor:
        """Returns this rank's columns ``[N, w]`` of the rows of which it has the block ``[n, D]``."""
        widths, heights = self._widths(), self._heights()
        parts = [part.contiguous() for part in block.split(widths, dim=1)]
        found = [block.new_empty(height, widths[self.rank]) for height in heights]
        return torch.cat(_swap(parts, found, self._channels().rows))

    def _block_of(self, columns: Tensor) -> Tensor:
        """Returns this rank's block ``[n, D]`` of the rows of which it has the columns ``[N, w]``."""
        widths, heights = self._widths(), self._heights()
        parts = [part.contiguous() for part in columns.split(heights)]
        found = [columns.new_empty(heights[self.rank], width) for width in widths]
        return torch.cat(_swap(parts, found, self._channels().rows), dim=1)

    def weight(self) -> Tensor:
        if self.sharding == "row_wise":
            return super().weight()
        width = self._widths()[0]
        whole = gather_rows(self.table.t(), width, self.world, self._channels().rows)
        return whole[: self.embedding_dim].t()

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        if self.sharding == "row_wise":
            return super().set_table_(table)
        self._check_table(table)
        first = sum(self._widths()[: self.rank])
        self.table.copy_(table[:, first : first + self.table.size(1)])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.sharding == "row_wise":
            return super().reset_parameters()
        columns = self.table
        self.table = nn.Parameter(columns.new_empty(self.local_units, self.embedding_dim))
        super().reset_parameters()
        columns.copy_(self._columns_of(self.table.detach()))
        self.table = columns

    @property
    def num_parameters(self) -> int:
        return self.num_embeddings * self.embedding_dim

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sharding != "row_wise":
            destination[prefix + "table"] = self._block_of(self.table.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        block, before = state_dict.get(prefix + "table"), self.table
        if self.sharding != "row_wise" and block is not None and block.size(1) == self.embedding_dim:
            state_dict = {**state_dict, prefix + "table": self._columns_of(block.to(before))}
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.table is not before:  # with assign=True
            self._engine = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.sharding}"


class _Found(torch.autograd.Function):
    """Rows of the parameter that somebody else looked up; the gradient holds each of them once."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return values.view_as(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        groups = group_equal(rows, runs=True)
        values = sum_groups(grad.reshape(rows.numel(), ctx.shape[1]), groups)
        keys = groups.keys.clone()  # NumPy's memory doesn't grow, as a sum with an empty gradient wants
        whole = torch.sparse_coo_tensor(
            keys.unsqueeze(0), values, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return whole, None, None


def _swap(parts: list[Tensor], found: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Sends each rank its part and fills ``found`` with those that come, whose shapes must be right."""
    coming = torch.cat([part.reshape(-1) for part in found])
    going = torch.cat([part.reshape(-1) for part in parts])
    sizes = [part.numel() for part in found], [part.numel() for part in parts]
    dist.all_to_all_single(coming, going, *sizes, group=group)
    pieces = coming.split(sizes[0])
    return [piece.view(part.shape) for piece, part in zip(pieces, found, strict=True)]


def _check_layout(width: int, sharding: str, assignment: str, world: int) -> None:
    if sharding not in get_args(Sharding):
        allowed = ", ".join(get_args(Sharding))
        raise ValueError(f"sharding is {sharding!r}; it must be one of {allowed}")
    if sharding != "row_wise" and assignment != "blocks":
        raise ValueError(f"assignment is {assignment!r}; with sharding {sharding} it must be blocks")
    multiple = _MULTIPLE * (world if sharding == "column_wise" else 1)
    if world > 1 and width % multiple:
        raise ValueError(
            f"embedding_dim is {width}; with sharding {sharding} on {world} ranks it must be a multiple of "
            f"{multiple}"
        )


# --- Steps -------------------------------------------------------------------------------------------------

_tables: WeakSet[TorchRecEmbedding] = WeakSet()


@cache
def _update_at_steps() -> None:
    """Lets FBGEMM take part in the steps of optimizers that have rules for rows."""
    register_optimizer_step_pre_hook(_update_tables)


def _update_tables(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Updates TorchRec's tables among an optimizer's parameters, and takes their gradients away from it.

    Other optimizers find an ordinary parameter with a sparse gradient.
    """
    rule = getattr(optimizer, "rule", None)
    if rule is None:
        return
    owners = {id(made.table): made for made in _tables}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in owners:
                owners[id(parameter)].update(rule, group, optimizer.state[parameter])
