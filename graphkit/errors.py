"""Errors that a user can mend, and the closest-name hint they carry."""

from __future__ import annotations

import difflib
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
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}"
