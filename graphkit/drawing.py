"""Molecules as pictures, with the pairs of atoms that a model attends to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphkit.chem import import_rdkit, read_smiles
from graphkit.errors import UserError
from graphkit.files import atomic_write

__all__ = ["draw_molecule", "strongest_pairs"]

_COLOUR = (0.76, 0.34, 0.10)
_SEGMENTS = 24


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
    arcs = []
    if pairs is not None and strength is not None and pairs.numel():
        places = [canvas.GetDrawCoords(atom) for atom in range(atoms)]
        shares = (strength / strength.max().clamp(min=1e-12)).tolist()
        middle = tuple(sum(getattr(p, axis) for p in places) / atoms for axis in "xy")
        for (i, j), share in zip(pairs.t().tolist(), shares, strict=True):
            ends = ((places[i].x, places[i].y), (places[j].x, places[j].y))
            arcs.append((ends[0], _bend(*ends, middle), ends[1], share))
    if kind == ".png":
        for arc in arcs:
            _fill_arc(canvas, *arc)
    canvas.FinishDrawing()
    content = canvas.GetDrawingText()
    if kind == ".svg":
        body, _, tail = content.rpartition("</svg>")
        content = f"{body}{''.join(_svg_arc(*arc) for arc in arcs)}</svg>{tail}"
    atomic_write(path, content)


Point = tuple[float, float]


def _bend(a: Point, b: Point, middle: tuple[float, ...]) -> Point:
    """Returns the control point of an arc that bends away from the middle of the picture."""
    x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    normal = (a[1] - b[1], b[0] - a[0])
    outward = normal[0] * (x - middle[0]) + normal[1] * (y - middle[1])
    sign = 0.3 if outward >= 0 else -0.3
    return x + sign * normal[0], y + sign * normal[1]


def _look(share: float) -> tuple[float, float]:
    """Returns width and opacity of an arc by its share of the greatest strength."""
    return 1.0 + 5.0 * share, 0.15 + 0.55 * share


def _svg_arc(a: Point, control: Point, b: Point, share: float) -> str:
    width, opacity = _look(share)
    colour = "#" + "".join(f"{round(255 * part):02x}" for part in _COLOUR)
    route = f"M {a[0]:.1f},{a[1]:.1f} Q {control[0]:.1f},{control[1]:.1f} {b[0]:.1f},{b[1]:.1f}"
    look = f"stroke-width='{width:.2f}' stroke-opacity='{opacity:.2f}' stroke-linecap='round'"
    return f"<path class='attention' d='{route}' fill='none' stroke='{colour}' {look}/>\n"


def _fill_arc(canvas: Any, a: Point, control: Point, b: Point, share: float) -> None:
    """Fills the outline of an arc: of lines one after the other, the ends would overlap and be darker."""
    point: Any = import_rdkit("rdkit.Geometry").Point2D
    width, opacity = _look(share)
    left, right = [], []
    for step in range(_SEGMENTS + 1):
        t = step / _SEGMENTS
        x, y = (
            (1 - t) ** 2 * p + 2 * t * (1 - t) * c + t * t * q for p, c, q in zip(a, control, b, strict=True)
        )
        dx, dy = (2 * (1 - t) * (c - p) + 2 * t * (q - c) for p, c, q in zip(a, control, b, strict=True))
        half = width / (2 * max(math.hypot(dx, dy), 1e-9))
        left.append(point(x - dy * half, y + dx * half))
        right.append(point(x + dy * half, y - dx * half))
    canvas.SetFillPolys(True)
    canvas.SetLineWidth(0)
    canvas.SetColour((*_COLOUR, opacity))
    canvas.DrawPolygon([*left, *reversed(right)], True)
