"""Relation algebras of space and time, computed from models, and the closure that answers queries exactly.

A relation algebra has R base relations of which exactly one holds between any two things. A set of them is a
bit mask, bit r for relation r; what follows from ``x a y`` and ``y b z`` about x and z is such a set. The
tables are found by enumeration: Allen's thirteen interval relations (Communications of the ACM 26, 1983) over
intervals with a few end points, and the eight topological relations of RCC-8 (Randell, Cui, Cohn, KR 1992)
over regions of a few atoms on a line.

::

    closure = algebraic_closure([(0, 1), (1, 2)], ["TPP", "NTPP"], rcc8_algebra())
    rcc8_algebra().relations(closure[0, 2])  # ('NTPP',)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from graphkit.errors import UserError, did_you_mean

__all__ = [
    "Algebra",
    "algebra_of",
    "algebraic_closure",
    "exact_answers",
    "interval_algebra",
    "path_answers",
    "rcc8_algebra",
    "symbolic_scores",
]

Label = str | int | Iterable[str]
MOST = 16
"""The most relations that an algebra may have: masks are 16 bits wide."""


@dataclass(frozen=True, eq=False)
class Algebra:
    """Base relations and how they compose.

    Attributes:
        name: Its name.
        names: The R relations' names.
        identity: The relation that holds between a thing and itself alone.
        converse: ``[R]`` int64: if r holds between x and y, ``converse[r]`` holds between y and x.
        composition: ``[R, R]`` int64 masks: what may hold between x and z if a does between x and y and b
            between y and z.

    Raises:
        ValueError: More than 16 relations, or arrays of another shape.
    """

    name: str
    names: tuple[str, ...]
    identity: int
    converse: NDArray[np.int64]
    composition: NDArray[np.int64]

    def __post_init__(self) -> None:
        size = len(self.names)
        if not 1 <= size <= MOST:
            raise ValueError(f"names has {size} relations; there may be 1 to {MOST}")
        if self.converse.shape != (size,) or self.composition.shape != (size, size):
            raise ValueError(
                f"converse and composition have shapes {self.converse.shape} and {self.composition.shape}; "
                f"they must be ({size},) and ({size}, {size})"
            )

    @classmethod
    def of_model(cls, name: str, names: Sequence[str], relation: NDArray[np.int64]) -> Algebra:
        """Returns the algebra of a finite model: what composes is what occurs.

        Args:
            name: Its name.
            names: The relations' names, R of them.
            relation: ``[M, M]`` which relation holds between the things of the model.
        """
        size = len(names)
        composition = np.zeros((size, size), dtype=np.int64)
        first, second = relation[:, :, None], relation[None, :, :]
        np.bitwise_or.at(composition, (first, second), 1 << relation[:, None, :])
        converse = np.zeros(size, dtype=np.int64)
        converse[relation] = relation.T
        return cls(name, tuple(names), int(relation[0, 0]), converse, composition)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def full(self) -> int:
        """The mask of all relations: nothing is known."""
        return (1 << len(self)) - 1

    @cached_property
    def rows(self) -> NDArray[np.uint16]:
        """``[R, 2**R]`` masks: a relation composed with a set."""
        return _unions(self.composition)

    @cached_property
    def columns(self) -> NDArray[np.uint16]:
        """``[2**R, R]`` masks: a set composed with a relation."""
        return np.ascontiguousarray(_unions(self.composition.T).T)

    @cached_property
    def skip(self) -> int:
        """:attr:`full` if every relation, composed with it, gives all, as in an integral algebra; else -1."""
        return self.full if bool((self.rows[:, self.full] == self.full).all()) else -1

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """``[2**R]``: how many relations a mask holds."""
        masks = np.arange(1 << len(self))
        return (masks[:, None] >> np.arange(len(self)) & 1).sum(1)

    @cached_property
    def converses(self) -> NDArray[np.uint16]:
        """``[2**R]`` masks: the converse of a set."""
        return _unions(1 << self.converse[None, :])[0]

    def compose(self, left: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
        """Returns what follows from two sets of relations, one after the other.

        Args:
            left: Masks of any shape, integers.
            right: Masks; the shapes are broadcast.
        """
        x, y = np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)
        found = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int64)
        for a in range(len(self)):
            found |= np.where(x >> a & 1, self.rows[a][y], 0)
        return found

    def mask(self, label: Label) -> int:
        """Returns the mask of a relation, by name or number, or of several names, one of which holds.

        Raises:
            UserError: Unknown name.
            ValueError: A number out of range.
        """
        if isinstance(label, str):
            if label not in self.names:
                raise UserError(f"'{label}' is no relation of {self.name}{did_you_mean(label, self.names)}")
            return 1 << self.names.index(label)
        if isinstance(label, int | np.integer):
            if not 0 <= label < len(self):
                raise ValueError(f"label is {label}; it must be a name or lie between 0 and {len(self) - 1}")
            return 1 << int(label)
        mask = 0
        for name in label:
            mask |= self.mask(name)
        return mask

    def relations(self, mask: int) -> tuple[str, ...]:
        """Returns the names of the relations in a mask."""
        return tuple(name for r, name in enumerate(self.names) if int(mask) >> r & 1)


def _unions(table: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Returns ``[n, 2**R]`` from masks ``[n, R]``: the union over each set of columns."""
    size = table.shape[1]
    found = np.zeros((table.shape[0], 1 << size), dtype=np.uint16)
    for r in range(size):
        found[:, 1 << r : 2 << r] = found[:, : 1 << r] | table[:, r : r + 1].astype(np.uint16)
    return found


