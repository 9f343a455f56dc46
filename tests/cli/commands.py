"""How each command of the command line is given a path. A new command that takes a single path needs no entry."""

from jaxckpt.cli import COMMANDS

# These read config files, not checkpoints.
OF_CONFIGS = ("demo", "explain")
OF_CHECKPOINTS = tuple(command for command in COMMANDS if command not in OF_CONFIGS)


def with_path(command: str, path: object) -> list[str]:
    """Returns the arguments of a call of `command` that is about `path` alone."""
    given = str(path)
    several = {
        "demo": [command, "--config", given],
        "diff": [command, given, given],
        "convert": [command, given, f"{given}-new"],
    }
    return several.get(command, [command, given])
