"""Errors that a user can mend, and the closest-name hint they carry."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean"]


class UserError(ValueError):
    """A bad input, described in one line: what was wrong, where, and what would be right.

    The command line prints the message alone and exits with code 2; with ``--debug`` it shows the
    traceback as well. Library users catch it as a :class:`ValueError`.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the option closest to ``name``, else the short list of options.

    Args:
        name: What the user wrote.
        options: The names that would have been accepted.
    """
    known = sorted(options)
    close = min(known, key=lambda option: _edits(name, option), default="")
    if close and _edits(name, close) <= max(1, len(close) // 3):
        return f"; did you mean '{close}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}"


def _edits(a: str, b: str) -> int:
    """Returns how many insertions, deletions and replacements lead from one name to another (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
