"""A trainer's state as one snapshot, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphkit.errors import UserError
from graphkit.run import check_same
from graphkit.train.checkpoint import Snapshot
from graphkit.train.state import TrainState, generator_states, restore_generators

if TYPE_CHECKING:
    from graphkit.train.loop import Trainer

__all__ = ["put_back", "take_snapshot"]


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Returns everything that the rest of the run depends on; nothing is copied yet."""
    assert trainer.optimizer is not None
    state = trainer.state
    return Snapshot(
        model=trainer.model.state_dict(),
        optimizer=trainer.optimizer.state_dict(),
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
    )


def put_back(trainer: Trainer, snapshot: Snapshot) -> None:
    """Takes a trainer to a snapshot.

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
        trainer.model.load_state_dict(snapshot.model)
        trainer.optimizer.load_state_dict(snapshot.optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{where} is of another model: {error}") from error
    if trainer.scaler is not None and snapshot.state["scaler"]:
        trainer.scaler.load_state_dict(snapshot.state["scaler"])
    trainer.state = TrainState.from_dict(snapshot.state["state"])
    trainer.best = {name: tensor.clone() for name, tensor in (snapshot.best or {}).items()}
    restore_generators(snapshot.state["generators"])
