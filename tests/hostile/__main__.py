"""A long run of the fuzzer by hand: ``python -m tests.hostile --cases 20000 --seed 0``.

Prints each finding and a summary; exits with 1 if there is a finding. ``--only NUMBER`` runs one case again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile import fuzzer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case only")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.cases) if arguments.only is None else [arguments.only]
    report = fuzzer.run(arguments.seed, numbers, verbose=True)
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
