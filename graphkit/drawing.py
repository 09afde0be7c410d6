"""Molecules as pictures, with the pairs of atoms that a model attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphkit.chem import import_rdkit, read_smiles
from graphkit.errors import UserError
from graphkit.files import atomic_write

__all__ = ["draw_molecule", "strongest_pairs"]

_COLOUR, _INK = (0.76, 0.34, 0.10), (0.45, 0.18, 0.03)
_SEGMENTS = 24
_FONT = 13
_CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def strongest_pairs(pairs: Tensor, alpha: Tensor, top: int) -> tuple[Tensor, Tensor]:
    r"""Returns the unordered pairs of nodes that are attended to most, and how much.

    The strength of :math:`\{i, j\}` is :math:`\alpha_{ij} + \alpha_{ji}`, averaged over layers and heads.

    Args:
        pairs: ``[2, P]`` int64; pairs of a node with itself don't count.
        alpha: ``[L, P, H]``.
        top: At most so many.

    Returns:
        ``[2, k]`` int64 with the smaller number first, and ``[k]``, strongest first.
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")
    weight = alpha.double().mean(dim=(0, 2))
    ends = torch.stack([torch.minimum(*pairs), torch.maximum(*pairs)])
    proper = ends[0] != ends[1]
    unique, which = torch.unique(ends[:, proper], dim=1, return_inverse=True)
    strength = torch.zeros(unique.size(1), dtype=torch.float64).index_add(0, which, weight[proper])
    best = strength.sort(descending=True, stable=True).indices[:top]
    return unique[:, best], strength[best]


