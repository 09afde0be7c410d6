"""Training: the loop, its state, checkpoints and guards."""

from graphkit.train.checkpoint import CheckpointStore, load_best, read_checkpoint
from graphkit.train.guard import NonFiniteError, Stopped, replay
from graphkit.train.loop import Trainer
from graphkit.train.result import Result
from graphkit.train.state import TrainState

__all__ = [
    "CheckpointStore",
    "NonFiniteError",
    "Result",
    "Stopped",
    "TrainState",
    "Trainer",
    "load_best",
    "read_checkpoint",
    "replay",
]
