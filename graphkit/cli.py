"""The command line: train · evaluate · predict · export · reproduce · partition · generate · extract · ...

``scripts/train.py ...`` and ``graphkit train ...`` are the same. A bad input ends with one line on standard
error and exit code 2; ``--debug`` before or after the command shows the traceback as well. Under torchrun
``--timeout MINUTES`` says how long a process waits for another one (default 30).
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from graphkit.errors import UserError, did_you_mean

__all__ = ["main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("graphkit.commands.train", "train a model by name"),
    "evaluate": ("graphkit.commands.use", "evaluate a run's best weights again"),
    "predict": ("graphkit.commands.use", "use a run's best weights"),
    "reproduce": (
        "graphkit.commands.reproduce",
        "run recipes over their seeds and compare with published results",
    ),
    "partition": ("graphkit.commands.partition", "order a graph's nodes for compressed embeddings"),
    "export": ("graphkit.commands.export", "write a run's best weights to one file"),
    "generate": ("graphkit.commands.generate", "write reasoning problems in the published form"),
    "extract": ("graphkit.commands.extract", "write questions with their subgraphs"),
    "list": ("graphkit.commands.catalogue", "tables of models, data sets and recipes"),
    "show": ("graphkit.commands.catalogue", "parameters, recipes and results of one name"),
    "readme": ("graphkit.commands.readme", "bring the README's tables up to date"),
}

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says that is full, broken or closed to this user: told in one line, no code is at fault."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: Command and its arguments; the process's by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _processes(arguments):
            return _dispatch(arguments)
    except UserError as error:
        if error.told:
            return error.exit_code
        _complain(str(error), debug)
        return error.exit_code
    except BrokenPipeError:
        # the reader (head, less) has gone; closing stderr keeps the interpreter from complaining at its end
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}", debug)
    except KeyboardInterrupt:
        return 130


def _complain(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"graphkit: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from graphkit import __version__

        print(f"graphkit {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}'{did_you_mean(command, COMMANDS)}")
    function = _command(command)
    from graphkit.logging import configured  # imports torch, which the command has done by now

    with configured():
        return function(rest)


def _processes(arguments: list[str]) -> AbstractContextManager[None]:
    """Joins the processes of torchrun, if it started this one; takes ``--timeout`` out of the arguments."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from graphkit.distributed.launch import TIMEOUT_MINUTES, process_group

    minutes = TIMEOUT_MINUTES
    if "--timeout" in arguments:
        at = arguments.index("--timeout")
        given = arguments[at + 1 : at + 2]
        del arguments[at : at + 2]
        try:
            minutes = float(given[0])
        except (IndexError, ValueError):
            raise UserError(f"--timeout is {given[0] if given else 'empty'}; it must be minutes") from None
    return process_group(minutes)


def _command(name: str) -> Callable[[list[str]], int]:
    """Imports a command when it is wanted: ``graphkit list`` shouldn't wait for the trainer."""
    from importlib import import_module

    module = import_module(COMMANDS[name][0])
    function: Callable[[list[str]], int] = getattr(module, name if name != "list" else "list_")
    return function


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: graphkit COMMAND ...",
            "",
            *lines,
            "",
            "graphkit COMMAND --help says more about one of them.",
        ]
    )