# --- The two algebras -------------------------------------------------------------------------------------


@cache
def interval_algebra() -> Algebra:
    """Returns Allen's algebra of intervals: 13 relations, 409 consistent triples.

    Enumerated over the 15 intervals with end points in 0 to 5, which is enough for three intervals in any
    position. ``<`` before, ``m`` meets, ``o`` overlaps, ``s`` starts, ``f`` finishes, ``d`` during; an i
    marks the converse.
    """
    start, end = np.triu_indices(6, k=1)
    s, t = start[:, None], start[None, :]
    e, f = end[:, None], end[None, :]
    holds = {
        "=": (s == t) & (e == f),
        "<": e < t,
        ">": f < s,
        "d": (s > t) & (e < f),
        "di": (s < t) & (e > f),
        "o": (s < t) & (t < e) & (e < f),
        "oi": (t < s) & (s < f) & (f < e),
        "m": e == t,
        "mi": f == s,
        "s": (s == t) & (e < f),
        "si": (s == t) & (e > f),
        "f": (e == f) & (s > t),
        "fi": (e == f) & (s < t),
    }
    return Algebra.of_model("interval", tuple(holds), np.stack(list(holds.values())).argmax(0))


@cache
def rcc8_algebra() -> Algebra:
    """Returns RCC-8, the region connection calculus: 8 relations, 193 consistent triples.

    Enumerated over the 31 regions of five atoms on a line, where an atom touches itself and its neighbours;
    four atoms wouldn't do. Two regions are connected if atoms of theirs touch. DC disconnected, EC externally
    connected, PO partially overlapping, TPP tangential proper part (it touches what is outside the other),
    NTPP non-tangential proper part, an I marks the converse, EQ equal.
    """
    atoms, every = 5, 31
    region = np.arange(1, every + 1)
    near = (region | region << 1 | region >> 1) & every  # all that touches the region
    x, y = region[:, None], region[None, :]
    apart, within, around = x & y == 0, x & ~y == 0, y & ~x == 0
    inner = near[:, None] & ~y == 0  # x doesn't touch the complement of y
    outer = near[None, :] & ~x == 0
    assert len(region) == 2**atoms - 1
    holds = {
        "DC": apart & (near[:, None] & y == 0),
        "EC": apart & (near[:, None] & y != 0),
        "PO": ~(apart | within | around),
        "TPP": within & ~around & ~inner,
        "NTPP": within & ~around & inner,
        "TPPI": around & ~within & ~outer,
        "NTPPI": around & ~within & outer,
        "EQ": within & around,
    }
    return Algebra.of_model("rcc8", tuple(holds), np.stack(list(holds.values())).argmax(0))


def algebra_of(name: str) -> Algebra:
    """Returns the algebra of a data set: ``"rcc8"`` or ``"interval"``.

    Raises:
        UserError: Another name.
    """
    known = {"interval": interval_algebra, "rcc8": rcc8_algebra}
    if name not in known:
        raise UserError(f"there is no algebra '{name}'{did_you_mean(name, known)}")
    return known[name]()


# --- Answers ----------------------------------------------------------------------------------------------


def algebraic_closure(
    edges: ArrayLike, labels: Sequence[Label], algebra: Algebra, num_nodes: int | None = None
) -> NDArray[np.int64]:
    r"""Returns all that path consistency derives: :math:`R_{ij} \cap= R_{ik} \circ R_{kj}` to the fixpoint.

    Args:
        edges: ``[E, 2]``, pairs (u, v) of nodes numbered from 0.
        labels: What holds between u and v: E relations by name or number, or several names of which one
            holds. Where a pair has several edges, all of them hold.
        algebra: The relations.
        num_nodes: N; by default up to the highest node that has an edge.

    Returns:
        ``[N, N]`` int64 masks: entry (i, j) is the set of relations that may hold between i and j. It is as
        small as composing and intersecting can make it; :meth:`Algebra.relations` names its members.

    Raises:
        UserError: The facts contradict one another, or a label is unknown.
        ValueError: Edges and labels of different number, or nodes out of range.
    """
    from graphkit.datasets import _algebra_loops as loops

    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    if len(pairs) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries; there are {len(pairs)} edges")
    n = int(pairs.max(initial=-1)) + 1 if num_nodes is None else num_nodes
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < n):
        raise ValueError(f"edges name nodes {pairs.min()} to {pairs.max()}; they must lie in 0 to {n - 1}")
    masks = np.array([algebra.mask(label) for label in labels], dtype=np.uint16)
    matrix = np.empty((n, n), dtype=np.uint16)
    ends = np.ascontiguousarray(pairs.T)
    loops.start(matrix, n, ends, masks, 0, len(pairs), algebra.converses, algebra.full, 1 << algebra.identity)
    empty = np.flatnonzero(matrix.diagonal() == 0)
    if empty.size:
        name = algebra.names[algebra.identity]
        raise UserError(f"node {empty[0]} has an edge to itself that isn't '{name}'")
    queue, waiting = np.empty(max(n * n, 1), dtype=np.int64), np.zeros(max(n * n, 1), dtype=np.bool_)
    bad = loops.close(matrix, n, algebra.rows, algebra.converses, algebra.full, algebra.skip, queue, waiting)
    if bad >= 0:
        u, v = divmod(bad, n)
        raise UserError(f"the facts contradict one another: no relation is left between nodes {u} and {v}")
    return matrix.astype(np.int64)


