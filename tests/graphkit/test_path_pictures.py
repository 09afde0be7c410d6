"""Pictures of paths: no label hides a name or another label, and arrows go around names of their column."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from graphkit import pictures
from graphkit.pictures import Arrow, Spot, draw_paths

SPOTS = [
    Spot("France", 0, "", True),
    *(Spot(name, 1, "0.1", True) for name in ("Germany", "Spain", "Italy", "Belgium", "Luxembourg")),
    *(Spot(name, 2, "0.200", True) for name in ("German", "Spanish", "a thing with a rather long name")),
]
ARROWS = [
    *(Arrow(0, number, "shares a border with", True, both=True) for number in range(1, 6)),
    *(Arrow(1 + number, 6 + number, "language", True) for number in range(3)),
    *(Arrow(a, b, "borders", False) for a, b in combinations(range(1, 6), 2)),
    *(Arrow(b, a, "borders", False) for a, b in combinations(range(1, 4), 2)),
    *(Arrow(number, 6, "language", False) for number in (4, 5)),
    Arrow(2, 2, "itself", False),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of the picture, as they are written to the file."""
    figures: list[Any] = []
    monkeypatch.setattr(pictures, "_bytes", lambda figure, format: figures.append(figure) or b"")
    draw_paths(SPOTS, ARROWS, title="which languages are spoken around France?")
    figures[0].draw_without_rendering()
    return figures[0].axes[0]


def test_no_label_lies_over_a_name_or_another_label(drawn: Any) -> None:
    names = {spot.name for spot in SPOTS}
    extents = [(text.get_text(), text.get_window_extent()) for text in drawn.texts if text.get_text()]
    labels = [(text, box) for text, box in extents if text not in names and not text.startswith("0.")]
    assert len(labels) == len(ARROWS)
    for text, box in labels:
        over = [other for other, place in extents if other in names and place.overlaps(box)]
        assert not over, f"{text} lies over {over}"
    hidden = sum(a.overlaps(b) for (_, a), (_, b) in combinations(labels, 2))
    assert hidden == 0


def test_arrows_within_a_column_go_around_the_names_between(drawn: Any) -> None:
    boxes = {text.get_text(): text.get_window_extent() for text in drawn.texts}
    column = [boxes[spot.name] for spot in SPOTS if spot.step == 1]
    for patch in drawn.patches:
        path = patch.get_path().transformed(patch.get_transform()) if patch.get_path() else None
        assert path is not None
        line = path.interpolated(20).vertices
        crossed = [box for box in column if any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in line)]
        assert len(crossed) <= 2  # those at its ends


def test_files_have_the_format_that_is_asked_for() -> None:
    assert draw_paths(SPOTS, ARROWS).startswith(b"\x89PNG")
    assert b"<svg" in draw_paths(SPOTS, ARROWS, format="svg")
