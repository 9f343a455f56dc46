"""``jaxckpt convert SOURCE TARGET``: turns any checkpoint that can be read into a checkpoint or a safetensors file."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from jaxckpt._lib.output import count, human_bytes, print_error, print_json, print_line
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import checkpoint_at
from jaxckpt.converting import Choice, convert
from jaxckpt.converting.leaves import dtype_named
from jaxckpt.tree.renaming import Rule

_Parsed = TypeVar("_Parsed")

HELP = "turn a checkpoint (also TensorFlow's, or a safetensors file) into a checkpoint or a safetensors file"
DESCRIPTION = (
    "Reads a checkpoint of jaxckpt, Orbax or TensorFlow, or a safetensors file, and writes its leaves as a checkpoint, or as a "
    "safetensors file if TARGET ends in .safetensors: bit for bit, one leaf after the other. More than 5 GB become several "
    "safetensors files and an index."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "source", metavar="SOURCE", help="what to read; a directory of checkpoints stands for its latest"
    )
    parser.add_argument("target", metavar="TARGET", help="the new checkpoint, or a file NAME.safetensors")
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        type=_argument(Rule.parse),
        help="give a leaf, or all leaves below a name, another name; repeatable, applied in their order",
    )
    parser.add_argument(
        "--cast",
        metavar="DTYPE",
        type=_argument(dtype_named),
        help="convert numbers of its kind, such as all floating ones to bfloat16; an overflow is an error",
    )
    parser.add_argument(
        "--filter",
        metavar="PATTERN",
        action="append",
        default=[],
        help="take only leaves whose names match, such as 'model/*'; repeatable",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    source = checkpoint_at(arguments.source)
    choice = Choice(arguments.filter, arguments.rename)
    with Progress(f"writing {arguments.target}") as bar:
        report = convert(source, arguments.target, choice, bar, cast=arguments.cast, overwrite=arguments.overwrite)
    if report.left_out:
        print_error(f"jaxckpt convert: warning: left out {count(len(report.left_out), 'leaf', 'leaves')}:")
        for name, reason in report.left_out.items():
            print_error(f"  {name}: {reason}")
    if report.other_names:
        name, other = next(iter(report.other_names.items()))
        first = other.partition("/")[0]
        print_error(
            f"jaxckpt convert: warning: {count(len(report.other_names), 'leaf', 'leaves')} can be read from the source under another name "
            f"too, such as {other!r} for {name!r}, but not from the target. To write a leaf under such a name, rename that one to itself: "
            f"--rename {first}={first}"
        )
    if arguments.json:
        print_json(asdict(report))
    else:
        print_line(f"{report.target}: {count(report.leaves, 'leaf', 'leaves')}, {human_bytes(report.bytes)}")
    return 0


def _argument(parse: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """Returns a parser whose errors argparse shows with their text.

    Args:
      parse: the parser; raises ValueError.
    """

    def parsed(text: str) -> _Parsed:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
