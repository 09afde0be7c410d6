"""Checks of constructor arguments: a ValueError that names the argument, what it got and what is allowed."""

from __future__ import annotations

__all__ = ["require_positive", "require_rate"]


def require_positive(name: str, value: int) -> None:
    """Raises ValueError unless ``value`` is at least 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


def require_rate(name: str, value: float, *, below_one: bool = False) -> None:
    """Raises ValueError unless ``value`` lies in [0, 1], or in [0, 1) where all must not be dropped."""
    if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
        raise ValueError(f"{name} is {value}; it must lie in [0, 1{')' if below_one else ']'}")
