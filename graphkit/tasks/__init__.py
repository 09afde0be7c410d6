"""Tasks: one file each; importing this package registers them."""

from graphkit.tasks import graph, link, node
from graphkit.tasks.base import Loss, Task

__all__ = ["Loss", "Task", "graph", "link", "node"]
