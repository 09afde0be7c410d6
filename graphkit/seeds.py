"""Seeds of independent random streams, derived from one user seed."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["derive_seed", "generator"]


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Returns a 63-bit seed that depends on all of its arguments.

    One user seed feeds several independent streams (``purpose``: ``"init"``, ``"order"``, ``"negatives"``,
    ``"dropout"``, ...) at any position (epoch, step, rank) without one disturbing another.
    """
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Returns a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *position))
