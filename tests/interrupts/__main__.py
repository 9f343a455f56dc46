"""Runs interrupted calls and reports what was wrong; ends with status 1 if anything was."""

import argparse
import sys

from tests.interrupts import runner

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.interrupts", description=__doc__)
    parser.add_argument("--tries", type=int, default=5000, help="how many calls are interrupted, over all scenarios")
    parser.add_argument("--secs", type=float, default=None, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the first program; each further one has the next")
    parser.add_argument(
        "--scenario", action="append", choices=sorted(runner.NAMES), help="only this one; may be repeated"
    )
    parser.add_argument("--findings", type=int, default=20, help="stop after so many findings")
    arguments = parser.parse_args()
    # What runs in a child process comes back as a function: it is called here, at the bottom of the stack, so that the program ends
    # as any program does.
    become = runner.run(arguments.scenario, arguments.tries, arguments.secs, arguments.seed, arguments.findings)
    sys.exit(become())
