"""Preempts programs and reports what was wrong; ends with status 1 if anything was."""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

if __name__ == "__main__":
    from tests.preemptions import runner

    parser = argparse.ArgumentParser(prog="python -m tests.preemptions", description=__doc__)
    parser.add_argument("--tries", type=int, default=100, help="how many programs are preempted")
    parser.add_argument("--processes", type=int, default=1, help="number of processes of each program")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--secs", type=float, default=None, help="stop after so many seconds")
    arguments = parser.parse_args()
    sys.exit(bool(runner.run(arguments.processes, arguments.tries, arguments.seed, arguments.secs)))
