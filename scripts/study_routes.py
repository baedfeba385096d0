"""One table, with its figures, from the finished runs of several parts of `vgrout demo --every`.

    vgrout demo --every --arms 'none*' 'label_route*' absorb     # one part
    vgrout demo --every --arms 'routeV*'                         # another, on another day
    python scripts/study_routes.py out/demo/*/runs/*

Runs that differ in a setting from their arm, or from each other, are refused by name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vgrout.cli import USAGE_ERROR
from vgrout.run.console import say, setup_console
from vgrout.study.gather import gather
from vgrout.types import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders ARM-seedN")
    parser.add_argument(
        "--out", type=Path, default=Path("out/routes"), help="folder that receives one folder per table"
    )
    args = parser.parse_args()
    setup_console()
    say(str(gather(args.runs, args.out).folder))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(USAGE_ERROR)
