"""Pictures of results and answers, drawn off screen by matplotlib and returned as the bytes of a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from graphkit.errors import UserError

__all__ = ["Arrow", "Spot", "cells_of", "draw_cells", "draw_paths", "picture_format"]

_CELL = re.compile(r"accuracy@k(\d+)(?:b(\d+))?$")
_BLUE, _ORANGE, _GREY = "#3b6fb6", "#c2571a", "#6b6b6b"


def cells_of(metrics: Mapping[str, float]) -> dict[tuple[int, int | None], float]:
    """Returns the accuracies by (k, b) among metrics: ``accuracy@k3b2``, or ``accuracy@k3`` without b."""
    found = {}
    for name, value in metrics.items():
        match = _CELL.match(name)
        if match is not None:
            k, b = match.groups()
            found[int(k), None if b is None else int(b)] = value
    return found


def draw_cells(metrics: Mapping[str, float]) -> bytes | None:
    """Draws accuracy by path length k and number of paths b: a heat map, and a curve over k for each b.

    Args:
        metrics: With entries as :func:`cells_of` reads them; others don't matter.

    Returns:
        A PNG, ``None`` where there is no such entry.
    """
    cells = cells_of(metrics)
    if not cells:
        return None
    from matplotlib.ticker import MaxNLocator

    ks = sorted({k for k, _ in cells})
    bs = sorted({b for _, b in cells}, key=lambda b: -1 if b is None else b)
    known = bs != [None]
    wide = max(3.6, 0.52 * len(ks) + 1.2)
    figure = _figure((wide + 4.2 if known else 5, max(3.2, 0.42 * len(bs) + 1.6)))
    axes: Any = figure.subplots(1, 2, width_ratios=[wide, 4.2]) if known else [None, figure.subplots()]
    if known:
        _heat_map(axes[0], cells, ks, bs)
    curves = axes[1]
    colours = _shades(len(bs))
    for b, colour in zip(bs, colours, strict=True):
        points = [(k, cells[k, b]) for k in ks if (k, b) in cells]
        curves.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.5, color=colour, label=f"b = {b}")
    curves.set_title("by path length", loc="left", fontsize=10)
    curves.set_xlabel("k")
    curves.set_ylabel("accuracy")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.grid(alpha=0.25, lw=0.6)
    curves.spines[["top", "right"]].set_visible(False)
    if known:
        curves.legend(fontsize=8, frameon=False)
    return _bytes(figure, "png")


def _heat_map(
    axis: Any, cells: Mapping[tuple[int, int | None], float], ks: Sequence[int], bs: Sequence[int | None]
) -> None:
    values = [[cells.get((k, b), float("nan")) for k in ks] for b in bs]
    low = min(cells.values())
    axis.imshow(
        values, cmap="Blues", vmin=min(low, 0.999) - 0.25 * (1 - min(low, 0.999)), vmax=1, aspect="auto"
    )
    for row, b in enumerate(bs):
        for column, k in enumerate(ks):
            if (k, b) in cells:
                value = cells[k, b]
                shade = "white" if value - low > 0.5 * (1 - low) else "black"
                text = f"{value:.3f}".lstrip("0") if value < 1 else "1"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    axis.set_yticks(range(len(bs)), ["?" if b is None else str(b) for b in bs])
    axis.set_xlabel("k, edges of a path")
    axis.set_ylabel("b, paths")
    axis.set_title("accuracy", loc="left", fontsize=10)


class Spot(NamedTuple):
    """A node to draw.

    Attributes:
        name: What it is called.
        step: Its column, from the left.
        note: What is believed of it; empty for nothing.
        on_path: Whether the highlighted path passes.
    """

    name: str
    step: int
    note: str
    on_path: bool


class Arrow(NamedTuple):
    """An arrow to draw.

    Attributes:
        tail: Number of the spot that it leaves.
        head: Number of the spot that it points to.
        label: What it means.
        on_path: Whether it is on the highlighted path.
        both: Whether it points to both.
    """

    tail: int
    head: int
    label: str
    on_path: bool
    both: bool = False


def picture_format(path: str) -> Literal["png", "svg"]:
    """Returns the format that a file's name asks for.

    Raises:
        UserError: Neither ``.png`` nor ``.svg``.
    """
    ending = path.rpartition(".")[2].lower()
    if ending not in ("png", "svg"):
        raise UserError(f"can't draw into '{path}'; its name must end in .svg or .png")
    return "png" if ending == "png" else "svg"


def draw_paths(
    spots: Sequence[Spot], arrows: Sequence[Arrow], *, title: str = "", format: Literal["png", "svg"] = "png"
) -> bytes:
    """Draws a graph from left to right with labelled arrows, one path highlighted and notes below its nodes.

    Labels lie on their arrows, where they hide no name and no other label if there is such a place.

    Args:
        spots: The nodes.
        arrows: Between them; parallel ones are bent apart.
        title: A line above.
        format: Of the picture.
    """
    places = _layout(spots, arrows)
    columns = max(spot.step for spot in spots) + 1
    rows = max(sum(spot.step == step for spot in spots) for step in range(columns))
    longest = max(len(spot.name) for spot in spots), max((len(arrow.label) for arrow in arrows), default=0)
    wide = 0.6 + 0.085 * longest[0] + 0.07 * longest[1]  # inches of letters
    figure = _figure((max(4.0, max(1.9, wide) * columns), max(2.6, 1.15 * rows + 1.0)))
    axis = figure.subplots()
    texts = [_draw_spot(axis, spot, place) for spot, place in zip(spots, places, strict=True)]
    axis.set_xlim(-0.5, columns - 0.5)
    ys = [y for _, y in places]
    axis.set_ylim(min(ys) - 0.6, max(ys) + 0.4)
    axis.set_axis_off()
    if title:
        axis.set_title(title, loc="left", fontsize=10, wrap=True)
    figure.draw_without_rendering()  # frames have their size from here on
    figure.set_layout_engine("none")
    names = [name.get_bbox_patch() for name, _ in texts]
    taken = [(part.get_window_extent().padded(2), 50) for pair in texts for part in pair if part is not None]
    seen: dict[frozenset[int], int] = {}
    curves = []
    for arrow in arrows:
        ends = frozenset((arrow.tail, arrow.head))
        seen[ends] = seen.get(ends, 0) + 1
        curves.append(_draw_arrow(axis, spots, places, names, arrow, seen[ends] - 1))
    for arrow, curve in zip(arrows, curves, strict=True):
        _draw_label(axis, arrow, curve, taken)
    return _bytes(figure, format)


def _draw_spot(axis: Any, spot: Spot, place: tuple[float, float]) -> tuple[Any, Any]:
    """Draws a node and its note; returns both texts."""
    colour = _ORANGE if spot.on_path else _GREY
    frame = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": colour, "lw": 1.8 if spot.on_path else 1}
    text = axis.text(*place, spot.name, ha="center", va="center", fontsize=9, zorder=3, bbox=frame)
    if not spot.note:
        return text, None
    look = {"ha": "center", "va": "top", "fontsize": 7.5, "color": _ORANGE, "zorder": 4}
    look["bbox"] = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.8}
    return text, axis.annotate(spot.note, place, xytext=(0, -15), textcoords="offset points", **look)


_Curve = Sequence[tuple[float, float]]


def _draw_arrow(
    axis: Any,
    spots: Sequence[Spot],
    places: Sequence[tuple[float, float]],
    names: Sequence[Any],
    arrow: Arrow,
    number: int,
) -> _Curve:
    """Draws one arrow, the ``number``-th between its ends; returns places for its label, the best first."""
    from matplotlib.patches import FancyArrowPatch

    to_pixels, point = axis.transData.transform, axis.figure.dpi / 72
    (x0, y0), (x1, y1) = (to_pixels(places[end]).tolist() for end in (arrow.tail, arrow.head))
    if arrow.tail == arrow.head:  # a loop has no direction to draw
        return [(x0, y0 + (19 + 9 * (number + k)) * point) for k in range(3)]
    bend = 0.0 if number == 0 else 0.18 * ((number + 1) // 2) * (1 if number % 2 else -1)
    bend = bend if arrow.tail < arrow.head else -bend  # opposite arrows bend to their own sides
    between = [
        name.get_window_extent().width
        for name, spot, place in zip(names, spots, places, strict=True)
        if spot.step == spots[arrow.tail].step == spots[arrow.head].step
        and min(y0, y1) < to_pixels(place)[1] < max(y0, y1)
    ]
    if between:  # around the names of its own column
        near = 1 / (len(between) + 1)
        around = (max(between) / 2 + 12 * point) / (2 * near * (1 - near) * abs(y1 - y0))
        bend += around if y1 > y0 else -around
    colour = _ORANGE if arrow.on_path else _GREY
    made = FancyArrowPatch(
        *(places[arrow.tail], places[arrow.head]),
        patchA=names[arrow.tail],
        patchB=names[arrow.head],
        shrinkA=1.5,
        shrinkB=1.5,
        arrowstyle="<|-|>" if arrow.both else "-|>",
        mutation_scale=11,
        color=colour,
        lw=2.2 if arrow.on_path else 1.0,
        connectionstyle=f"arc3,rad={bend}",
        zorder=2,
    )
    axis.add_patch(made)
    cx, cy = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
    return [
        tuple((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t * t * b for a, c, b in ((x0, cx, x1), (y0, cy, y1)))
        for t in (0.5, *(0.5 + side * far / 40 for far in range(1, 15) for side in (-1, 1)))
    ]


def _draw_label(axis: Any, arrow: Arrow, curve: _Curve, taken: list[tuple[Any, int]]) -> None:
    """Writes a label at the first place where nothing is hidden, or where the least is; marks it as taken.

    Rather hides other labels than names: ``taken`` has boxes and how much they matter.
    """
    from matplotlib.transforms import Bbox

    text = axis.text(
        *(0, 0, f"↻ {arrow.label}" if arrow.tail == arrow.head else arrow.label),
        ha="center",
        va="center",
        fontsize=7.5,
        color=_ORANGE if arrow.on_path else _GREY,
        zorder=4,
        bbox={"boxstyle": "square,pad=0.12", "fc": "white", "ec": "none"},
    )
    size = text.get_window_extent()
    best, least = None, float("inf")
    for x, y in curve:
        box = Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height).padded(1)
        hidden = 0.0
        for other, matters in taken:
            part = Bbox.intersection(box, other)
            hidden += 0.0 if part is None else float(part.width * part.height) * matters
        if hidden < least:
            best, least = (x, y, box), hidden
        if not hidden:
            break
    if best is not None:
        text.set_position(axis.transData.inverted().transform(best[:2]))
        taken.append((best[2], 1))


def _layout(spots: Sequence[Spot], arrows: Sequence[Arrow]) -> list[tuple[float, float]]:
    """Places columns by step; within a column the path comes first, others near their neighbours."""
    neighbours: dict[int, list[int]] = {number: [] for number in range(len(spots))}
    for arrow in arrows:
        neighbours[arrow.tail].append(arrow.head)
        neighbours[arrow.head].append(arrow.tail)
    height = dict.fromkeys(range(len(spots)), 0.0)
    for _ in range(4):  # sweeps of the barycentre rule (Sugiyama et al., 1981)
        for step in sorted({spot.step for spot in spots}):
            column = [number for number, spot in enumerate(spots) if spot.step == step]

            def pull(number: int, column: Sequence[int] = tuple(column)) -> tuple[float, int]:
                others = [height[n] for n in neighbours[number] if n not in column]
                return (sum(others) / len(others) if others else height[number], number)

            ordered = sorted(column, key=pull)
            for rank, number in enumerate(ordered):
                height[number] = rank - (len(ordered) - 1) / 2
    return [(float(spot.step), -height[number]) for number, spot in enumerate(spots)]


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(1, count - 1)) for i in range(count)]


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bytes(figure: Any, format: str) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format=format, metadata={"Date": None} if format == "svg" else None)
    return picture.getvalue()