class _Flat(NamedTuple):
    """Flat arrays as the loops take them, int64."""

    edge_index: NDArray[np.int64]
    edge_type: NDArray[np.int64]
    ptr: NDArray[np.int64]
    edge_ptr: NDArray[np.int64]
    source: NDArray[np.int64]
    target: NDArray[np.int64]

    @classmethod
    def of(cls, graphs: Mapping[str, Any]) -> _Flat:
        return cls(**{name: _wide(graphs[name]) for name in cls._fields})


def _wide(value: Any) -> NDArray[np.int64]:
    found = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    return np.ascontiguousarray(found, dtype=np.int64)


def exact_answers(graphs: Mapping[str, Any], algebra: Algebra) -> NDArray[np.int64]:
    """Returns what the closure of each graph says of its query: the symbolic solver.

    Args:
        graphs: Flat arrays or tensors of G graphs: ``edge_index`` ``[2, E]``, ``edge_type`` ``[E]`` base
            relations, ``ptr`` and ``edge_ptr`` ``[G + 1]``, ``source`` and ``target`` ``[G]``, all ids
            within a graph.
        algebra: The relations.

    Returns:
        ``[G]`` int64 masks: one relation where the graph entails it, 0 where it contradicts itself. Nodes
        with at most two neighbours are taken out first; where that decides the query, the rest of the graph
        isn't searched for contradictions.
    """
    from graphkit.datasets import _algebra_loops as loops

    flat = _Flat.of(graphs)
    masks = (1 << flat.edge_type).astype(np.uint16)
    found = np.zeros(len(flat.ptr) - 1, dtype=np.int64)
    loops.answers(
        flat.edge_index,
        masks,
        flat.ptr,
        flat.edge_ptr,
        flat.source,
        flat.target,
        algebra.rows,
        algebra.converses,
        algebra.full,
        algebra.skip,
        1 << algebra.identity,
        found,
    )
    return found


def path_answers(graphs: Mapping[str, Any], algebra: Algebra) -> NDArray[np.int64]:
    """Returns the smallest set of relations that a single path of each graph entails for its query.

    Paths go along the edges from source to target. Who looks at one path at a time knows no more than this:
    evidence from several paths isn't put together. Arguments as in :func:`exact_answers`.

    Returns:
        ``[G]`` int64 masks; 0 where no path leads from source to target.
    """
    from graphkit.datasets import _algebra_loops as loops

    flat = _Flat.of(graphs)
    found = np.zeros(len(flat.ptr) - 1, dtype=np.int64)
    loops.path_answers(
        flat.edge_index,
        flat.edge_type,
        flat.ptr,
        flat.edge_ptr,
        flat.source,
        flat.target,
        algebra.columns,
        1 << algebra.identity,
        found,
    )
    return found


def symbolic_scores(graphs: Mapping[str, Any], algebra: Algebra) -> dict[str, NDArray[np.float64]]:
    """Returns how often two symbolic solvers are right, for each graph.

    A solver that is left with a set of relations guesses among them, so its score is one over the set's size
    if the answer is in it, and 0 if not. The mean over a group of graphs is the expected accuracy.

    Args:
        graphs: As in :func:`exact_answers`, and ``y`` ``[G]``.
        algebra: The relations.

    Returns:
        ``[G]`` float64 each: ``exact``, the closure; ``single_path``, the best path alone; ``entailed``, 1
        where the best path alone leaves no choice.
    """
    y = _wide(graphs["y"])
    found = {"exact": exact_answers(graphs, algebra), "single_path": path_answers(graphs, algebra)}
    scores = {name: (masks >> y & 1) / np.maximum(algebra.sizes[masks], 1) for name, masks in found.items()}
    return scores | {"entailed": (algebra.sizes[found["single_path"]] == 1).astype(np.float64)}
