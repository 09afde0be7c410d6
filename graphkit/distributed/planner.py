"""What a table costs on each rank, however it is held: memory, and bytes that a step sends."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import NamedTuple

import torch

from graphkit.distributed.exchange import id_bytes
from graphkit.distributed.ranks import same_everywhere
from graphkit.environment import rank_and_world
from graphkit.nn.embedding.config import EmbeddingConfig
from graphkit.nn.embedding.partition_range import block_size
from graphkit.nn.embedding.tt_shape import TTShape

__all__ = [
    "Expected",
    "TablePlan",
    "choose_plan",
    "expecting",
    "format_plans",
    "plan_tables",
    "resolve",
]

_log = logging.getLogger("graphkit")
_STATES = {
    "sgd": 0.0,
    "momentum": 1.0,
    "adagrad": 1.0,
    "adam": 2.0,
    "adamw": 2.0,
}  # values for each of the table
_LOOKED_UP = 50_000  # rows a step where nobody says how many
_SHARE = 0.25  # of the memory, for the table


class TablePlan(NamedTuple):
    """One way to hold a table.

    Attributes:
        name: ``dense``, ``dense, sparse gradients``, ``dense, partitioned``, ``tensor train`` or
            ``tensor train, partitioned``.
        kind: Of :class:`EmbeddingConfig`.
        partitioned: Likewise.
        sparse: Likewise.
        values: Values of the table that a rank holds; the fullest rank.
        table: Bytes of them.
        gradient: Bytes of a step's gradient on a rank, on average over ranks.
        state: Bytes of the optimizer's state.
        sent: Bytes that a rank sends to others in a step, on average over ranks.
    """

    name: str
    kind: str
    partitioned: bool
    sparse: bool
    values: int
    table: int
    gradient: int
    state: int
    sent: int

    @property
    def memory(self) -> int:
        """Bytes in all, without the rows that a step has in hand."""
        return self.table + self.gradient + self.state


def plan_tables(
    num_rows: int,
    width: int,
    world: int,
    rows_per_step: int,
    *,
    optimizer: str = "adam",
    row_rule: str = "same",
    local_share: float | None = None,
    rank: int | Sequence[int] = 16,
    num_cores: int = 3,
    blocks: int = 8,
    value_bytes: int = 4,
) -> list[TablePlan]:
    r"""Lists what every way to hold a table costs.

    With ``N`` rows of ``D`` values of ``s`` bytes on ``W`` ranks, ``B`` distinct rows that a rank looks up in
    a step, of which a share ``f`` lives with it, ``P`` values of a tensor train (``P_b`` of one of ``b``),
    and ``c`` bytes an id (4 below 2^31 rows on a rank):

    ==========================  ============================================  ==============================
    way                         bytes sent by a rank in a step                values of the table on a rank
    ==========================  ============================================  ==============================
    dense                       :math:`2 (W - 1) / W \cdot N D s`             :math:`N D`
    dense, sparse gradients     :math:`(W - 1) B (D s + 8)`                   :math:`N D`
    dense, partitioned          :math:`8 (W - 1) + (1 - f) B (c + 2 D s)`     ``ceil(N / W) * D``
    tensor train                :math:`2 (W - 1) / W \cdot P s`               :math:`P`
    tensor train, partitioned   :math:`8 (W - 1) + (1 - f) B (c + 2 D s)`     ``ceil(b / W) * P_b``
    ==========================  ============================================  ==============================

    The sums over ranks are counted as rings send them. Partitioned, a row goes to whom looked it up and its
    gradient comes back.

    Args:
        num_rows: ``N``.
        width: ``D``.
        world: ``W``.
        rows_per_step: ``B``, duplicates counted once.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``: of dense gradients.
        row_rule: Of sparse ones: ``same``, ``sgd``, ``adagrad``, ``rowwise_adagrad`` or ``adam``.
        local_share: ``f``; ``1 / W`` by default, as for rows that are looked up at random.
        rank: Of the tensor train.
        num_cores: Of the tensor train.
        blocks: ``b``, of the partitioned one.
        value_bytes: ``s``.

    Raises:
        ValueError: An optimizer, a rule or sizes that can't be.
    """
    if optimizer not in _STATES or row_rule not in ("same", "rowwise_adagrad", *_STATES):
        raise ValueError(f"optimizer {optimizer!r} with row_rule {row_rule!r}; they must be those of optim")
    if min(num_rows, width, world) < 1 or rows_per_step < 0:
        raise ValueError(
            f"num_rows {num_rows}, width {width}, world {world} and rows_per_step {rows_per_step} "
            "must be positive"
        )
    share = 1 / world if local_share is None else local_share
    wanted = min(rows_per_step, num_rows)
    row = width * value_bytes
    dense_state = _STATES[optimizer]
    rule = optimizer if row_rule == "same" else row_rule
    row_state = 1 / width if rule == "rowwise_adagrad" else _STATES[rule]
    ring = 2 * (world - 1) / world
    block = block_size(num_rows, world)
    travelling = 8 * (world - 1) + (1 - share) * wanted * (id_bytes(block) + 2 * row)

    def plan(name: str, values: int, gradient: float, state: float, sent: float) -> TablePlan:
        kind = "dense" if name.startswith("dense") else "tensor_train"
        apart, sparse = name.endswith("partitioned"), name.endswith("sparse gradients")
        size = values * value_bytes
        return TablePlan(
            name, kind, apart, sparse, values, size, round(gradient), round(size * state), round(sent)
        )

    def train(rows: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ranks too high: whoever makes the table hears of it
            return TTShape.auto(rows, width, rank=rank, num_cores=num_cores).num_parameters

    whole, cores = num_rows * width, train(num_rows)
    everybody = min(world * wanted, num_rows) * row
    part = block_size(blocks, world) * train(block_size(num_rows, blocks))
    return [
        plan("dense", whole, whole * value_bytes, dense_state, ring * whole * value_bytes),
        plan("dense, sparse gradients", whole, everybody, row_state, (world - 1) * wanted * (row + 8)),
        plan("dense, partitioned", block * width, everybody / world, row_state, travelling),
        plan("tensor train", cores, cores * value_bytes, dense_state, ring * cores * value_bytes),
        plan("tensor train, partitioned", part, part * value_bytes, dense_state, travelling),
    ]


def choose_plan(plans: Sequence[TablePlan], memory: float) -> TablePlan:
    """Returns the plan to take: full rows as long as they fit, of those the one that sends least.

    A tensor train is another model, so it is for tables that don't fit even if they are spread; where it
    doesn't fit either, the least is asked for.

    Args:
        plans: Of :func:`plan_tables`; dense, partitioned, and replicated tensor trains are looked at.
        memory: Bytes that the table may take on a rank.
    """
    candidates = [plan for plan in plans if plan.name in ("dense", "dense, partitioned", "tensor train")]
    fitting = [plan for plan in candidates if plan.memory <= memory]
    full = [plan for plan in fitting if plan.kind == "dense"]
    if full:
        return min(full, key=lambda plan: plan.sent)  # of equals the first
    return fitting[0] if fitting else min(candidates, key=lambda plan: plan.memory)


def format_plans(plans: Sequence[TablePlan], chosen: TablePlan | None = None) -> str:
    """Returns the plans as a table for people; the chosen one has an arrow."""
    from graphkit.report import format_table

    rows = []
    for plan in plans:
        parts = {"on a rank": plan.table, "gradient": plan.gradient, "optimizer": plan.state}
        sizes = {**parts, "together": plan.memory, "sent a step": plan.sent}
        mark = "-> " if plan == chosen else ""
        rows.append({"MB": mark + plan.name, **{name: size / 1e6 for name, size in sizes.items()}})
    return format_table(rows)


class Expected(NamedTuple):
    """What a training step will ask of a table.

    Attributes:
        rows_per_step: Returns the distinct rows that a rank looks up in a step, ``None`` for all.
        optimizer: As for :func:`plan_tables`.
        row_rule: Likewise.
    """

    rows_per_step: Callable[[], int | None]
    optimizer: str
    row_rule: str


_expected: ContextVar[Expected | None] = ContextVar("expected", default=None)


@contextmanager
def expecting(step: Expected) -> Iterator[None]:
    """Has tables that are made in a block planned for what their training will ask of them."""
    before = _expected.set(step)
    try:
        yield
    finally:
        _expected.reset(before)


def resolve(config: EmbeddingConfig, num_rows: int, width: int) -> EmbeddingConfig:
    """Prints the plans for a table that will be trained, and answers ``kind: auto`` with what was chosen.

    They are for the steps that :func:`expecting` tells of, else for steps of Adam on 50,000 rows.

    Rank 0 decides for all ranks, which call this together. What is chosen depends on machine and ranks, so it
    is the answer, not the question, that belongs into a run's configuration.

    Args:
        config: Any; it comes back unchanged unless its kind is ``auto``.
        num_rows: Of the table.
        width: Of a row.
    """
    rank, world = rank_and_world()
    step = _expected.get()
    told = _LOOKED_UP if step is None else step.rows_per_step()
    looked_up = num_rows if told is None else min(told, num_rows)
    plans = plan_tables(
        num_rows,
        width,
        world,
        looked_up,
        optimizer="adam" if step is None else step.optimizer,
        row_rule="same" if step is None else step.row_rule,
        rank=config.rank,
        num_cores=config.num_cores,
        blocks=config.blocks,
    )
    chosen: TablePlan | None = None
    if config.kind == "auto":
        limit = _memory() if config.memory_gb is None else config.memory_gb * 2**30
        chosen = plans[same_everywhere(plans.index(choose_plan(plans, limit)))]
        config = replace(config, kind=chosen.kind, partitioned=chosen.partitioned)  # type: ignore[arg-type]
    if rank == 0 and (step is not None or chosen is not None):
        _log.info(
            "table of %d x %d on %d ranks, %d rows looked up in a step:\n%s",
            *(num_rows, width, world, looked_up, format_plans(plans, chosen)),
        )
    return config


def _memory() -> float:
    """Returns the bytes that a table may take on a rank of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", rank_and_world()[1]))
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        total = torch.cuda.get_device_properties(0).total_memory
        return _SHARE * total / -(-here // devices)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        total = 8 * 2**30
    return _SHARE * total / here
