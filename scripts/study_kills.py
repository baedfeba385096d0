"""Every intervention killed in every phase, resumed, and compared with an unbroken run. About 110 kills, an hour of one core.

python scripts/study_kills.py [--cases none moe] [--rounds 1]
"""

from __future__ import annotations

import argparse

from _kill import Blow, moment
from _resuming import CASES, KINDS, survives, unbroken


def main() -> None:
    parser = argparse.ArgumentParser(description="all interventions times all phases")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=1, help="kills of each pair")
    args = parser.parse_args()
    done = 0
    for case in args.cases:
        for phase in KINDS:
            for n in range(args.rounds):
                lasted = unbroken(case)[1]
                blow = Blow("write", 1 + n % 2) if phase == "write" else moment(lasted, phase, 1000 + done)
                survives(case, f"{case}-{phase.replace(' ', '-')}-{n}", blow)
                done += 1
                print(f"{case}: survived {blow}", flush=True)
    print(f"{done} kills, all runs as the unbroken ones")


if __name__ == "__main__":
    main()
