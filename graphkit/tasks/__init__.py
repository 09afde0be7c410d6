"""Tasks: one file each; importing this package registers them."""

from graphkit.tasks import link, node
from graphkit.tasks.base import Loss, Task

__all__ = ["Loss", "Task", "link", "node"]
