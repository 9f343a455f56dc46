"""``jaxckpt explain CONFIG``: shows the settings that a config file is translated into."""

import argparse
import dataclasses
from typing import Any

import jaxckpt
from jaxckpt._lib.output import count, print_json, print_line
from jaxckpt.cli import pod
from jaxckpt.directory.policies import described
from jaxckpt.job.devices import Imagined
from jaxckpt.translate import translated

HELP = "show the settings that a config file is translated into"
DESCRIPTION = (
    "Checks a config file, and shows the manager's settings, the Orbax settings that its options are translated into, and "
    "the reasons. Does not write anything."
)


# Larger jobs take long to imagine.
_MOST = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML or TOML file")
    parser.add_argument(
        "--section", metavar="KEY", help="the key whose value is the config, if the file holds other things too"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, such as options.enable_async=true",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=_number,
        help="explain for a job of N processes, which does not have to run here: who writes and reads what",
    )
    parser.add_argument(
        "--devices-per-process",
        metavar="D",
        type=_number,
        help="how many devices each process of that job has (default: 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if arguments.devices_per_process is not None and arguments.processes is None:
        raise ValueError("--devices-per-process needs --processes, the number of processes of the job.")
    config = jaxckpt.load_config(arguments.config, arguments.overrides, section=arguments.section)
    job = None if arguments.processes is None else Imagined(arguments.processes, arguments.devices_per_process or 1)
    translation = translated(config.options, job)
    who = [] if job is None else pod.roles(translation, job)
    manager = {name: value for name, value in config.to_dict().items() if name != "options"}
    if arguments.json:
        print_json(
            {
                "manager": manager,
                "manager_explanation": _saves(config),
                "options": config.to_dict()["options"],
                "orbax": {
                    "asynchronous": translation.asynchronous,
                    "io_process": translation.io_process,
                    "array_settings": _plain(translation.array_settings),
                    "async_options": _plain(translation.async_options),
                    "multiprocessing_options": _plain(translation.multiprocessing_options),
                    "exit_timeout_secs": translation.exit_timeout_secs,
                    "read_once_per_job": translation.read_once_per_job,
                },
                "explanation": str(translation).splitlines(),
                **({} if job is None else {"job": {**job._asdict(), "roles": [role._asdict() for role in who]}}),
            }
        )
        return 0
    print_line("CheckpointManager")
    usual = _defaults()
    for name, value in manager.items():
        default = " (default)" if name in usual and value == usual[name] else ""
        print_line(f"  {name}: {'null' if value is None else value}{default}")
    for line in _saves(config):
        print_line(f"  -> {line}")
    print_line()
    for line in str(translation).split("\n"):
        print_line(line, "" if line.startswith(" ") else "bold")
    if job is not None:
        print_line()
        devices = f"{count(job.devices, 'device')}{' each' if job.processes > 1 else ''}"
        print_line(f"In a job of {count(job.processes, 'process', 'processes')} with {devices}", "bold")
        for role in who:
            print_line(f"  {pod.heading(role)}")
            for task in role.tasks:
                print_line(f"    - {task}")
    return 0


def _number(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"must be between 1 and {_MOST:,}, got {number}")
    return number


def _defaults() -> dict[str, Any]:
    """Returns the default values of the manager's settings that have one."""
    return {
        field.name: field.default
        for field in dataclasses.fields(jaxckpt.CheckpointConfig)
        if field.default is not dataclasses.MISSING
    }


def _saves(config: jaxckpt.CheckpointConfig) -> list[str]:
    """Returns sentences that tell when the manager saves, how it calls the checkpoints, and which it keeps."""
    kept = []
    if config.max_to_keep is not None:
        kept.append(f"it is among the newest {config.max_to_keep}")
    if config.preservation_policy is not None:
        kept.append(f"{described(config.preservation_policy)} preserves it")
    if config.keep_checkpoint_every_n_hours is not None:
        kept.append(f"none was preserved in the {config.keep_checkpoint_every_n_hours:g} hours before it")
    every = config.max_to_keep is None and config.preservation_policy is None
    if config.save_decision_policy is not None:
        when = f"save() saves when {described(config.save_decision_policy)} says so"
    elif config.checkpoint_interval is not None:
        when = f"save() saves every {count(config.checkpoint_interval, 'step')}"
    else:
        when = "every call of save() saves"
    needs_step = config.save_decision_policy, config.checkpoint_interval, config.numbers == "step" or None
    if config.step_counter is None and any(each is not None for each in needs_step):
        when += (
            "; this needs a step_counter, which the program has to give: config.manager(checkpoint, step_counter=...)"
        )
    name = f"{config.directory}/{config.checkpoint_name}"
    number = (
        f"{name}-500 is the checkpoint of step 500"
        if config.numbers == "step"
        else f"{name}-5 is that of the fifth save"
    )
    return [when, number, "every checkpoint is kept" if every else f"a checkpoint is kept if {', or '.join(kept)}"]


def _plain(value: Any) -> Any:
    """Returns a dataclass as a dict of JSON values; objects that JSON does not have become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
