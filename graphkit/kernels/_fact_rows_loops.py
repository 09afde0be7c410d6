"""Compiled loops of :mod:`graphkit.kernels.fact_rows`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def sort(row, line, source, num_lines, ids, perm, begin, rowptr):
    """Sorts by line, then by row, counting both times; returns how many entries there are."""
    facts = row.shape[0]
    at = np.zeros(num_lines + 1, np.int64)
    for e in range(facts):
        at[line[e] + 1] += 1
    for c in range(num_lines):
        at[c + 1] += at[c]
    by_line = np.empty(facts, np.int32)
    for e in range(facts):
        by_line[at[line[e]]] = e
        at[line[e]] += 1
    rows = rowptr.shape[0] - 1
    at = np.zeros(rows + 1, np.int64)
    for e in range(facts):
        at[row[e] + 1] += 1
    for r in range(rows):
        at[r + 1] += at[r]
    for k in range(facts):
        e = by_line[k]
        to = at[row[e]]
        at[row[e]] = to + 1
        perm[to] = e
        ids[0, to], ids[1, to], ids[2, to] = row[e], line[e], source[e]
    # lines move up in place: entry k is never behind fact k
    entries, last = 0, np.int32(-1)
    for k in range(facts):
        if ids[1, k] != last or ids[0, k] != ids[0, k - 1]:
            begin[entries] = k
            last = ids[1, k]
            ids[1, entries] = last
            rowptr[ids[0, k] + 1] += 1
            entries += 1
    begin[entries] = facts
    for r in range(rows):
        rowptr[r + 1] += rowptr[r]
    return entries


@njit(cache=True, nogil=True)
def number(keys, place, distinct, out):
    """Numbers the keys by a table of all that may occur; returns how many there are."""
    for k in range(keys.shape[0]):
        place[keys[k]] = 1
    count = 0
    for key in range(place.shape[0]):
        if place[key]:
            distinct[count] = key
            place[key] = count
            count += 1
    for k in range(keys.shape[0]):
        out[k] = place[keys[k]]
    return count
