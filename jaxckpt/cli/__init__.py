"""The command line: ``jaxckpt``, or ``python -m jaxckpt``.

Each command is a module with `HELP`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`, which returns the
exit code. This module parses the arguments, runs the command, and prints an error as one line on stderr.

Exit codes: 0 success; 1 an error, damage (`verify`) or differences (`diff`); 2 wrong usage; 130 interrupted; 141 the
reader of the output has closed it.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jaxckpt import __version__
from jaxckpt._lib.output import describe, print_error, print_traceback, warnings_as_lines
from jaxckpt.errors import CheckpointError, ConfigError

COMMANDS = ("demo", "inspect", "verify", "diff", "convert", "explain", "list", "report", "clean")

# Names of arguments that are paths, which shells complete.
_PATHS = ("PATH", "DIR", "A", "B", "SOURCE", "TARGET", "CONFIG", "FILE")
# The exit code with which a shell reports SIGINT.
_INTERRUPTED = 128 + 2
# The exit code with which a shell reports SIGPIPE.
_BROKEN_PIPE = 128 + 13
# Errors that users can cause. Any other error is a bug in jaxckpt, and is shown with its traceback.
_EXPECTED = (CheckpointError, OSError, ValueError, KeyError, ImportError, MemoryError, RuntimeError, ExceptionGroup)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after the program's name; None to use those of the process.

    Returns:
      The exit code.

    Raises:
      SystemExit: the usage is wrong (code 2), or help was requested (code 0).
    """
    arguments = _parsed(argv)
    try:
        command = _module(arguments.command)
        with warnings_as_lines(arguments.command):
            code: int = command.run(arguments)
        # Flushed here, because a broken pipe can still be handled here.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error("")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has closed our output (`| head`). The output that Python still buffers must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        if arguments.debug or not isinstance(error, _EXPECTED):
            print_traceback(error)
        elif isinstance(error, ConfigError) and "\n" in str(error):
            # Several problems of a config, each on a line.
            print_error(f"jaxckpt {arguments.command}: error: {str(error).rstrip()}".partition("\n")[0])
            for line in str(error).split("\n")[1:]:
                print_error(line)
        else:
            print_error(f"jaxckpt {arguments.command}: error: {describe(error)}")
        return 1


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are made printable, because they repeat arguments, which may be any file names."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        # A terminal wraps it, as it does with other errors.
        print_error(f"{self.prog}: error: {message}")
        self.exit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses a word that is no choice, such as an unknown command, and guesses which one was meant."""
        choices = None if action.choices is None else [str(choice) for choice in action.choices]
        if choices is not None and value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{hint} (choose from {', '.join(choices)})")


class _PrintCompletion(argparse.Action):
    """Prints a script that lets a shell complete commands, options and paths, and ends the program."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        # Imported here, because most calls do not need it.
        import shtab

        for command in _subparsers(parser):
            for action in command._actions:
                if action.metavar in _PATHS:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed arguments. An unknown argument ends the program with the usage of the command."""
    parser, commands = _parsers()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[arguments.command]
        meant = [
            hint
            for word in unknown
            if word.startswith("-") and (hint := _meant(word.partition("=")[0], arguments.command, commands))
        ]
        command.error(f"unrecognized arguments: {' '.join(unknown)}.{''.join(meant[:1])}")
    return arguments


def _meant(option: str, command: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """Returns a hint for an option that a command does not have: a command that has it, or an option that is spelled much like it."""
    known = {
        name: [word for action in each._actions for word in action.option_strings] for name, each in commands.items()
    }
    if able := [f"`jaxckpt {name}`" for name, options in known.items() if option in options]:
        listed = able[0] if len(able) == 1 else f"{', '.join(able[:-1])} and {able[-1]}"
        return f" {listed} {'has' if len(able) == 1 else 'have'} {option}."
    close = difflib.get_close_matches(option, known[command], n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _module(command: str) -> Any:
    return importlib.import_module("jaxckpt.demo" if command == "demo" else f"{__name__}.{command}")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="jaxckpt",
        description="Shows, checks and compares checkpoints. `jaxckpt demo` shows how training uses them.",
    )
    parser.add_argument("--version", action="version", version=f"jaxckpt {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes commands, options and paths in this shell",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name in COMMANDS:
        module = _module(name)
        parsers[name] = commands.add_parser(name, parents=[common], help=module.HELP, description=module.DESCRIPTION)
        module.add_arguments(parsers[name])
    return parser, parsers
