"""A trainer's state as one snapshot, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import RowRange
from graphkit.run import check_same
from graphkit.train.checkpoint import Snapshot
from graphkit.train.manifest import MODEL_ROWS, OPTIMIZER_ROWS
from graphkit.train.sharded import Shard, StoredRows, load_rows, partitioned_parameters
from graphkit.train.state import TrainState, generator_states, restore_generators

if TYPE_CHECKING:
    from graphkit.train.loop import Trainer

__all__ = ["put_back", "take_snapshot"]


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Returns everything that the rest of the run depends on; nothing is copied yet.

    Of partitioned tables that is this rank's rows.
    """
    assert trainer.optimizer is not None
    state = trainer.state
    return Snapshot(
        model=trainer.model.state_dict(),
        optimizer=_with_shards(trainer.optimizer),
        state={
            "state": state.to_dict(),
            "steps_per_epoch": trainer.steps,
            "generators": generator_states(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
            "config_hash": trainer.config.hash(),
            "fingerprint": trainer.fingerprint,
        },
        config=trainer.config.to_dict(),
        best=trainer.best or None,
        best_is_model=bool(trainer.best) and state.best_updates == state.updates,
        ranges=partitioned_parameters(trainer.model),
    )


def put_back(trainer: Trainer, snapshot: Snapshot) -> None:
    """Takes a trainer to a snapshot, whatever number of ranks took it; all ranks call it together.

    Raises:
        UserError: The snapshot is of another configuration, other data or another model.
    """
    assert trainer.optimizer is not None
    where = str(trainer.run.checkpoints) if trainer.run is not None else "the checkpoint"
    check_same(snapshot.config, trainer.config.to_dict(), where)
    steps = snapshot.state["steps_per_epoch"]
    if steps != trainer.steps:
        raise UserError(f"{where} has {steps} steps an epoch, now it is {trainer.steps}: the data changed")
    before, now = snapshot.state.get("fingerprint"), trainer.fingerprint
    if before is not None and now is not None and before != now:
        name = trainer.config.dataset_name
        raise UserError(
            f"{where} was trained on other data: the fingerprint of '{name}' was {before} and is {now}; put "
            "that data back or start a new run"
        )
    try:
        trainer.model.load_state_dict(_own_weights(trainer.model, snapshot, snapshot.model, MODEL_ROWS))
        trainer.optimizer.load_state_dict(_own_state(trainer.optimizer, snapshot))
        trainer.best = {}
        if snapshot.best is not None:
            best = _own_weights(trainer.model, snapshot, snapshot.best, snapshot.best_rows, fresh=True)
            trainer.best = best
    except (RuntimeError, ValueError, KeyError, UserError) as error:
        raise UserError(f"{where} is of another model: {error}") from error
    if trainer.scaler is not None and snapshot.state["scaler"]:
        trainer.scaler.load_state_dict(snapshot.state["scaler"])
    trainer.state = TrainState.from_dict(snapshot.state["state"])
    restore_generators(snapshot.state["generators"])


def _with_shards(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the optimizer's state with the rows of partitioned parameters marked as such.

    A tensor goes by rows if its first dimension is as long as the parameter's; others (``step``) are the same
    on all ranks.
    """
    state: dict[str, Any] = optimizer.state_dict()
    owners = _owners(optimizer, state)
    marked = {
        index: {key: _marked(value, owners[index]) for key, value in values.items()}
        for index, values in state["state"].items()
        if index in owners
    }
    return {**state, "state": {**state["state"], **marked}}


def _marked(value: Any, owner: Tensor) -> Any:
    by_rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(owner)
    return Shard(value, _range(owner)) if by_rows else value


def _owners(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[int, Tensor]:
    """Returns the partitioned parameters by their number in the state."""
    return {
        index: parameter
        for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for index, parameter in zip(stored["params"], group["params"], strict=True)
        if _range(parameter) is not None
    }


def _range(parameter: Tensor) -> RowRange | None:
    rows: RowRange | None = parameter.rows if getattr(parameter, "partitioned", False) else None  # type: ignore[attr-defined]
    return rows


def _own_weights(
    model: nn.Module, snapshot: Snapshot, tensors: Mapping[str, Tensor], group: str, *, fresh: bool = False
) -> dict[str, Tensor]:
    """Returns a ``state_dict`` for this rank: stored tables become its rows of them.

    Args:
        model: Says which rows those are. A table may have been partitioned when it was saved, or be so now,
            or both, over other ranks.
        snapshot: As loaded.
        tensors: ``snapshot.model`` or ``snapshot.best``.
        group: The folder of rows that goes with them.
        fresh: In memory of its own; otherwise rows are read into the model's parameters straight away, so
            that loading the result copies them onto themselves.
    """
    present, ranges = model.state_dict(), partitioned_parameters(model)
    own = {name: _cut(value, ranges.get(name), present.get(name)) for name, value in tensors.items()}
    shards = {}
    for name in snapshot.rows.get(group, {}):
        if name not in present:
            raise UserError(f"it has a table '{name}'")
        local = torch.empty_like(present[name], device="cpu") if fresh else present[name]
        shards[name] = Shard(local, ranges.get(name))
    if snapshot.folder is not None:
        load_rows(snapshot.folder / group, shards)
    if fresh:
        own = {name: value.clone() for name, value in own.items()}
    return {**own, **{name: shard.local for name, shard in shards.items()}}


def _own_state(optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> Any:
    """Returns the optimizer's state for this rank, stored tables becoming its rows of them."""
    stored = snapshot.optimizer
    if not isinstance(stored, dict) or "state" not in stored:
        return stored
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=False))  # load_state_dict complains of another number
    shards: dict[str, Shard] = {}
    state: dict[Any, Any] = {}
    for index, values in stored["state"].items():
        state[index], owner = dict(values), owners[index]
        for key, value in values.items():
            if isinstance(value, StoredRows):
                local = torch.empty((len(owner), *value.shape[1:]), dtype=value.dtype)
                state[index][key] = local
                shards[value.name] = Shard(local, _range(owner))
            elif isinstance(value, Tensor) and value.dim():
                state[index][key] = _cut(value, _range(owner), owner)
    if snapshot.folder is not None:
        load_rows(snapshot.folder / OPTIMIZER_ROWS, shards)
    return {**stored, "state": state}


def _cut(whole: Tensor, rows: RowRange | None, local: Tensor | None) -> Tensor:
    """Returns this rank's rows of a table that was saved in one piece; other tensors as they are."""
    if rows is None or local is None or whole.dim() == 0 or len(whole) != rows.total:
        return whole
    return whole[rows.start : rows.start + len(local)]
