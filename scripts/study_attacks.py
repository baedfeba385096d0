"""The whole corpus of attacks through `vgrout grade` in every mode: nothing credited, no harm, every control correct.

    python scripts/study_attacks.py [--modes sentinel exit_code]

Ten minutes on four cores. Stops with an AssertionError at the first mode in which anything of that does not hold.
"""

from __future__ import annotations

import argparse

from verify_attacks import from_outside
from vgrout.env.modes import MODES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    for mode in parser.parse_args().modes:
        print(f"{mode}: {from_outside(mode)}", flush=True)


if __name__ == "__main__":
    main()
