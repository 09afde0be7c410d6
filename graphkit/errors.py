"""Errors that a user can mend, and the closest-name hint they carry."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean"]


class UserError(ValueError):
    """A bad input, described in one line: what was wrong, where, and what would be right.

    The command line prints the message alone and exits with code 2; with ``--debug`` it shows the
    traceback as well. Library users catch it as a :class:`ValueError`.

    Attributes:
        exit_code: The program's.
        told: Another process has shown the same message already.
    """

    exit_code = 2
    told = False


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the option closest to ``name``, else the short list of options.

    Args:
        name: What the user wrote.
        options: The names that would have been accepted.
    """
    known = sorted(options)
    close = min(known, key=lambda option: _edits(name, option), default="")
    if close and _edits(name, close) <= max(1.5, len(close) // 3):
        return f"; did you mean '{close}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}"


def _edits(a: str, b: str) -> float:
    """Returns the cost of turning one name into another.

    An inserted, deleted or replaced letter costs 1, two swapped neighbours 1.5: of two names equally far, the
    one that a letter is missing from is the likelier (optimal string alignment distance otherwise).
    """
    before: list[float] = []
    row: list[float] = [float(j) for j in range(len(b) + 1)]
    for i, x in enumerate(a, start=1):
        last, before = before, row
        row = [float(i)]
        for j, y in enumerate(b, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, last[j - 2] + 1.5)
            row.append(cost)
    return row[-1]
