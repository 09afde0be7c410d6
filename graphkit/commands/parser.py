"""The argument parser of the commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from graphkit.errors import UserError

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are of :class:`~graphkit.errors.UserError`; it takes no abbreviations."""

    def __init__(self, prog: str, description: str, *, add_help: bool = True) -> None:
        super().__init__(
            prog=prog,
            description=description,
            add_help=add_help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")