def draw_molecule(
    path: str | Path,
    smiles: str,
    pairs: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    legend: str = "",
    size: tuple[int, int] = (600, 450),
) -> None:
    """Draws a molecule, with arcs between pairs of atoms that are the bolder the stronger they are.

    Boldness goes from the weakest to the strongest of them, however near these are; the number on each arc is
    its strength.

    Args:
        path: A file whose name ends in ``.svg`` or ``.png``.
        smiles: The molecule; atoms are numbered as in it.
        pairs: ``[2, k]`` int64 atoms.
        strength: ``[k]``, at least 0.
        legend: A line below.
        size: Width and height in pixels.

    Raises:
        UserError: Another kind of file, no molecule, an atom that it doesn't have, rdkit isn't installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".svg", ".png"):
        raise UserError(f"can't draw into '{path}'; its name must end in .svg or .png")
    molecule = read_smiles(smiles)
    atoms = molecule.GetNumAtoms()
    if pairs is not None and pairs.numel() and int(pairs.max()) >= atoms:
        raise UserError(f"'{smiles}' has {atoms} atoms, and atom {int(pairs.max())} is to be drawn")
    draw: Any = import_rdkit("rdkit.Chem.Draw.rdMolDraw2D")
    canvas = draw.MolDraw2DSVG(*size) if kind == ".svg" else draw.MolDraw2DCairo(*size)
    options = canvas.drawOptions()
    options.padding, options.legendFontSize = 0.12, 18
    if kind == ".png":
        options.bondLineWidth = 2
    draw.PrepareAndDrawMolecule(canvas, molecule, legend=legend)
    arcs: list[Arc] = []
    labels: list[Label] = []
    if pairs is not None and strength is not None and pairs.numel():
        places = [canvas.GetDrawCoords(atom) for atom in range(atoms)]
        middle = tuple(sum(getattr(p, axis) for p in places) / atoms for axis in "xy")
        for (i, j), share in zip(pairs.t().tolist(), _shares(strength), strict=True):
            ends = ((places[i].x, places[i].y), (places[j].x, places[j].y))
            arcs.append((ends[0], _bend(*ends, middle), ends[1], share))
        taken = [(place.x, place.y) for place in places]
        labels = _labels(strength, arcs, taken, size)
    if kind == ".png":
        for arc in arcs:
            _fill_arc(canvas, *arc)
        for label in labels:
            _draw_label(canvas, *label)
    canvas.FinishDrawing()
    content = canvas.GetDrawingText()
    if kind == ".svg":
        body, _, tail = content.rpartition("</svg>")
        drawn = [*(_svg_arc(*arc) for arc in arcs), *(_svg_label(*label) for label in labels)]
        content = f"{body}{''.join(drawn)}</svg>{tail}"
    atomic_write(path, content)


Point = tuple[float, float]
Arc = tuple[Point, Point, Point, float]
"""From, control point, to; and where it lies between the weakest, 0, and the strongest, 1."""
Label = tuple[Point, Point, str]
"""Middle, half of width and height, and what it says."""


def _shares(strength: Tensor) -> list[float]:
    """Returns where each strength lies between the weakest, 0, and the strongest, 1; equal ones are all 1."""
    low, high = strength.aminmax()
    shares: list[float] = ((strength - low) / (high - low)).nan_to_num(1.0).tolist()
    return shares


def _labels(
    strength: Tensor, arcs: Sequence[Arc], taken: Sequence[Point], size: tuple[int, int]
) -> list[Label]:
    """Returns the strengths with a place beside each arc, off atoms, arcs and numbers where that can be.

    Args:
        strength: ``[k]``.
        arcs: ``k`` of them.
        taken: Places of the atoms.
        size: Of the picture, which numbers stay inside of.
    """
    digits = min(max(2 - math.floor(math.log10(max(float(strength.max()), 1e-6))), 0), 6)
    lines = [_on_arc(*arc[:3], t)[0] for arc in arcs for t in (0.2, 0.35, 0.5, 0.65, 0.8)]
    room = [*((place, (8.0, 8.0)) for place in taken), *((place, (2.0, 2.0)) for place in lines)]
    found: list[Label] = []
    for (a, control, b, _), value in zip(arcs, strength.tolist(), strict=True):
        text = f"{value:.{digits}f}"
        wide, high = 0.31 * _FONT * len(text), 0.6 * _FONT
        best = (-1.0, a)
        for outward, t in product((1, -1), (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)):
            (x, y), (dx, dy) = _on_arc(a, control, b, t)
            side = math.copysign(outward, dy * (control[0] - x) - dx * (control[1] - y))
            across, down = side * dy / math.hypot(dx, dy), -side * dx / math.hypot(dx, dy)
            away = 3 + wide * abs(across) + high * abs(down)
            u = min(max(x + across * away, wide), size[0] - wide)
            v = min(max(y + down * away, high), size[1] - high)
            # 1 where it touches something
            free = min(max(abs(u - x) / (wide + i), abs(v - y) / (high + j)) for (x, y), (i, j) in room)
            best = max(best, (min(free, 1.0), (u, v)), key=itemgetter(0))
        room.append((best[1], (wide, high)))
        found.append((best[1], (wide, high), text))
    return found


def _on_arc(a: Point, control: Point, b: Point, t: float) -> tuple[Point, Point]:
    """Returns the point of an arc at ``t`` in [0, 1], and its direction there, never of length 0."""
    x, y = ((1 - t) ** 2 * p + 2 * t * (1 - t) * c + t * t * q for p, c, q in zip(a, control, b, strict=True))
    dx, dy = (2 * (1 - t) * (c - p) + 2 * t * (q - c) for p, c, q in zip(a, control, b, strict=True))
    return (x, y), (dx, dy) if math.hypot(dx, dy) > 1e-9 else (1e-9, 0.0)


def _bend(a: Point, b: Point, middle: tuple[float, ...]) -> Point:
    """Returns the control point of an arc that bends away from the middle of the picture."""
    x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    normal = (a[1] - b[1], b[0] - a[0])
    outward = normal[0] * (x - middle[0]) + normal[1] * (y - middle[1])
    sign = 0.3 if outward >= 0 else -0.3
    return x + sign * normal[0], y + sign * normal[1]


def _look(share: float) -> tuple[float, float]:
    """Returns width and opacity of an arc by where it lies between the weakest, 0, and the strongest, 1."""
    return 1.2 + 5.8 * share, 0.3 + 0.5 * share


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _svg_label(place: Point, half: Point, text: str) -> str:
    look = f"font-family='sans-serif' font-size='{_FONT}' fill='{_hex(_INK)}' text-anchor='middle'"
    halo = "stroke='white' stroke-width='3' paint-order='stroke'"
    return (
        f"<text class='strength' x='{place[0]:.1f}' y='{place[1] + 0.36 * _FONT:.1f}' {look} {halo}>"
        f"{text}</text>\n"
    )


def _draw_label(canvas: Any, place: Point, half: Point, text: str) -> None:
    point: Any = import_rdkit("rdkit.Geometry").Point2D
    corners = [(place[0] + i * half[0], place[1] + j * half[1]) for i, j in _CORNERS]
    canvas.SetFillPolys(True)
    canvas.SetLineWidth(0)
    canvas.SetColour((1.0, 1.0, 1.0, 0.7))
    canvas.DrawPolygon([point(*corner) for corner in corners], True)
    canvas.SetFontSize(_FONT)
    canvas.SetColour(_INK)
    canvas.DrawString(text, point(*place), 0, True)


def _svg_arc(a: Point, control: Point, b: Point, share: float) -> str:
    width, opacity = _look(share)
    colour = _hex(_COLOUR)
    route = f"M {a[0]:.1f},{a[1]:.1f} Q {control[0]:.1f},{control[1]:.1f} {b[0]:.1f},{b[1]:.1f}"
    look = f"stroke-width='{width:.2f}' stroke-opacity='{opacity:.2f}' stroke-linecap='round'"
    return f"<path class='attention' d='{route}' fill='none' stroke='{colour}' {look}/>\n"


def _fill_arc(canvas: Any, a: Point, control: Point, b: Point, share: float) -> None:
    """Fills the outline of an arc: of lines one after the other, the ends would overlap and be darker."""
    point: Any = import_rdkit("rdkit.Geometry").Point2D
    width, opacity = _look(share)
    left, right = [], []
    for step in range(_SEGMENTS + 1):
        (x, y), (dx, dy) = _on_arc(a, control, b, step / _SEGMENTS)
        half = width / (2 * math.hypot(dx, dy))
        left.append(point(x - dy * half, y + dx * half))
        right.append(point(x + dy * half, y - dx * half))
    canvas.SetFillPolys(True)
    canvas.SetLineWidth(0)
    canvas.SetColour((*_COLOUR, opacity))
    canvas.DrawPolygon([*left, *reversed(right)], True)
