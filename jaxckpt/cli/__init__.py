"""The command line: ``jaxckpt``, also ``python -m jaxckpt``.

Each command is a module with `HELP`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`, which returns the
exit code. This module parses, runs the command, and turns what goes wrong into one line on stderr.

Exit codes: 0 done; 1 an error, damage (`verify`) or differences (`diff`); 2 wrong usage; 130 interrupted; 141 nobody
reads the output.
"""

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from jaxckpt.cli.output import describe
from jaxckpt.errors import CheckpointError

COMMANDS = ("demo", "inspect", "verify", "diff", "explain", "list", "clean")

_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE
# What users can cause. Anything else is a mistake in jaxckpt, and shows its traceback.
_EXPECTED = (CheckpointError, OSError, ValueError, KeyError, ImportError, MemoryError, RuntimeError, ExceptionGroup)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments behind the program's name; None takes those of the process.

    Returns:
      The exit code.

    Raises:
      SystemExit: wrong usage (code 2), or a request for help (code 0).
    """
    arguments = _parsed(argv)
    try:
        code: int = importlib.import_module(f"{__name__}.{arguments.command}").run(arguments)
        sys.stdout.flush()  # Here, where a broken pipe can still be handled.
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). What Python still holds for it must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        elif isinstance(error, _EXPECTED):
            print(f"jaxckpt {arguments.command}: error: {describe(error)}", file=sys.stderr)
        else:
            raise
        return 1


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments. What is left over belongs to the command, whose usage is then shown."""
    parser, commands = _parsers()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[arguments.command]
        known = [option for action in command._actions for option in action.option_strings]
        meant = [
            f" Did you mean {close[0]}?"
            for word in unknown
            if word.startswith("-") and (close := difflib.get_close_matches(word.partition("=")[0], known, n=1))
        ]
        command.error(f"unrecognized arguments: {' '.join(unknown)}.{''.join(meant[:1])}")
    return arguments


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    from jaxckpt import __version__

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="jaxckpt",
        description="Looks at, checks and compares checkpoints; `jaxckpt demo` shows how training uses them.",
    )
    parser.add_argument("--version", action="version", version=f"jaxckpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name in COMMANDS:
        module = importlib.import_module(f"{__name__}.{name}")
        parsers[name] = commands.add_parser(name, parents=[common], help=module.HELP, description=module.DESCRIPTION)
        module.add_arguments(parsers[name])
    return parser, parsers
