"""Tasks: one file each; importing this package registers them."""

from graphkit.tasks import graph, kgc, kgqa, link, node, relation
from graphkit.tasks.base import Loss, Task

__all__ = ["Loss", "Task", "graph", "kgc", "kgqa", "link", "node", "relation"]
